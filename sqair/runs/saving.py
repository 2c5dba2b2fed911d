"""The checkpoints of a run that is being trained: saved atomically, restored from the newest intact one."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from data_gen.errors import UserError
from data_gen.files import to_disc
from sqair.model import SQAIR
from sqair.runs.folder import BEST, CHECKPOINTS, appearing, prefixes
from sqair.runs.values import DAMAGE, first_line, read_ours
from sqair.training.optimizers import Optimizer


class TrainingState(tf.Module):
    """All of a run's state, saved and restored together.

    The number of steps also fixes the data position, the noise, the length of the curriculum and the learning rate.
    """

    def __init__(self, model: SQAIR, optimizer: Optimizer):
        super().__init__(name="training_state")
        self.model, self.optimizer = model, optimizer
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.best_bound = tf.Variable(-np.inf, dtype=tf.float64, trainable=False, name="best_bound")
        self.best_step = tf.Variable(0, dtype=tf.int64, trainable=False, name="best_step")
        # Of the updates since the last report: how many had their gradient clipped, and how many there were.
        self.clipped = tf.Variable([0, 0], dtype=tf.int64, trainable=False, name="clipped")


class RunCheckpoints:
    """The checkpoints of a run that is being trained."""

    def __init__(self, folder: str | os.PathLike, state: TrainingState, keep: int):
        """Args: folder: the run folder. state: what to save. keep: how many of the newest to keep."""
        self._folder = pathlib.Path(folder)
        self._checkpoint = tf.train.Checkpoint(state=state)
        self._state = state
        self._keep = keep

    def _save(self, name: str, keep: int) -> str:
        folder = self._folder / name
        prefix = folder / f"step-{int(self._state.step)}"
        try:
            folder.mkdir(exist_ok=True)  # not its parents: a removed run folder is not made again
            to_disc(self._folder)
            with appearing(folder) as stage:
                self._checkpoint.write(str(stage / prefix.name))
            self._remove(prefixes(folder)[keep:])
        except (tf.errors.OpError, OSError) as error:
            raise UserError(
                f"{prefix}: the checkpoint could not be written ({first_line(error)}); any before it "
                "is kept, free some space or check the folder and start the same command again"
            ) from None
        return str(prefix)

    def save(self) -> str:
        """Saves the state as the newest checkpoint and removes the oldest ones."""
        return self._save(CHECKPOINTS, self._keep)

    def save_best(self) -> str:
        """Saves the state as the best one so far."""
        return self._save(BEST, 1)

    @property
    def newest_step(self) -> int:
        """The step of the newest checkpoint, intact or not; -1 if there is none."""
        return max(
            (
                int(prefix.rsplit("-", 1)[-1])
                for name in (CHECKPOINTS, BEST)
                for prefix in prefixes(self._folder / name)
            ),
            default=-1,
        )

    def clear(self) -> None:
        """Removes all checkpoints."""
        for name in (CHECKPOINTS, BEST):
            self._remove(prefixes(self._folder / name))

    def _remove(self, prefixes: Sequence[str]) -> None:
        for prefix in map(pathlib.Path, prefixes):
            # The index first: it is what makes a checkpoint visible.
            for path in sorted(prefix.parent.glob(f"{prefix.name}.*"), reverse=True):
                path.unlink(missing_ok=True)

    def restore(self) -> tuple[str | None, list[str]]:
        """Restores the newest intact checkpoint.

        Returns:
          Its prefix, None if the folder has none; and a line for every damaged one that was skipped.

        Raises:
          UserError: there are checkpoints, but all are damaged.
        """
        notes: list[str] = []
        for prefix in prefixes(self._folder / CHECKPOINTS):
            try:
                checkpoint, values = self._checkpoint, read_ours(prefix)
                if "state/clipped/.ATTRIBUTES/VARIABLE_VALUE" not in values:  # made before it was counted
                    older = tf.Module()
                    for name in ("model", "optimizer", "step", "best_bound", "best_step"):
                        setattr(older, name, getattr(self._state, name))
                    checkpoint = tf.train.Checkpoint(state=older)
                checkpoint.read(prefix).assert_consumed()
                return prefix, notes
            except (UserError, *DAMAGE) as error:
                notes.append(f"{prefix}: damaged checkpoint skipped ({first_line(error)})")
        if notes:
            raise UserError(
                f"{self._folder / CHECKPOINTS}: no checkpoint in it can be read ({notes[0]}); restore the "
                "files or start in a new folder"
            )
        return None, notes
