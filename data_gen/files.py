"""Files that appear when complete, results that replace only results of the same kind, and fingerprints of files."""

import contextlib
import functools
import hashlib
import json
import math
import os
import pathlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from data_gen.errors import UserError

MAX_JSON_BYTES = 16 * 2**20


def fingerprint(*paths: str | os.PathLike) -> str:
    """SHA-256 of the contents of files, as 64 hexadecimal digits; of one file, what `sha256sum` prints.

    Of several files it is that of their fingerprints. A file is read once per process, unless its size or time changes.

    Raises:
      OSError: one of them cannot be read.
    """
    digests = [_digest(os.path.realpath(path), *_state(path)) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _state(path: str | os.PathLike) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


@functools.cache
def _digest(path: str, _size: int, _time: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: str | os.PathLike, hint: str) -> Any:
    """Reads a small JSON file.

    Args:
      path: of the file.
      hint: what it should be or what to do, the end of an error message.

    Raises:
      UserError: there is no such file, it is not JSON, or it is too large to be one of ours.
    """
    try:
        if os.path.getsize(path) > MAX_JSON_BYTES:
            raise UserError(f"{path}: larger than {MAX_JSON_BYTES // 2**20} MiB; {hint}")
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {hint}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); {hint}") from None


def to_json(content: Any) -> str:
    """Returns content as indented JSON, with null for numbers that are not finite, which JSON does not have."""

    def finite(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict):
            return {key: finite(x) for key, x in value.items()}
        return [finite(x) for x in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(finite(content), indent=1, allow_nan=False, default=list) + "\n"


class Kind(NamedTuple):
    """A kind of result: its name, and a test whether a file is one."""

    name: str
    test: Callable[[pathlib.Path], bool]


def begins(name: str, *prefixes: str | bytes) -> Kind:
    """Returns the kind of files that begin with one of these prefixes."""
    starts = tuple(prefix if isinstance(prefix, bytes) else prefix.encode() for prefix in prefixes)

    def test(path: pathlib.Path) -> bool:
        with open(path, "rb") as file:
            return file.read(max(map(len, starts))).startswith(starts)

    return Kind(name, test)


RUN_FOLDER_FILES = ("flags.json", "model.safetensors")  # a folder with one of these is a run


def run_folder_of(path: str | os.PathLike) -> pathlib.Path | None:
    """Returns the run folder that a file or folder lies in, however deep; None if it lies in none."""
    for folder in pathlib.Path(path).resolve().parents:
        if any((folder / name).is_file() for name in RUN_FOLDER_FILES):
            return folder
    return None


def check_output(path: str | os.PathLike, kind: Kind, inputs: Iterable[str | os.PathLike] = ()) -> None:
    """Checks that a result may be written to a path; commands call it before long work.

    Args:
      path: of the file to be written.
      kind: of the result; an older one of the same kind may be replaced.
      inputs: files that the command reads.

    Raises:
      UserError: it is an input, lies in a run folder, or an existing file there is of another kind.
      OSError: an existing file cannot be read.
    """
    path = pathlib.Path(path)
    other = "choose another name for the result"
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the file to write")
    for file in inputs:
        if path.exists() and os.path.exists(file) and os.path.samefile(path, file):
            raise UserError(f"{path}: is read by this command, and would be lost; {other}")
    folder = run_folder_of(path)
    if folder:
        raise UserError(f"{path}: lies in the run folder {folder}, which holds the run's own files alone; {other}")
    if path.exists() and not (path.is_file() and (path.stat().st_size == 0 or kind.test(path))):
        raise UserError(f"{path}: already exists and is not {kind.name}; remove it or {other}")


@contextlib.contextmanager
def output_path(
    path: str | os.PathLike, kind: Kind, inputs: Iterable[str | os.PathLike] = ()
) -> Iterator[pathlib.Path]:
    """`atomic_path` of a result, after `check_output`: every result is written through it."""
    check_output(path, kind, inputs)
    with atomic_path(path) as temporary:
        yield temporary


@contextlib.contextmanager
def made_folder(path: str | os.PathLike) -> Iterator[None]:
    """Makes a folder and its parents if missing; those that it made and that are empty at the end are removed."""
    path = pathlib.Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty, and so are those above
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary name beside `path`; the file written there is renamed to `path` only when it is complete.

    A missing folder is made. On success the file is flushed to the disc and renamed, replacing what was there; on
    any failure (Ctrl-C and, under `run_cli`, SIGTERM too) it is removed, with the folder if that was made for it, and
    `path` is left as it was. For the files of a run folder; results go through `output_path`.

    Args:
      path: the final name.
    """
    path = pathlib.Path(path)
    with made_folder(path.parent):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name the file to write")
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            yield temporary
            to_disc(temporary)
            os.replace(temporary, path)
            to_disc(path.parent)
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            # OSErrors of writes carry no file name.
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from None
        finally:
            temporary.unlink(missing_ok=True)


def to_disc(path: str | os.PathLike) -> None:
    """Flushes a file's contents, or a folder's names, to the disc (fsync), so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
