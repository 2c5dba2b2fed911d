"""Run folders and their checkpoints: saved whole, restored from the newest that is sound, loaded by anybody.

A run folder of ours holds flags.json, versions.json, checkpoints/ (the newest) and best/ (best validation bound); one
of the original's holds flags.json and model.ckpt-<itr>.*. `load_run` takes both.
"""

import os
import pathlib
from typing import List, NamedTuple, Optional, Tuple, Union

import attrs
import numpy as np
import tensorflow as tf

from data_gen.command_line import UserError
from sqair import original
from sqair.config import Config, load_flags
from sqair.model import SQAIR
from sqair.optimizers import Optimizer

CHECKPOINTS, BEST = "checkpoints", "best"
_DAMAGE = (tf.errors.OpError, ValueError, AssertionError, RuntimeError, UnicodeDecodeError, LookupError)


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


def _prefixes(folder: pathlib.Path) -> List[str]:
    """Checkpoints in a folder, newest first, whether or not TensorFlow's index file knows them."""
    found = {}
    for path in folder.glob("step-*.index"):
        number = path.name[len("step-"):-len(".index")]
        if number.isdigit():
            found[int(number)] = str(path)[:-len(".index")]
    return [found[number] for number in sorted(found, reverse=True)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _check(prefix: str) -> None:
    """Reads every value once, so that damage anywhere in the files shows before a variable is touched."""
    reader = tf.train.load_checkpoint(prefix)
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


class RunCheckpoints:
    """The checkpoints of a run that is being trained."""

    def __init__(self, folder: Union[str, os.PathLike], state: TrainingState, keep: int):
        """Args: folder: the run folder. state: what to save. keep: how many of the newest to keep."""
        self._folder = pathlib.Path(folder)
        self._checkpoint = tf.train.Checkpoint(state=state)
        self._state = state
        self._keep = keep

    def _save(self, name: str, keep: int) -> str:
        folder = self._folder / name
        prefix = folder / f"step-{int(self._state.step)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # TensorFlow writes the data first and the index, which makes a checkpoint visible, last.
            written = self._checkpoint.write(str(prefix))
        except (tf.errors.OpError, OSError) as error:
            for path in folder.glob(f"{prefix.name}.*"):
                path.unlink(missing_ok=True)
            raise UserError(f"{prefix}: the checkpoint could not be written ({_first_line(error)}); the one before "
                            "is kept, free some space or check the folder and start the same command again") from None
        for path in folder.glob(f"{prefix.name}.*"):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        for old in _prefixes(folder)[keep:]:
            for path in folder.glob(f"{pathlib.Path(old).name}.*"):
                path.unlink(missing_ok=True)
        return written

    def save(self) -> str:
        """Saves the state as the newest checkpoint and removes the oldest ones."""
        return self._save(CHECKPOINTS, self._keep)

    def save_best(self) -> str:
        """Saves the state as the best one so far."""
        return self._save(BEST, 1)

    def restore(self) -> Tuple[Optional[str], List[str]]:
        """Restores the newest sound checkpoint.

        Returns:
          Its prefix, None if the folder has none; and a line for every damaged one that was passed over.

        Raises:
          UserError: there are checkpoints, but none is sound.
        """
        notes = []
        for prefix in _prefixes(self._folder / CHECKPOINTS):
            try:
                _check(prefix)
                self._checkpoint.read(prefix).assert_consumed()
                return prefix, notes
            except _DAMAGE as error:
                notes.append(f"{prefix}: damaged checkpoint passed over ({_first_line(error)})")
        if notes:
            raise UserError(f"{self._folder / CHECKPOINTS}: no checkpoint in it can be read ({notes[0]}); restore the "
                            "files or start in a new folder")
        return None, notes


class Run(NamedTuple):
    """A trained model: where it came from, its configuration, its weights and the step they are of."""

    source: str
    config: Config
    model: SQAIR
    step: int


def _original_config(folder: pathlib.Path, prefix: str) -> Config:
    """The original's flags, with what it asked its data for read off the checkpoint: image size and mean image."""
    config, _ = load_flags(folder / "flags.json")
    shapes = {name: list(value.shape) for name, value in original.read_original(prefix).items()}
    mean = shapes.get("decoder/air_decoder/Variable")
    pixels = shapes.get("discovery/discovery_core/encoder/mlp/linear/w", [0])[0]
    side = int(round(pixels ** 0.5))
    if mean is not None and len(mean) == 3:
        shape = tuple(mean[:2] if mean[2] == 1 else mean)
    elif pixels and side * side == pixels:
        shape = (side, side)
    else:
        raise UserError(f"{prefix}: the image size cannot be read off the checkpoint ({pixels} pixels)")
    return attrs.evolve(config, model=attrs.evolve(config.model, image_shape=shape, mean_image=mean is not None))


def find_checkpoint(path: Union[str, os.PathLike], which: str = "best") -> Tuple[pathlib.Path, str, bool]:
    """Finds a checkpoint.

    Args:
      path: a run folder, ours or the original's, or the prefix of one checkpoint in it.
      which: best (ours; the newest of the original's, or where no best was saved yet), newest, or an iteration.

    Returns:
      The run folder, the checkpoint's prefix, and whether it is the original's.

    Raises:
      UserError: there is no such thing.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        folder = path
        choices = {str(k): v for k, v in original.original_checkpoints(str(folder)).items()}
        if choices:
            if which in ("best", "newest"):
                return folder, list(choices.values())[-1], True
        else:
            newest, best = _prefixes(folder / CHECKPOINTS), _prefixes(folder / BEST)
            if which in ("best", "newest") and (newest or best):
                return folder, ((best + newest) if which == "best" else (newest + best))[0], False
            choices = {p.rsplit("-", 1)[-1]: p for p in newest + best}
        if not choices:
            raise UserError(f"{folder}: no checkpoint in it; expected a run folder of sqair.train or of the original")
        if which not in choices:
            raise UserError(f"{folder}: no checkpoint of iteration {which}; there are {', '.join(choices)}")
        return folder, choices[which], bool(original.original_checkpoints(str(folder)))
    if pathlib.Path(f"{path}.index").exists():
        is_original = path.name.startswith("model.ckpt")
        return (path.parent if is_original else path.parent.parent), str(path), is_original
    raise UserError(f"{path}: no such run folder or checkpoint")


def load_run(path: Union[str, os.PathLike], which: str = "best", **changes) -> Run:
    """Loads a trained model, ours or the original's.

    Args:
      path, which: see `find_checkpoint`.
      **changes: fields of `ModelConfig` to change, such as k_particles or n_steps_per_image; variables whose shape
        depends on them keep what fits (see `fill`).

    Returns:
      A `Run`.

    Raises:
      UserError: it is not there, is damaged, or does not fit its flags.
    """
    folder, prefix, is_original = find_checkpoint(path, which)
    if is_original:
        config = _original_config(folder, prefix)
        model = SQAIR(config.model)
        values = original.load_original(model, prefix)
        step = int(values.get("global_step", int(prefix.rsplit("-", 1)[-1])))
    else:
        config, _ = load_flags(folder / "flags.json")
        model = SQAIR(config.model)
        try:
            _check(prefix)
            checkpoint = tf.train.Checkpoint(state=tf.train.Checkpoint(model=model))
            status = checkpoint.read(prefix)
            status.assert_existing_objects_matched().expect_partial()
        except _DAMAGE as error:
            raise UserError(f"{prefix}: the checkpoint is damaged or does not fit {folder / 'flags.json'} "
                            f"({_first_line(error)})") from None
        step = int(prefix.rsplit("-", 1)[-1])
    if changes:
        changed = attrs.evolve(config, model=attrs.evolve(config.model, **changes))
        other = SQAIR(changed.model)
        left = fill(other, model).left
        if left:
            asked = ", ".join(f"{key} {value}" for key, value in changes.items())
            raise UserError(f"{prefix} cannot be run with {asked}: it has no weights for {left[0]}"
                            + (f" (and {len(left) - 1} more)" if len(left) > 1 else ""))
        config, model = changed, other
    return Run(str(prefix), config, model, step)


class Filled(NamedTuple):
    """What `fill` did, as names of variables: copied, started at zero beside copied ones, left as they were."""

    filled: List[str]
    widened: List[str]
    left: List[str]


def fill(model: SQAIR, source: SQAIR) -> Filled:
    """Copies the variables that two models share by name and shape.

    Inputs that a relational module adds to layers of a model without one start at zero, so that the model computes
    what its source computes. The prior of the number of discovered objects is kept for the counts both know; counts
    that the source does not know get the probability of its highest one.

    Args:
      model: to be filled.
      source: a model of a similar configuration.

    Returns:
      `Filled`.
    """
    values = {v.name: v for v in source.trainable_variables}
    filled, widened, left = [], [], []
    for variable in model.trainable_variables:
        name = variable.name
        if name in values and values[name].shape == variable.shape:
            variable.assign(values[name])
            filled.append(name)
        elif name in values and "step_prior" in name:
            value = values[name].numpy()
            missing = variable.shape[-1] - value.shape[-1]
            if missing > 0:
                value = np.concatenate([value] + [value[..., -1:]] * missing, -1)
            variable.assign(value[..., :variable.shape[-1]])
            widened.append(name)
        elif name not in values and name.split(":")[0].endswith("w_gamma"):
            variable.assign(tf.zeros_like(variable))
            widened.append(name)
        else:
            left.append(name)
    return Filled(filled, widened, left)
