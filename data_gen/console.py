"""What every command line of the project shares: options, errors as one line, signals, progress."""

import contextlib
import ctypes
import gc
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import attrs
import tyro
from tqdm import tqdm

from data_gen.errors import UserError, one_line

LOG_SECONDS = 10.0
PARENT = "R_SQAIR_PARENT"  # environment variable: id of the parent process, with which this one is to end
_PR_SET_PDEATHSIG = 1
# Lines that TensorFlow logs on import, whatever TF_CPP_MIN_LOG_LEVEL is, as regular expressions.
_NOTICES = (
    "^WARNING: All log messages before absl::InitializeLog",
    r"port\.cc:[0-9]+\] oneDNN custom operations are on",
    r"cudart_stub\.cc:[0-9]+\] Could not find cuda drivers",
    r"cpu_feature_guard\.cc:[0-9]+\] This TensorFlow",
    "^To enable the following instructions:",
)


def run_cli(main: Callable[[], int | None]) -> None:
    """Runs a command line and exits; an error that the user can fix ends in one line on standard error.

    Exit codes: 0, or what `main` returns; 1 after a `UserError`, an `OSError` (disc full, no permission) or a lack
    of memory; 130 after Ctrl-C; 143 after SIGTERM, 129 after SIGHUP (the terminal was closed; under nohup the
    command goes on). Any other exception is a bug and keeps its traceback.

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
    """`run_cli` of a module's `main`. It takes seconds to import, so it is imported only if its options are right.

    Such a module calls this above its imports, when it is run as a script.

    Args:
      module: its name, by which it is imported.
      read: parses the command line, as `main` does again; it may print or check more.
    """

    def main() -> int | None:
        read()
        # TensorFlow imports Keras, which imports scikit-learn: a third of its own import. Nothing here uses it, and
        # TensorFlow Probability imports tf_keras anyway, so TensorFlow is told to use that.
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
        # Hardly anything that imports make is garbage, but Python's collector looks through all of it, again and again:
        # a tenth of the time of importing TensorFlow, and of tracing its graphs afterwards.
        gc.disable()
        with without_notices():
            found = importlib.import_module(module)
        gc.freeze()
        gc.enable()
        return found.main()

    run_cli(main)


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Removes `_NOTICES` from standard error while TensorFlow is imported; other lines are printed, even if the import
    ends the process."""
    if "tensorflow" in sys.modules:
        yield
        return
    try:
        others = subprocess.Popen(
            ["grep", "--line-buffered", "-avE", "|".join(_NOTICES)],
            stdin=subprocess.PIPE,
            stdout=2,
            start_new_session=True,
        )  # a session of its own: Ctrl-C does not reach it
        kept = os.dup(2)
    except OSError:  # no grep, or no standard error
        yield
        return
    pipe = others.stdin
    assert pipe is not None  # because of stdin=PIPE
    os.dup2(pipe.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        pipe.close()
        others.wait()


def n_cores() -> int:
    """The number of cores that this process may use; all of them where the system does not tell (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_signals(
    handler: Callable[[int, Any], Any], numbers: Iterable[int] = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
) -> None:
    """Sets the handler of signals that ask a process to end, except SIGHUP where nohup ignores it."""
    for number in numbers:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Asks Linux to send SIGTERM when the process in `PARENT` ends, however it ends."""
    parent = os.environ.pop(PARENT, "")
    if not parent.isdecimal() or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError:
        sys.exit(128 + signal.SIGTERM)  # it had already ended
    except PermissionError:
        pass


def within(low: float, high: float) -> Callable[[Any, Any, Any], None]:
    """Returns an attrs validator: a setting outside `low`..`high` is a `UserError` that names its flag."""

    def check(settings: Any, attribute: Any, value: float) -> None:
        if not low <= value <= high:
            raise UserError(f"--{attribute.name} {value}: expected {low:g} to {high:g}")

    return check


_TRUE, _FALSE = ("true", "yes"), ("false", "no")


def parse(
    kind: Any, module: str, arguments: Sequence[str] | None = None, may_be_empty: Collection[str] = (), **options: Any
) -> Any:
    """Parses a command line.

    Booleans may be written as for the original program too: --xla=True, --xla True, --noxla.

    Args:
      kind: attrs class, or a union of them, whose fields are the options.
      module: whose command line it is, as in `python -m MODULE`.
      arguments: what to parse; None for `sys.argv[1:]`.
      may_be_empty: options that can be empty. For others this is an error: an empty path, usually from a shell
        variable that is not set, would mean the current folder.
      **options: for `tyro.cli`.

    Returns:
      An object of `kind`.

    Raises:
      UserError: an argument is empty, or a boolean neither true nor false.
      SystemExit: an option is unknown or wrong (a message has been printed), or help was asked for.
    """
    name = None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        name = option if option.startswith("--") else name
        if not (value if option.startswith("--") and equals else argument).strip() and (
            name is None or name.lstrip("-").replace("-", "_") not in may_be_empty
        ):
            raise UserError(
                f"{name or f'argument {i + 1}'}: is empty; name something, or leave the option out (was a "
                "shell variable not set?)"
            )
    return tyro.cli(
        kind,
        args=_plain_booleans(arguments, _booleans(kind)),
        prog=f"python -m {module}",
        use_underscores=True,
        **options,
    )


def take(arguments: list[str], name: str) -> str | None:
    """Removes an option and its value, at any position, to read options that set the defaults of others first.

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
            if not equals and arguments[i + 1 : i + 2] and arguments[i + 1].lower() in _TRUE + _FALSE:
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
    print("error:", one_line(message), file=sys.stderr)
    sys.exit(code)


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
            print(
                f"{self._description}: {self._done}/{self._total} {self._unit}, {elapsed:.0f} s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


@contextlib.contextmanager
def progress(total: int, description: str, unit: str = "sequences") -> Iterator[Callable[[int], None]]:
    """Shows the progress of a long run: a bar on a terminal, a line every ten seconds in a log file.

    Args:
      total: the amount of work.
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
