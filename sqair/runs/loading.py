"""Loads trained models: from a run folder of ours or of the original program, or from a model to share.

A run folder of ours holds flags.json, versions.json, checkpoints/ (the newest) and best/ (best validation bound); one
of the original's holds flags.json and model.ckpt-<itr>.*; a model to share, model.safetensors and config.json.
`load_run` takes all three.
"""

import glob
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import attrs
import numpy as np
import tensorflow as tf

from data_gen.errors import UserError
from data_gen.files import fingerprint
from relational.registry import RELATIONS
from sqair.config import Config, has_fixed_slots, load_flags
from sqair.model import SQAIR
from sqair.runs import original
from sqair.runs import safetensors as safetensors_folder
from sqair.runs.folder import BEST, CHECKPOINTS, earlier_steps, prefixes
from sqair.runs.values import DAMAGE, first_line, make_model, read_ours, read_values
from sqair.training.optimizers import Optimizer


class Run(NamedTuple):
    """A trained model: its checkpoint, configuration, weights and their training step.

    folder: of the run. trained: the configuration it was trained with, where `config` has been changed.
    earlier_steps: of the weights that the run began with, which `step` does not count.
    """

    source: str
    config: Config
    model: SQAIR
    step: int
    folder: str
    trained: Config
    earlier_steps: int = 0

    @property
    def all_steps(self) -> int:
        """The training steps of the weights, including those of the runs that this one was started from."""
        return self.step + self.earlier_steps


# Flags that only give starting values, and the variables of a model that start there; trained weights differ.
STARTS: Mapping[str, Callable[[SQAIR], list[tf.Variable]]] = {
    "disc_step_bias": lambda model: [model.sequence.timestep.discover.core.steps_predictor.layers[-1].b],
    "prop_step_bias": lambda model: [model.sequence.timestep.propagate.core.steps_predictor.layers[-1].b],
    "transform_var_bias": lambda model: [
        part.core.where_head.scale_offset
        for part in (model.sequence.timestep.discover, model.sequence.timestep.propagate)
    ],
    "output_scale": lambda model: [model.decoder.output_scale],
    # Without the recurrent prior this is not a starting value, but the prior itself.
    "scale_prior": lambda model: [part.readout.b for part in [model.sequence.timestep.discover.where_prior] if part],
}


def _original_config(folder: pathlib.Path, prefix: str, values: Mapping[str, np.ndarray]) -> Config:
    """The original's flags, with image size and mean image, which it takes from its data, read from the checkpoint."""
    config, unknown = load_flags(folder / "flags.json")
    if unknown:
        print(f"{folder / 'flags.json'}: unknown flags, ignored: {', '.join(unknown)}", file=sys.stderr)
    shapes = {name: list(value.shape) for name, value in values.items()}
    mean = shapes.get("decoder/air_decoder/Variable")
    pixels = (shapes.get("discovery/discovery_core/encoder/mlp/linear/w") or [0])[0]
    side = int(round(pixels**0.5))
    if mean is not None and len(mean) == 3:
        shape = tuple(mean[:2] if mean[2] == 1 else mean)
    elif pixels and side * side == pixels:
        shape = (side, side)
    else:
        raise UserError(f"{prefix}: the image size cannot be read off the checkpoint ({pixels} pixels)")
    try:
        return attrs.evolve(config, model=attrs.evolve(config.model, image_shape=shape, mean_image=mean is not None))
    except ValueError as error:
        raise UserError(f"{prefix}: {error}") from None


def find_checkpoint(path: str | os.PathLike, which: str = "best") -> tuple[pathlib.Path, str, bool]:
    """Finds a checkpoint.

    Args:
      path: a run folder, ours or the original's, or the prefix of one checkpoint in it; or a safetensors folder.
      which: best (ours; the newest of the original's, or where no best was saved yet), newest, or an iteration.

    Returns:
      The run folder, the checkpoint's prefix (of a safetensors folder: the file), and whether it is the original's.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    path = pathlib.Path(path)
    if path.name == safetensors_folder.WEIGHTS and path.is_file():
        path = path.parent
    if (path / safetensors_folder.WEIGHTS).is_file():
        return path, str(path / safetensors_folder.WEIGHTS), False
    if path.is_dir():
        folder = path
        os.listdir(folder)  # raises without permission; it would otherwise seem empty
        choices = {str(k): v for k, v in original.original_checkpoints(str(folder)).items()}
        if choices:
            if which in ("best", "newest"):
                return folder, list(choices.values())[-1], True
        else:
            newest, best = prefixes(folder / CHECKPOINTS), prefixes(folder / BEST)
            if which in ("best", "newest") and (newest or best):
                return folder, ((best + newest) if which == "best" else (newest + best))[0], False
            choices = {p.rsplit("-", 1)[-1]: p for p in newest + best}
        if not choices:
            raise UserError(f"{folder}: no checkpoint in it; expected a run folder of sqair.train or of the original")
        if which not in choices:
            raise UserError(
                f"{folder}: no checkpoint {which}; choose best, newest, or one of the iterations "
                f"{', '.join(choices)} (eval.likelihood: or all)"
            )
        return folder, choices[which], bool(original.original_checkpoints(str(folder)))
    if pathlib.Path(f"{path}.index").exists():
        is_original = path.name.startswith("model.ckpt")
        return (path.parent if is_original else path.parent.parent), str(path), is_original
    raise UserError(f"{path}: no such run folder or checkpoint")


def checkpoint_fingerprint(prefix: str) -> str:
    """The `fingerprint` of a checkpoint's files. Args: prefix: from `find_checkpoint`."""
    path = pathlib.Path(prefix)
    return fingerprint(*([path] if path.is_file() else sorted(path.parent.glob(glob.escape(path.name) + ".*"))))


def load_run(path: str | os.PathLike, which: str = "best", **changes) -> Run:
    """Loads a trained model: of a run of ours or of the original's, or from a safetensors folder.

    Call `sqair.devices.prepare_tensorflow` first, as commands do: without it GPUs round products to TF32.

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
    earlier = 0
    if is_original:
        values = read_values(prefix)
        config = _original_config(folder, prefix, values)
        model = make_model(config.model, sum(value.size for value in values.values()), prefix)
        original.load_original(model, prefix, values)
        step = int(values.get("global_step", prefix.rsplit("-", 1)[-1]))
    elif pathlib.Path(prefix).name == safetensors_folder.WEIGHTS:
        config, model, step, earlier = safetensors_folder.load(folder)
        if which not in ("best", "newest", str(step)):
            raise UserError(f"{folder}: no checkpoint of iteration {which}; it holds that of {step}")
    else:
        config, _ = load_flags(folder / "flags.json")
        values = read_ours(prefix)
        model = make_model(config.model, sum(value.size for value in values.values()), prefix)
        try:
            checkpoint = tf.train.Checkpoint(state=tf.train.Checkpoint(model=model))
            status = checkpoint.read(prefix)
            status.assert_existing_objects_matched().expect_partial()
        except DAMAGE as error:
            raise UserError(
                f"{prefix}: the checkpoint is damaged or does not fit {folder / 'flags.json'} ({first_line(error)})"
            ) from None
        step, earlier = int(prefix.rsplit("-", 1)[-1]), earlier_steps(folder)
    trained = config
    changes = {key: value for key, value in changes.items() if value != getattr(config.model, key)}
    if has_fixed_slots(config.model.relation) and "n_steps_per_image" in changes:
        free = [kind for kind in RELATIONS if not has_fixed_slots(kind)]
        raise UserError(
            f"{path}: relation {config.model.relation} is bound to its {config.model.n_steps_per_image} "
            f"slots by the shape of its weights and cannot run with {changes['n_steps_per_image']}; "
            f"{' and '.join(free)} can"
        )
    if changes:
        changed = attrs.evolve(config, model=attrs.evolve(config.model, **changes))
        other = SQAIR(changed.model)
        left = fill(other, model).left
        if left:
            asked = ", ".join(f"{key} {value}" for key, value in changes.items())
            raise UserError(
                f"{prefix} cannot be run with {asked}: it has no weights for {left[0]}"
                + (f" (and {len(left) - 1} more)" if len(left) > 1 else "")
            )
        config, model = changed, other
    return Run(str(prefix), config, model, step, str(folder), trained, earlier)


def load_config(path: str | os.PathLike) -> tuple[Config, bool]:
    """The configuration of a run to continue, read without a model; and whether the run is the original's.

    What the original's flags do not have is set to what it does: whole frames, no early stopping, sequences as long as
    its data, ten frames in the release. The user names the data, and checkpoints are saved as often as in our runs.

    Args: path: see `find_checkpoint`.
    """
    folder, prefix, is_original = find_checkpoint(path, "newest")
    if not is_original:
        is_shared = pathlib.Path(prefix).name == safetensors_folder.WEIGHTS
        return load_flags(folder / (safetensors_folder.CONFIG if is_shared else "flags.json"))[0], False
    config = _original_config(folder, prefix, read_values(prefix))
    length = max(config.train.seq_len, config.train.max_seq_len)
    return attrs.evolve(
        config,
        train=attrs.evolve(config.train, crop=0, patience=0, max_seq_len=length, save_itr=Config().train.save_itr),
    ), True


class Filled(NamedTuple):
    """What `fill` did, as names of variables: copied, started at zero beside copied ones, left as they were."""

    filled: list[str]
    widened: list[str]
    left: list[str]


def fill(model: SQAIR, source: SQAIR, leave: Sequence[tf.Variable] = ()) -> Filled:
    """Copies the variables that two models share by name and shape.

    Inputs that a relational module adds to layers of a model without one start at zero, so that the model computes
    what its source computes. The prior of the number of discovered objects is kept for the counts both know; counts
    that the source does not know get the probability of its highest one.

    Args:
      model: to be filled.
      source: a model of a similar configuration.
      leave: variables of `model` that stay as they are.

    Returns:
      `Filled`.
    """
    names = {v.name for v in leave}
    values = {v.name: v for v in source.trainable_variables}
    filled, widened, left = [], [], []
    for variable in model.trainable_variables:
        name = variable.name
        if name in names:
            left.append(name)
        elif name in values and values[name].shape == variable.shape:
            variable.assign(values[name])
            filled.append(name)
        elif name in values and "step_prior" in name:
            value = values[name].numpy()
            missing = variable.shape[-1] - value.shape[-1]
            if missing > 0:
                value = np.concatenate([value] + [value[..., -1:]] * missing, -1)
            variable.assign(value[..., : variable.shape[-1]])
            widened.append(name)
        elif name not in values and name.split(":")[0].endswith("w_gamma"):
            variable.assign(tf.zeros_like(variable))
            widened.append(name)
        else:
            left.append(name)
    return Filled(filled, widened, left)


def load_optimizer(run_: Run) -> Optimizer | None:
    """The optimiser of a run with the slots of its checkpoint; None if the checkpoint has none.

    Args: run_: loaded without changes.
    """
    folder, prefix, is_original = find_checkpoint(run_.source)
    optimizer = Optimizer(run_.config.train.opt, run_.model.trainable_variables)
    if is_original:
        values = read_values(prefix)
        return optimizer if original.load_original_slots(optimizer, run_.model, values) else None
    if folder / safetensors_folder.WEIGHTS == pathlib.Path(prefix):
        return None
    checkpoint = tf.train.Checkpoint(state=tf.train.Checkpoint(optimizer=optimizer))
    try:
        checkpoint.read(prefix).assert_existing_objects_matched().expect_partial()
    except DAMAGE as error:
        raise UserError(
            f"{prefix}: the optimiser in it is damaged or does not fit {folder / 'flags.json'} ({first_line(error)})"
        ) from None
    return optimizer


def fill_slots(optimizer: Optimizer, run_: Run) -> str:
    """Copies a run's optimiser slots for the variables that two models share by name and shape.

    Args:
      optimizer: to be filled.
      run_: see `load_optimizer`.

    Returns:
      A line that says what was done.
    """
    source = load_optimizer(run_)
    if source is None:
        return "the optimiser starts anew: the checkpoint has no slots of it"
    if source.kind != optimizer.kind:
        return f"the optimiser starts anew: the run's was {source.kind}, this one is {optimizer.kind}"
    place = {v.name: i for i, v in enumerate(source.variables_to_train)}
    filled = 0
    for i, variable in enumerate(optimizer.variables_to_train):
        j = place.get(variable.name)
        if j is not None and source.variables_to_train[j].shape == variable.shape:
            for slot, variables in optimizer.slots.items():
                variables[i].assign(source.slots[slot][j])
            filled += 1
    optimizer.updates.assign(source.updates)
    return (
        f"optimiser slots ({optimizer.kind}: {', '.join(optimizer.slots) or 'none'}) of {filled} variables filled, "
        f"{len(optimizer.variables_to_train) - filled} start anew"
    )
