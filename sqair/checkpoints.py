"""Run folders and their checkpoints: saved atomically, restored from the newest that is sound, loaded by every command.

A run folder of ours holds flags.json, versions.json, checkpoints/ (the newest) and best/ (best validation bound); one
of the original's holds flags.json and model.ckpt-<itr>.*; a model to share, model.safetensors and config.json.
`load_run` takes all three. From a run to the other two:

    python -m sqair.checkpoints export RUN OUT
    python -m sqair.checkpoints safetensors RUN OUT
"""

from data_gen.command_line import UserError, fingerprint, made_folder, run_folder_of, run_module, to_disc
from sqair.options import Export, read_checkpoints

if __name__ == "__main__":      # --help and wrong options are answered before the imports below, which take seconds
    run_module("sqair.checkpoints", read_checkpoints)

import contextlib
import glob
import json
import os
import pathlib
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np
import tensorflow as tf

from relational.registry import RELATIONS
from sqair import original, safetensors_folder
from sqair.checkpoint_values import DAMAGE, first_line, make_model, read_values
from sqair.config import Config, ModelConfig, has_fixed_slots, load_flags, recipe_of
from sqair.model import SQAIR
from sqair.optimizers import Optimizer
from sqair.run_folder import earlier_steps, facts, train_data_fingerprint

CHECKPOINTS, BEST = "checkpoints", "best"


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


def _prefixes(folder: pathlib.Path) -> list[str]:
    """Checkpoints in a folder, newest first, whether or not TensorFlow's index file knows them."""
    found = {}
    for name in os.listdir(folder) if folder.is_dir() else ():       # glob hides a lack of permission
        number = name[len("step-"):-len(".index")]
        if name == f"step-{number}.index" and number.isdecimal():
            found[int(number)] = str(folder / name)[:-len(".index")]
    return [found[number] for number in sorted(found, reverse=True)]


def _read_ours(prefix: str) -> dict[str, np.ndarray]:
    """`read_values` of a checkpoint of ours, whose step must be that of its name."""
    values, step = read_values(prefix), prefix.rsplit("-", 1)[-1]
    if str(values.get("state/step/.ATTRIBUTES/VARIABLE_VALUE")) != step:
        raise UserError(f"{prefix}: damaged checkpoint (it is not of step {step})")
    return values


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
            folder.mkdir(exist_ok=True)      # not its parents: a removed run folder does not come back
            to_disc(self._folder)
            with _appearing(folder) as stage:
                self._checkpoint.write(str(stage / prefix.name))
            self._remove(_prefixes(folder)[keep:])
        except (tf.errors.OpError, OSError) as error:
            raise UserError(f"{prefix}: the checkpoint could not be written ({first_line(error)}); any before it "
                            "is kept, free some space or check the folder and start the same command again") from None
        return str(prefix)

    def save(self) -> str:
        """Saves the state as the newest checkpoint and removes the oldest ones."""
        return self._save(CHECKPOINTS, self._keep)

    def save_best(self) -> str:
        """Saves the state as the best one so far."""
        return self._save(BEST, 1)

    @property
    def newest_step(self) -> int:
        """The step of the newest checkpoint, sound or not; -1 if there is none."""
        return max((int(prefix.rsplit("-", 1)[-1]) for name in (CHECKPOINTS, BEST)
                    for prefix in _prefixes(self._folder / name)), default=-1)

    def clear(self) -> None:
        """Removes all checkpoints."""
        for name in (CHECKPOINTS, BEST):
            self._remove(_prefixes(self._folder / name))

    def _remove(self, prefixes: Sequence[str]) -> None:
        for prefix in map(pathlib.Path, prefixes):
            # The index first: it is what makes a checkpoint visible.
            for path in sorted(prefix.parent.glob(f"{prefix.name}.*"), reverse=True):
                path.unlink(missing_ok=True)

    def restore(self) -> tuple[str | None, list[str]]:
        """Restores the newest sound checkpoint.

        Returns:
          Its prefix, None if the folder has none; and a line for every damaged one that was passed over.

        Raises:
          UserError: there are checkpoints, but none is sound.
        """
        notes: list[str] = []
        for prefix in _prefixes(self._folder / CHECKPOINTS):
            try:
                checkpoint, values = self._checkpoint, _read_ours(prefix)
                if "state/clipped/.ATTRIBUTES/VARIABLE_VALUE" not in values:        # made before it was counted
                    older = tf.Module()
                    for name in ("model", "optimizer", "step", "best_bound", "best_step"):
                        setattr(older, name, getattr(self._state, name))
                    checkpoint = tf.train.Checkpoint(state=older)
                checkpoint.read(prefix).assert_consumed()
                return prefix, notes
            except (UserError, *DAMAGE) as error:
                notes.append(f"{prefix}: damaged checkpoint passed over ({first_line(error)})")
        if notes:
            raise UserError(f"{self._folder / CHECKPOINTS}: no checkpoint in it can be read ({notes[0]}); restore the "
                            "files or start in a new folder")
        return None, notes


class Run(NamedTuple):
    """A trained model: the checkpoint it came from, its configuration, its weights and the step they are of.

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
        """The training steps of the weights, those of the runs that this one was started from among them."""
        return self.step + self.earlier_steps


# Flags that only give starting values, and the variables of a model that start there: trained weights have moved on.
STARTS: Mapping[str, Callable[[SQAIR], list[tf.Variable]]] = {
    "disc_step_bias": lambda model: [model.sequence.timestep.discover.core.steps_predictor.layers[-1].b],
    "prop_step_bias": lambda model: [model.sequence.timestep.propagate.core.steps_predictor.layers[-1].b],
    "transform_var_bias": lambda model: [part.core.where_head.scale_offset for part in (
        model.sequence.timestep.discover, model.sequence.timestep.propagate)],
    "output_scale": lambda model: [model.decoder.output_scale],
    # Without the recurrent prior this is no start, but the prior itself.
    "scale_prior": lambda model: [part.readout.b for part in [model.sequence.timestep.discover.where_prior] if part],
}


def _original_config(folder: pathlib.Path, prefix: str, values: Mapping[str, np.ndarray]) -> Config:
    """The original's flags, with what it asked its data for read off the checkpoint: image size and mean image."""
    config, unknown = load_flags(folder / "flags.json")
    if unknown:
        print(f"{folder / 'flags.json'}: flags that mean nothing here: {', '.join(unknown)}", file=sys.stderr)
    shapes = {name: list(value.shape) for name, value in values.items()}
    mean = shapes.get("decoder/air_decoder/Variable")
    pixels = (shapes.get("discovery/discovery_core/encoder/mlp/linear/w") or [0])[0]
    side = int(round(pixels ** 0.5))
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
      UserError: there is no such thing.
    """
    path = pathlib.Path(path)
    if path.name == safetensors_folder.WEIGHTS and path.is_file():
        path = path.parent
    if (path / safetensors_folder.WEIGHTS).is_file():
        return path, str(path / safetensors_folder.WEIGHTS), False
    if path.is_dir():
        folder = path
        os.listdir(folder)      # without the permission to, it would seem empty
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
            raise UserError(f"{folder}: no checkpoint {which}; choose best, newest, or one of the iterations "
                            f"{', '.join(choices)} (eval.likelihood: or all)")
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
        values = _read_ours(prefix)
        model = make_model(config.model, sum(value.size for value in values.values()), prefix)
        try:
            checkpoint = tf.train.Checkpoint(state=tf.train.Checkpoint(model=model))
            status = checkpoint.read(prefix)
            status.assert_existing_objects_matched().expect_partial()
        except DAMAGE as error:
            raise UserError(f"{prefix}: the checkpoint is damaged or does not fit {folder / 'flags.json'} "
                            f"({first_line(error)})") from None
        step, earlier = int(prefix.rsplit("-", 1)[-1]), earlier_steps(folder)
    trained = config
    changes = {key: value for key, value in changes.items() if value != getattr(config.model, key)}
    if has_fixed_slots(config.model.relation) and "n_steps_per_image" in changes:
        free = [kind for kind in RELATIONS if not has_fixed_slots(kind)]
        raise UserError(f"{path}: relation {config.model.relation} is bound to its {config.model.n_steps_per_image} "
                        f"slots by the shape of its weights and cannot run with {changes['n_steps_per_image']}; "
                        f"{' and '.join(free)} can")
    if changes:
        changed = attrs.evolve(config, model=attrs.evolve(config.model, **changes))
        other = SQAIR(changed.model)
        left = fill(other, model).left
        if left:
            asked = ", ".join(f"{key} {value}" for key, value in changes.items())
            raise UserError(f"{prefix} cannot be run with {asked}: it has no weights for {left[0]}"
                            + (f" (and {len(left) - 1} more)" if len(left) > 1 else ""))
        config, model = changed, other
    return Run(str(prefix), config, model, step, str(folder), trained, earlier)


def load_config(path: str | os.PathLike) -> tuple[Config, bool]:
    """The configuration of a run to go on with, read without a model; and whether the run is the original's.

    What the original's flags do not say is as it trains: on whole frames, without early stopping, and to the length of
    its data, ten frames in the release. Its data are named by the user, and saved is as often as here.

    Args: path: see `find_checkpoint`.
    """
    folder, prefix, is_original = find_checkpoint(path, "newest")
    if not is_original:
        is_shared = pathlib.Path(prefix).name == safetensors_folder.WEIGHTS
        return load_flags(folder / (safetensors_folder.CONFIG if is_shared else "flags.json"))[0], False
    config = _original_config(folder, prefix, read_values(prefix))
    length = max(config.train.seq_len, config.train.max_seq_len)
    return attrs.evolve(config, train=attrs.evolve(config.train, crop=0, patience=0, max_seq_len=length,
                                                   save_itr=Config().train.save_itr)), True


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
            variable.assign(value[..., :variable.shape[-1]])
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
        raise UserError(f"{prefix}: the optimiser in it is damaged or does not fit {folder / 'flags.json'} "
                        f"({first_line(error)})") from None
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
    return (f"optimiser slots ({optimizer.kind}: {', '.join(optimizer.slots) or 'none'}) of {filled} variables filled, "
            f"{len(optimizer.variables_to_train) - filled} start anew")


@contextlib.contextmanager
def _appearing(folder: pathlib.Path, names: Sequence[str] = ()) -> Iterator[pathlib.Path]:
    """Yields a hidden folder to write files in; once all are on the disc they move to `folder`.

    Args:
      folder: made if it is missing.
      names: of the files, in the order in which they appear; left out, all of them in the order of the alphabet, in
        which a checkpoint's index, which makes it visible, comes after its data.
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
                to_disc(folder)      # after each: no name is on the disc before those ahead of it
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _check_folder(out: pathlib.Path) -> None:
    """Raises: UserError: what is written to this folder would be in, or mixed with, a run that is being trained."""
    outer = run_folder_of(out)
    if outer:
        raise UserError(f"{out} lies in the run folder {outer}: choose another folder")
    if (out / CHECKPOINTS).exists() or (out / BEST).exists():
        raise UserError(f"{out} is a run folder of sqair.train: choose another folder")


def _flags_beside(folder: pathlib.Path, flags: dict) -> bool:
    """Whether the folder has a flags.json already. Raises: UserError: one that says something else."""
    path = folder / "flags.json"
    if not path.exists():
        return False
    config, _ = load_flags(path)
    old = original.original_flags(config)
    differ = [name for name in flags if old[name] != flags[name]]
    if differ:
        raise UserError(f"{path} belongs to another run ({differ[0]} {old[differ[0]]}, here {flags[differ[0]]}): "
                        "choose another folder")
    return True


def _check_original_can_build(source: str, model: ModelConfig) -> None:
    """Raises: UserError: the original program fails on a flag of the model."""
    for flag, value, fails in (("n_what", model.n_what, model.n_what == 1),
                               ("n_steps_per_image", model.n_steps_per_image, model.n_steps_per_image == 1),
                               ("image_shape", " x ".join(map(str, model.image_shape)), model.image_size[2] > 1)):
        if fails:
            raise UserError(f"{source}: {flag} {value}: the original program cannot build such a model, which needs at "
                            "least two latents of appearance (n_what) and two slots (n_steps_per_image), and grey "
                            "frames (image_shape); there is nothing to export to")


def export(run_: Run, out: str | os.PathLike, without_relation: bool = False, overwrite: bool = False,
           train_itr: int | None = None) -> list[str]:
    """Writes a run as the original program does: model.ckpt-<step>.*, checkpoint, flags.json.

    Args:
      run_: loaded without changes.
      out: the folder; checkpoints of other iterations of the same run may be there already.
      without_relation: leave a relational module and its inputs out, of which the original knows nothing.
      overwrite: replace a checkpoint of the same iteration.
      train_itr: steps at most that the original goes on to; None: those of the run.

    Returns:
      Lines that say what was written and what the original will do otherwise.

    Raises:
      UserError: the original has no place for the run, or the folder for the files.
    """
    if train_itr is not None:
        run_ = run_._replace(config=attrs.evolve(run_.config, train=attrs.evolve(run_.config.train,
                                                                                 train_itr=train_itr)))
    out, train = pathlib.Path(out), run_.config.train
    _check_original_can_build(run_.source, run_.config.model)
    unnamed = original.unnamed_variables(run_.model)
    if unnamed and not without_relation:
        raise UserError(f"{run_.source}: relation {run_.config.model.relation} has {len(unnamed)} variables that the "
                        f"original has no place for ({unnamed[0]}, ...); --without_relation leaves them out")
    name = f"model.ckpt-{run_.step}"
    _check_folder(out)
    if (out / safetensors_folder.WEIGHTS).exists():
        raise UserError(f"{out} is a model to share: choose another folder")
    if (out / f"{name}.index").exists() and not overwrite:
        raise UserError(f"{out / name} exists already; --overwrite replaces it")
    flags = original.original_flags(run_.config)
    has_flags = _flags_beside(out, flags)
    notes = []
    optimizer = load_optimizer(run_)
    if optimizer is None:
        optimizer = Optimizer(train.opt, run_.model.trainable_variables)
        notes.append(f"the run has no slots of its optimiser: {train.opt} starts anew")
    if run_.step >= train.train_itr:
        notes.append(f"warning: the run has come to its train_itr {train.train_itr}, at which the original stops at "
                     "once: it takes its flags from flags.json, not from the command line; --train_itr N writes more")
    if run_.config.model.k_particles == 1:
        notes.append("warning: with k_particles 1 the original's target is not a number: it cannot train on this")
    if unnamed:
        notes.append(f"left out: {len(unnamed)} variables of relation {run_.config.model.relation}")
    if not run_.config.model.mean_image:
        notes.append("the run has no mean image, the original always has: it is zero, which draws the same frames")
    if train.target != "vimco":
        notes.append(f"target {train.target} is unknown to the original, which goes on with its own VIMCO")
    if train.clip_norm:
        notes.append(f"clip_norm {train.clip_norm:g} is unknown to the original, which does not clip")
    files = [f"{name}.data-00000-of-00001", f"{name}.index", "checkpoint"]
    with _appearing(out, files if has_flags else ["flags.json"] + files) as stage:
        values = original.original_values(run_.model, optimizer, run_.step)
        original.write_original(str(stage / name), values)
        (stage / "flags.json").write_text(json.dumps(flags, indent=1, sort_keys=True) + "\n")
        steps = sorted({*original.original_checkpoints(str(out)), run_.step})
        state = [f'model_checkpoint_path: "model.ckpt-{steps[-1]}"']
        state += [f'all_model_checkpoint_paths: "model.ckpt-{step}"' for step in steps]
        (stage / "checkpoint").write_text("\n".join(state) + "\n")
    return [f"{out / name}: {len(values)} values of {run_.source} (step {run_.step})"] + [f"  {x}" for x in notes]


def save_safetensors(run_: Run, out: str | os.PathLike, overwrite: bool = False,
                     figures: Mapping[str, Any] | None = None) -> list[str]:
    """Writes a run as a folder to share: model.safetensors, config.json, and a model card, card.json and README.md.

    Args:
      run_: any.
      out: the folder.
      overwrite: replace a model that is there.
      figures: what else the card is to tell, JSON values; see `eval.models`.

    Returns:
      A line that says what was written.

    Raises:
      UserError: the folder holds a model already.
    """
    out = pathlib.Path(out)
    _check_folder(out)
    if (out / "flags.json").exists():
        raise UserError(f"{out} is a run folder: choose another folder")
    for name, kind in safetensors_folder.KINDS.items():
        if (out / name).exists() and not kind.test(out / name):
            raise UserError(f"{out / name}: is there already and is not {kind.name}: choose another folder")
    if (out / safetensors_folder.WEIGHTS).exists() and not overwrite:
        raise UserError(f"{out / safetensors_folder.WEIGHTS} exists already; --overwrite replaces it")
    data = pathlib.PurePath(run_.trained.train.train_data).name     # the folders exist on the maker's machine only
    config = attrs.evolve(run_.config, train=attrs.evolve(run_.config.train, train_data=data))
    told = {"run": pathlib.Path(run_.folder).resolve().name, "checkpoint": pathlib.Path(run_.source).name,
            "step": run_.step, "all_steps": run_.all_steps, "recipe": recipe_of(config), "seed": config.train.seed,
            "data": data, "data_sha256": train_data_fingerprint(run_.folder) or None,
            **facts(run_.folder, run_.step), **(figures or {})}
    with _appearing(out, safetensors_folder.FILES) as stage:
        safetensors_folder.save(stage, config, run_.model, told)
    return [f"{out}: {len(run_.model.trainable_variables)} tensors of {run_.source} (step {run_.step})"]


def main() -> int:
    command = read_checkpoints()
    if isinstance(command, Export):
        lines = export(load_run(command.run, command.which), command.out, command.without_relation, command.overwrite,
                       command.train_itr)
    else:
        lines = save_safetensors(load_run(command.run, command.which), command.out, command.overwrite)
    for line in lines:
        print(line)
    return 0
