"""What every command line of the project shares: errors as one line, files that appear whole, progress."""

import contextlib
import json
import os
import pathlib
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 10.0
LONGEST_MESSAGE = 500       # characters
MAX_JSON_BYTES = 16 * 2**20


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
    of memory; 130 after Ctrl-C; 143 after SIGTERM. Any other exception is a fault of the program and keeps its
    traceback.

    Args:
      main: the command, without arguments.
    """
    # As an exception, a polite kill runs the same clean-ups as any other failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = main()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is left to say, not even when Python flushes at exit.
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


def within(low: float, high: float) -> Callable[[Any, Any, float], None]:
    """Returns an attrs validator: a setting outside `low`..`high` is a `UserError` that names its flag."""

    def check(settings: Any, attribute: Any, value: float) -> None:
        if not low <= value <= high:
            raise UserError(f"--{attribute.name} {value}: expected {low:g} to {high:g}")

    return check


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


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary name beside `path`; the file written there takes the name `path` only once it is whole.

    A missing folder is made. On success the file is flushed to the disc and renamed, replacing what was there; on
    any failure (Ctrl-C and, under `run`, SIGTERM too) it is removed and `path` is left as it was.

    Args:
      path: the final name.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from None     # a failed write has no name
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
