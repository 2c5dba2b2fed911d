"""XLA's persistent cache: what one run has compiled the next one loads, such as the other seeds of a comparison.

The loaded programs give the same bits (tests/test_real_training.py). They are machine code, and TensorFlow loads what it
finds: so they are kept where only their user can write, one folder for each processor and TensorFlow, and none is
left there to be loaded that is not as it was written.
"""

import hashlib
import os
import pathlib
import platform
import shutil
from typing import Optional

import tensorflow as tf

from data_gen.command_line import atomic_path

OPTION = "--tf_xla_persistent_cache_directory"
MOST_ENTRIES = 200          # about 2 MB each
ROOM = 2 ** 30              # bytes: on a fuller disc nothing is kept

_folder: Optional[pathlib.Path] = None      # of this process, since TensorFlow's setting is


def use() -> None:
    """Opens the cache, $XDG_CACHE_HOME/r-sqair (~/.cache/r-sqair), for this process.

    Call it before TensorFlow looks for devices: then it reads its flags. There is no cache if the user has set one in
    TF_XLA_FLAGS, if the place cannot be written to or others can write to it, or if its disc is nearly full.
    """
    global _folder
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if OPTION in flags:
        return
    kind = hashlib.sha256("\n".join([tf.__version__, _processor(), os.environ.get("XLA_FLAGS", "")]).encode())
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(home) / "r-sqair" / f"xla-{kind.hexdigest()[:16]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022 or not os.access(folder, os.W_OK):
            return
        if shutil.disk_usage(folder).free < ROOM:
            return
        _remove_unsound(folder)
    except OSError:
        return
    os.environ["TF_XLA_FLAGS"] = f"{flags} {OPTION}={folder} --tf_xla_persistent_cache_device_types=CPU".strip()
    _folder = folder


def seal() -> None:
    """Writes down the digest of every new entry, without which the next `use` removes it."""
    for entry in _folder.glob("*.pb") if _folder else []:
        seal_of = _seal(entry)
        if not seal_of.exists():
            try:
                with atomic_path(seal_of) as temporary:
                    temporary.write_text(_digest(entry))
            except OSError:     # a full disc, say: the entry will be compiled again
                return


def _remove_unsound(folder: pathlib.Path) -> None:
    entries = sorted(folder.glob("*.pb"), key=lambda path: path.stat().st_mtime, reverse=True)
    for i, entry in enumerate(entries):
        seal_of = _seal(entry)
        if i >= MOST_ENTRIES or not seal_of.exists() or seal_of.read_text() != _digest(entry):
            entry.unlink(missing_ok=True)
            seal_of.unlink(missing_ok=True)


def _seal(entry: pathlib.Path) -> pathlib.Path:
    return entry.with_suffix(".sha256")


def _digest(entry: pathlib.Path) -> str:
    return hashlib.sha256(entry.read_bytes()).hexdigest()


def _processor() -> str:
    """What XLA makes its code for: the processor's name and instruction sets."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.processor()
