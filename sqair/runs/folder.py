"""The files of a run folder other than checkpoints and flags: its lock, its tables, and leftovers of killed runs."""

import contextlib
import fcntl
import io
import itertools
import math
import os
import pathlib
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import tensorflow as tf

from data_gen.errors import UserError
from data_gen.files import atomic_path, made_folder, read_json, run_folder_of, to_disc

# Half-written files (see `atomic_path`) and checkpoints that a kill leaves in a run folder: only these are removed.
_HALF_WRITTEN = re.compile(
    r"(\.(flags|versions|started_from|finished|non_finite)\.json|\.(metrics|resources)\.csv)\.[0-9a-f]{8}\.part"
)
_HALF_CHECKPOINT = re.compile(r"\.[0-9a-f]{8}\.part")


TRAIN_DATA = "train_data_fingerprint"  # in versions.json
# The run that --init_from or --continue_from named, its step, the first step here, and steps that are not counted.
STARTED_FROM = "started_from.json"


def train_data_fingerprint(folder: str | os.PathLike) -> str:
    """The `fingerprint` of the data that a run began with, "" if its folder does not have it."""
    path = pathlib.Path(folder) / "versions.json"
    found = read_json(path, "remove it if the run's data are the same") if path.exists() else {}
    return str(found.get(TRAIN_DATA, "")) if isinstance(found, dict) else ""


def first_step(folder: str | os.PathLike) -> int:
    """The step that the run in a folder began at. Raises: UserError: `STARTED_FROM` is damaged."""
    return _started_from(folder, "first_step")


def earlier_steps(folder: str | os.PathLike) -> int:
    """Training steps of the weights that a run began with which it does not count. Raises: UserError: see above."""
    return _started_from(folder, "earlier_steps")


def _started_from(folder: str | os.PathLike, name: str) -> int:
    path = pathlib.Path(folder) / STARTED_FROM
    if not path.exists():
        return 0
    hint = "remove it if the run began at step 0"
    found = read_json(path, hint)
    number = found.get(name, 0) if isinstance(found, dict) else None
    if type(number) is not int or number < 0:
        raise UserError(f"{path}: no {name} in it; {hint}")
    return number


class RunLock:
    """One writer per run folder, which is made if it is missing, and removed again if nothing was written to it.

    The lock is the operating system's (flock), which is released when a process dies; the file only names
    the process that holds it. Entering removes half-written files of a killed holder, and returns a note if the last
    holder ended without giving up the lock, else None.
    """

    def __init__(self, folder: str | os.PathLike):
        if not os.fspath(folder):
            raise UserError("--run_dir: is empty; name a folder")
        self._path = pathlib.Path(folder) / "run.lock"
        self._file: io.TextIOWrapper | None = None

    def __enter__(self) -> str | None:
        """Raises: UserError: another process holds the folder, it cannot be written, or is not one of `sqair.train`."""
        self._check_place()
        with contextlib.ExitStack() as stack:
            self._is_new = not self._path.parent.exists()
            try:
                stack.enter_context(made_folder(self._path.parent))
                file = self._file = stack.enter_context(open(self._path, "a+", encoding="utf-8"))
            except OSError as error:
                raise UserError(
                    f"{self._path.parent}: cannot be written ({error.strerror}); choose another --run_dir"
                ) from None
            file.seek(0)
            holder = file.read().strip()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    raise UserError(
                        f"{self._path}: cannot be locked ({error.strerror}), which keeps two processes out "
                        "of one folder; choose a --run_dir on a file system that has locks"
                    ) from None
                raise UserError(
                    f"{self._path.parent}: in use by {holder or 'another process'}; stop that run or "
                    "choose another --run_dir"
                ) from None
            if not self._path.exists() or not os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                raise UserError(f"{self._path.parent}: was given up by another process just now; start again")
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            self._clean()
            self._stack = stack.pop_all()
        return f"took over the lock of {holder}, which ended without giving it up" if holder else None

    def _check_place(self) -> None:
        folder = self._path.parent
        outer = run_folder_of(folder)
        if outer:
            raise UserError(f"{folder}: lies in the run folder {outer}; choose another --run_dir")
        if (folder / "model.safetensors").exists() or any(folder.glob("model.ckpt-*.index")):
            raise UserError(
                f"{folder}: is a model to share or a run of the original program, which --init_from takes; "
                "choose another --run_dir"
            )

    def _clean(self) -> None:
        for path in self._path.parent.glob(".*.part"):
            if _HALF_WRITTEN.fullmatch(path.name) and path.is_file():
                path.unlink()
        for folder in ("checkpoints", "best"):
            for path in self._path.parent.glob(f"{folder}/.*.part"):
                if _HALF_CHECKPOINT.fullmatch(path.name) and path.is_dir():
                    shutil.rmtree(path)

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.truncate(0)
        with contextlib.suppress(OSError):  # others have removed the folder
            if self._is_new and os.listdir(self._path.parent) == [self._path.name]:
                self._path.unlink()  # nothing was begun here: a start that failed leaves no folder
        self._stack.close()


def append(path: str | os.PathLike, line: str) -> None:
    """Appends a line to a file and waits until it is on the disc. Raises: UserError: it cannot be written."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error.strerror) from None


@contextlib.contextmanager
def tensorboard(folder: str | os.PathLike) -> Iterator[None]:
    """Makes `folder` the place of `tf.summary`. Raises: UserError: the events cannot be written."""
    try:
        with tf.summary.create_file_writer(str(folder)).as_default():
            yield
    except tf.errors.OpError as error:
        found = re.search(r"(\S+tfevents\S+); (.*)", str(error))
        if not found:
            raise
        raise _unwritable(*found.groups()) from None


def _unwritable(path: str | os.PathLike, cause: str | None) -> UserError:
    return UserError(
        f"{path}: cannot be written ({cause}); the last checkpoint is kept, free some space or check the "
        "folder and start the same command again"
    )


def read_rows(path: str | os.PathLike) -> Iterator[list[str]]:
    """Yields the cells of each line of a table of ours (nothing is quoted); a damaged line does not affect others."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n").split(",")


def step_of(text: str) -> int:
    """The step in a cell; -1 if it holds none."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else -1


def facts(folder: str | os.PathLike, step: int) -> dict[str, Any]:
    """Facts about the weights of a run, from the files of its folder.

    Args:
      folder: of the run.
      step: of the weights.

    Returns:
      commit, and whether it had uncommitted changes; machine; minutes, wall-clock time of the steps without
      evaluations, and processor_minutes, their CPU time on all cores; validation, the last one up to the step: step,
      length, bounds and likelihoods in nats per frame. What the files do not have is left out.
    """
    folder = pathlib.Path(folder)
    found: dict[str, Any] = {}
    versions = folder / "versions.json"
    if versions.exists():
        told = read_json(versions, "remove it, if the run's versions do not matter")
        told = told if isinstance(told, dict) else {}
        if re.fullmatch("[0-9a-f]{40}", str(told.get("git_commit"))):
            found |= {"commit": told["git_commit"], "uncommitted_changes": bool(told.get("uncommitted_changes"))}
        if isinstance(told.get("machine"), str):
            found["machine"] = told["machine"]
    seconds, before = {"seconds_per_step": 0.0, "cpu_seconds_per_step": 0.0}, 0
    for row in _numbers(folder / "resources.csv"):
        if row["step"] <= step and seconds.keys() <= row.keys():
            seconds = {name: value + (row["step"] - before) * row[name] for name, value in seconds.items()}
            before = row["step"]
    if before:
        minutes = [value / before * step / 60 for value in seconds.values()]  # the last steps are not timed
        found |= dict(zip(("minutes", "processor_minutes"), minutes))
    wanted = ("step", "length", "iwae_per_frame", "vae_per_frame", "data_ll", "kl", "num_step_accuracy")
    for row in _numbers(folder / "metrics.csv"):
        if row["data"] == "validation" and row["step"] <= step and {"length", "iwae_per_frame"} <= row.keys():
            found["validation"] = {name: row[name] for name in wanted if name in row}
    return found


def _numbers(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The rows of a table of ours, except damaged ones: the kind of data, and the cells that are finite numbers."""
    rows = read_rows(path) if path.exists() else iter(())
    header = next(rows, [])
    for cells in rows:
        row, numbers = dict(zip(header, cells)), {}
        for name, cell in row.items():
            with contextlib.suppress(ValueError):
                numbers[name] = int(cell) if step_of(cell) >= 0 else float(cell)
        numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
        if len(cells) == len(header) and "data" in row and type(numbers.get("step")) is int:
            yield numbers | {"data": row["data"]}


class MetricsFile:
    """A CSV file that survives kills: rows after the step that a run continues from are dropped, then written again.

    Rows up to a checkpoint's step are never lost: they are on the disc before the checkpoint is.
    """

    def __init__(
        self, path: str | os.PathLike, columns: Sequence[str], step: int, before: str | os.PathLike | None = None
    ):
        """Opens the file; cells of columns that it did not have yet are empty.

        Args: path: the file. columns: its header; the first is the step. step: keep rows up to this step.
        before: a file whose rows are taken instead of this one's: that of the run which this one continues.
        """
        self._path = pathlib.Path(path)
        before = pathlib.Path(before or path)
        rows = read_rows(before) if before.exists() else iter(())
        header = next(rows, [])
        if not set(columns[:1]) <= set(header) <= set(columns):  # damaged
            header = list(columns)
        with atomic_path(self._path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            kept = (dict(zip(header, row)) for row in rows if len(row) == len(header) and 0 <= step_of(row[0]) <= step)
            file.writelines(
                ",".join(row) + "\n"
                for row in itertools.chain([columns], ([cells.get(name, "") for name in columns] for cells in kept))
            )

    def append(self, row: Sequence) -> None:
        """Appends a row; numbers are written so that they read back exactly."""
        append(self._path, ",".join(repr(x) if isinstance(x, float) else str(x) for x in row))


FINISHED = "finished.json"  # marks a run folder whose run has nothing left to do
NON_FINITE = "non_finite.json"


def versions() -> dict:
    """What a result depends on: packages, Python, git commit, machine, command."""
    packages = ("tensorflow", "tensorflow-probability", "dm-sonnet", "numpy", "h5py")
    root = pathlib.Path(__file__).resolve().parents[2]

    def git(*arguments):
        try:
            return subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    top = git("rev-parse", "--show-toplevel")
    ours = bool(top) and pathlib.Path(top).resolve() == root  # not a repository that merely contains this code
    changes = git("status", "--porcelain", "-uno") if ours else None
    return {
        **{package: metadata.version(package) for package in packages},
        "python": sys.version.split()[0],
        "git_commit": (git("rev-parse", "HEAD") if ours else None) or "unknown",
        "uncommitted_changes": None if changes is None else bool(changes),
        "machine": os.uname().machine,
        "command": sys.argv,
    }


SPEED = ("seconds_per_step", "cpu_seconds_per_step")
RESOURCES = ("memory_mb", "open_files")


CHECKPOINTS, BEST = "checkpoints", "best"


def prefixes(folder: pathlib.Path) -> list[str]:
    """Checkpoints in a folder, newest first, whether or not TensorFlow's index file lists them."""
    found = {}
    for name in os.listdir(folder) if folder.is_dir() else ():  # glob hides a lack of permission
        number = name[len("step-") : -len(".index")]
        if name == f"step-{number}.index" and number.isdecimal():
            found[int(number)] = str(folder / name)[: -len(".index")]
    return [found[number] for number in sorted(found, reverse=True)]


@contextlib.contextmanager
def appearing(folder: pathlib.Path, names: Sequence[str] = ()) -> Iterator[pathlib.Path]:
    """Yields a hidden folder to write files in; once all are on the disc they move to `folder`.

    Args:
      folder: made if it is missing.
      names: of the files, in the order in which they appear; left out, all of them in alphabetical order, in which
        a checkpoint's index, which makes it visible, comes after its data.
    """
    with made_folder(folder):
        stage = folder / f".{secrets.token_hex(4)}.part"
        try:
            stage.mkdir()
            yield stage
            names = names or sorted(os.listdir(stage))
            for name in names:
                to_disc(stage / name)
            for name in names:
                os.replace(stage / name, folder / name)
                to_disc(folder)  # after each file: its name is on the disc before the next one's
        finally:
            shutil.rmtree(stage, ignore_errors=True)
