"""Shared by all commands: parsing of options, errors in one line, files that appear whole, progress."""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import json
import math
import os
import pathlib
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import attrs
import tyro
from tqdm import tqdm

LOG_SECONDS = 10.0
LONGEST_MESSAGE = 500       # characters
MAX_JSON_BYTES = 16 * 2**20
PARENT = "R_SQAIR_PARENT"   # environment variable: the process that started this one and wants it to end with it
_PR_SET_PDEATHSIG = 1
# What TensorFlow says of itself as it is imported, whatever TF_CPP_MIN_LOG_LEVEL is: regular expressions of lines.
_NOTICES = ("^WARNING: All log messages before absl::InitializeLog",
            r"port\.cc:[0-9]+\] oneDNN custom operations are on",
            r"cudart_stub\.cc:[0-9]+\] Could not find cuda drivers", r"cpu_feature_guard\.cc:[0-9]+\] This TensorFlow",
            "^To enable the following instructions:")


class UserError(Exception):
    """Something the user can put right. The message names it, says what was expected and what to do.

    It is one short line, whatever the broken file that it quotes holds: only what can be printed is kept, and a long
    message loses its middle.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


def _one_line(message: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    if len(line) <= LONGEST_MESSAGE:
        return line
    half = LONGEST_MESSAGE // 2 - 3
    return f"{line[:half]} ... {line[-half:]}"


def run(main: Callable[[], int | None]) -> None:
    """Runs a command line and exits; what the user can put right ends in one line on standard error.

    Exit codes: 0, or what `main` returns; 1 after a `UserError`, an `OSError` (disc full, no permission) or a lack
    of memory; 130 after Ctrl-C; 143 after SIGTERM, 129 after SIGHUP (the terminal has gone; under nohup the command
    goes on). Any other exception is a fault of the program and keeps its traceback.

    Args:
      main: the command, without arguments.
    """
    # Raised as an exception, so that SIGTERM runs the same clean-up as any other failure.
    on_signals(lambda number, _: sys.exit(128 + number), (signal.SIGTERM, signal.SIGHUP))
    _end_with_parent()
    try:
        code = main()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of the output has closed it (`| head`): end without a message, also when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(where + (error.strerror or str(error)))
    except MemoryError as error:
        _fail(f"out of memory ({error}); use a smaller batch or fewer frames")
    except Exception as error:
        # An error in a tf.data generator arrives as TensorFlow's own exception, ours quoted inside its message.
        quoted = re.search(r"\bUserError: (.*)", str(error))
        if not (quoted and type(error).__module__.startswith("tensorflow")):
            raise
        _fail(quoted.group(1))
    sys.exit(code)


def run_module(module: str, read: Callable[[], Any]) -> None:
    """`run` of a module's `main`, for a module that takes seconds to import: it is only when its options are right.

    Such a module calls this above its imports, where it is what Python was started with.

    Args:
      module: its name, by which it is imported.
      read: parses the command line, as `main` does again; it may say or check more.
    """
    def main() -> int | None:
        read()
        # TensorFlow imports Keras, which imports scikit-learn: a third of its own import. Nothing here uses it, and
        # TensorFlow Probability brings tf_keras, so that TensorFlow may as well take that.
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
        with without_notices():
            found = importlib.import_module(module)
        return found.main()

    run(main)


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Keeps off standard error what TensorFlow tells of itself when it is imported here; other lines get there, even if
    the import ends the process."""
    if "tensorflow" in sys.modules:
        yield
        return
    try:
        others = subprocess.Popen(["grep", "--line-buffered", "-avE", "|".join(_NOTICES)], stdin=subprocess.PIPE,
                                  stdout=2, start_new_session=True)     # out of Ctrl-C's reach
        kept = os.dup(2)
    except OSError:     # no grep, or no standard error
        yield
        return
    os.dup2(others.stdin.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        others.stdin.close()
        others.wait()


def n_cores() -> int:
    """The cores that this process may use; where the system does not say (macOS), all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_signals(handler: Callable[[int, Any], Any],
               numbers: Iterable[int] = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)) -> None:
    """Handles signals that ask a process to end, but SIGHUP where nohup has it ignored."""
    for number in numbers:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Asks Linux for SIGTERM at the end of the process named by `PARENT`, however it ends."""
    parent = os.environ.pop(PARENT, "")
    if not parent.isdecimal() or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError:
        sys.exit(128 + signal.SIGTERM)       # it ended before that
    except PermissionError:
        pass


def fingerprint(*paths: str | os.PathLike) -> str:
    """SHA-256 of what files hold, as 64 hexadecimal digits; of one file, what `sha256sum` prints.

    Of several it is that of their own fingerprints. A file is read once a process, unless its size or time has changed.

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


def within(low: float, high: float) -> Callable[[Any, Any, Any], None]:
    """Returns an attrs validator: a setting outside `low`..`high` is a `UserError` that names its flag."""

    def check(settings: Any, attribute: Any, value: float) -> None:
        if not low <= value <= high:
            raise UserError(f"--{attribute.name} {value}: expected {low:g} to {high:g}")

    return check


_TRUE, _FALSE = ("true", "yes"), ("false", "no")


def parse(kind: Any, module: str, arguments: Sequence[str] | None = None, may_be_empty: Collection[str] = (),
          **options: Any) -> Any:
    """Parses a command line.

    Booleans may be written as for the original program too: --xla=True, --xla True, --noxla.

    Args:
      kind: attrs class, or a union of them, whose fields are the options.
      module: whose command line it is, as in `python -m MODULE`.
      arguments: what to parse; None for what the command was given.
      may_be_empty: options that can be empty. That of others is an error: a path that is empty, mostly by a shell
        variable that is not set, would mean the current folder.
      **options: for `tyro.cli`.

    Returns:
      An object of `kind`.

    Raises:
      UserError: an argument is empty, or a boolean neither true nor false.
      SystemExit: an option is unknown or wrong, which has been said, or help was asked for.
    """
    name = None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        name = option if option.startswith("--") else name
        if not (value if option.startswith("--") and equals else argument).strip() and (
                name is None or name.lstrip("-").replace("-", "_") not in may_be_empty):
            raise UserError(f"{name or f'argument {i + 1}'}: is empty; name something, or leave the option out (was a "
                            "shell variable not set?)")
    return tyro.cli(kind, args=_plain_booleans(arguments, _booleans(kind)), prog=f"python -m {module}",
                    use_underscores=True, **options)


def take(arguments: list[str], name: str) -> str | None:
    """Removes an option with its value, wherever it stands: one that sets the defaults of others is read before them.

    Args:
      arguments: of a command line.
      name: of the option, without dashes.

    Returns:
      The value, None if the option is not there.
    """
    for i in reversed(range(len(arguments))):
        option, equals, value = arguments[i].partition("=")
        if option.replace("-", "_") == f"__{name}" and (equals or i + 1 < len(arguments)):
            del arguments[i]
            return value if equals else arguments.pop(i)
    return None


def take_preset(arguments: list[str], presets: Collection[str]) -> str | None:
    """`take` of --preset, which must name one of the presets. Raises: UserError: there is no such preset."""
    preset = take(arguments, "preset")
    if preset is not None and preset not in presets:
        raise UserError(f"--preset {preset}: no such preset; choose from {', '.join(presets)}")
    return preset


def _booleans(kind: Any) -> set[str]:
    """The names of all boolean fields of a class and of the classes of its fields."""
    if get_origin(kind) is not None:
        inner = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
        return set().union(*map(_booleans, inner))
    if not attrs.has(kind):
        return set()
    fields = get_type_hints(kind, include_extras=True)
    return {name for name, type_ in fields.items() if type_ is bool}.union(*map(_booleans, fields.values()))


def _plain_booleans(arguments: Sequence[str], booleans: Collection[str]) -> list[str]:
    """Rewrites --name=True, --name True and --noname of booleans to --name and --no_name."""
    plain, i = [], 0
    while i < len(arguments):
        option, equals, value = arguments[i].partition("=")
        name = option[2:].replace("-", "_") if option.startswith("--") else ""
        if name in booleans:
            if not equals and arguments[i + 1:i + 2] and arguments[i + 1].lower() in _TRUE + _FALSE:
                i += 1
                equals, value = "=", arguments[i]
            if equals and value.lower() not in _TRUE + _FALSE:
                raise UserError(f"{option} {value}: expected True or False; or write {option}, --no_{name}")
            plain.append(f"--no_{name}" if equals and value.lower() in _FALSE else option)
        else:
            is_negation = not equals and name.startswith("no") and name[2:] in booleans
            plain.append(f"--no_{name[2:]}" if is_negation else arguments[i])
        i += 1
    return plain


def _fail(message: str, code: int = 1) -> None:
    print("error:", _one_line(message), file=sys.stderr)
    sys.exit(code)


def read_json(path: str | os.PathLike, hint: str) -> Any:
    """Reads a small JSON file.

    Args:
      path: of the file.
      hint: what it should be or what to do, the end of an error's line.

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
    """Returns content as indented JSON, in which numbers that are not finite are null: JSON has no others."""

    def finite(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict):
            return {key: finite(x) for key, x in value.items()}
        return [finite(x) for x in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(finite(content), indent=1, allow_nan=False, default=list) + "\n"


class Kind(NamedTuple):
    """A kind of result: what it is called, and whether a file is one."""

    name: str
    test: Callable[[pathlib.Path], bool]


def begins(name: str, *prefixes: str | bytes) -> Kind:
    """Returns the kind of files that begin with one of some texts."""
    starts = tuple(prefix if isinstance(prefix, bytes) else prefix.encode() for prefix in prefixes)

    def test(path: pathlib.Path) -> bool:
        with open(path, "rb") as file:
            return file.read(max(map(len, starts))).startswith(starts)

    return Kind(name, test)


RUN_FOLDER_FILES = ("flags.json", "model.safetensors")      # a folder with one of these is a run


def run_folder_of(path: str | os.PathLike) -> pathlib.Path | None:
    """Returns the run folder that a file or folder lies in, however deep; None if it lies in none."""
    for folder in pathlib.Path(path).resolve().parents:
        if any((folder / name).is_file() for name in RUN_FOLDER_FILES):
            return folder
    return None


def check_output(path: str | os.PathLike, kind: Kind, inputs: Iterable[str | os.PathLike] = ()) -> None:
    """Checks that a result may take a name: commands with long work ask before it.

    Args:
      path: of the file to be written.
      kind: of the result; an older one of the same kind may be replaced.
      inputs: files that the command reads.

    Raises:
      UserError: it is an input, lies in a run folder, or what is there is of another kind.
      OSError: what is there cannot be read.
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
        raise UserError(f"{path}: is there already and is not {kind.name}; remove it or {other}")


@contextlib.contextmanager
def output_path(path: str | os.PathLike, kind: Kind, inputs: Iterable[str | os.PathLike] = ()
                ) -> Iterator[pathlib.Path]:
    """`atomic_path` of a result, after `check_output`: every result is written through it."""
    check_output(path, kind, inputs)
    with atomic_path(path) as temporary:
        yield temporary


@contextlib.contextmanager
def made_folder(path: str | os.PathLike) -> Iterator[None]:
    """Makes a folder, and those above it, if it is missing; what was made and is still empty at the end is removed."""
    path = pathlib.Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):      # not empty, and so are those above
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary name beside `path`; the file written there takes the name `path` only once it is whole.

    A missing folder is made. On success the file is flushed to the disc and renamed, replacing what was there; on
    any failure (Ctrl-C and, under `run`, SIGTERM too) it is removed, with the folder if that was made for it, and
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
    """Waits until a file's contents, or a folder's names, are on the disc: a loss of power no longer takes them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _LogProgress:
    """Progress as plain lines, at most one every `LOG_SECONDS`, for output that is not a terminal."""

    def __init__(self, total: int, description: str, unit: str):
        self._total, self._description, self._unit = total, description, unit
        self._done, self._start = 0, time.monotonic()
        self._printed = self._start

    def update(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._printed >= LOG_SECONDS or self._done == self._total:
            self._printed = now
            elapsed = now - self._start
            left = elapsed * (self._total - self._done) / max(self._done, 1)
            print(f"{self._description}: {self._done}/{self._total} {self._unit}, {elapsed:.0f} s, {left:.0f} s left",
                  file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(total: int, description: str, unit: str = "sequences") -> Iterator[Callable[[int], None]]:
    """Shows how far a long run has come: a bar on a terminal, a line every ten seconds in a log file.

    Args:
      total: how much there is to do.
      description: what is being done.
      unit: what is counted.

    Yields:
      A function to call with the amount just done.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=description, unit=f" {unit}", dynamic_ncols=True) as bar:
            yield bar.update
    else:
        yield _LogProgress(total, description, unit).update
