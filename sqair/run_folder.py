"""The files of a run folder that are neither checkpoints nor flags: its lock and its table of metrics."""

import csv
import fcntl
import os
import pathlib
import socket
from typing import Optional, Sequence, Union

from data_gen.command_line import UserError, atomic_path


class RunLock:
    """One writer a run folder.

    The lock is the operating system's (flock), which a dying process gives up by itself; the file only says who
    holds it. Entering returns a note if the last holder never gave it up in order, None otherwise.
    """

    def __init__(self, folder: Union[str, os.PathLike]):
        self._path = pathlib.Path(folder) / "run.lock"
        self._file = None

    def __enter__(self) -> Optional[str]:
        """Raises: UserError: another process holds the folder, or it cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self._path.parent}: cannot be written ({error.strerror}); choose another --run_dir"
                            ) from None
        self._file.seek(0)
        holder = self._file.read().strip()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{self._path.parent}: in use by {holder or 'another process'}; stop that run or choose "
                            "another --run_dir") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        return f"took over the lock of {holder}, which ended without giving it up" if holder else None

    def __exit__(self, *_) -> None:
        self._file.truncate(0)
        self._file.close()


class MetricsFile:
    """A CSV file that survives kills: rows past the step a run goes on from are dropped, then written again."""

    def __init__(self, path: Union[str, os.PathLike], columns: Sequence[str], step: int):
        """Args: path: the file. columns: its header; the first is the step. step: keep rows up to this step."""
        self._path = pathlib.Path(path)
        rows = []
        if self._path.exists():
            with open(self._path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.reader(file)
                        if len(row) == len(columns) and row[0].isdigit() and int(row[0]) <= step]
        with atomic_path(self._path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([list(columns), *rows])

    def append(self, row: Sequence) -> None:
        """Appends a row; numbers are written so that they read back exactly."""
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([repr(x) if isinstance(x, float) else x for x in row])
