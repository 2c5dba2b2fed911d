"""Writes runs in other programs' formats.

    python -m sqair.export original RUN OUT
    python -m sqair.export safetensors RUN OUT

The first is a TensorFlow 1 checkpoint for the original program, the second weights with a model card to share.
"""

from data_gen.console import run_module
from sqair.options import Original, read_export

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("sqair.export", read_export)

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import attrs

from data_gen.errors import UserError
from data_gen.files import run_folder_of
from sqair.config import ModelConfig, load_flags, recipe_of
from sqair.runs import original
from sqair.runs import safetensors as safetensors_folder
from sqair.runs.folder import BEST, CHECKPOINTS, appearing, facts, train_data_fingerprint
from sqair.runs.loading import Run, load_optimizer, load_run
from sqair.training.optimizers import Optimizer


def _check_folder(out: pathlib.Path) -> None:
    """Raises: UserError: what is written to this folder would be in, or mixed with, a run that is being trained."""
    outer = run_folder_of(out)
    if outer:
        raise UserError(f"{out} lies in the run folder {outer}: choose another folder")
    if (out / CHECKPOINTS).exists() or (out / BEST).exists():
        raise UserError(f"{out} is a run folder of sqair.train: choose another folder")


def _flags_beside(folder: pathlib.Path, flags: dict) -> bool:
    """Whether the folder has a flags.json already. Raises: UserError: it has other flags."""
    path = folder / "flags.json"
    if not path.exists():
        return False
    config, _ = load_flags(path)
    old = original.original_flags(config)
    differ = [name for name in flags if old[name] != flags[name]]
    if differ:
        raise UserError(
            f"{path} belongs to another run ({differ[0]} {old[differ[0]]}, here {flags[differ[0]]}): "
            "choose another folder"
        )
    return True


def _check_original_can_build(source: str, model: ModelConfig) -> None:
    """Raises: UserError: the original program fails on a flag of the model."""
    for flag, value, fails in (
        ("n_what", model.n_what, model.n_what == 1),
        ("n_steps_per_image", model.n_steps_per_image, model.n_steps_per_image == 1),
        ("image_shape", " x ".join(map(str, model.image_shape)), model.image_size[2] > 1),
    ):
        if fails:
            raise UserError(
                f"{source}: {flag} {value}: the original program cannot build such a model, which needs at "
                "least two latents of appearance (n_what) and two slots (n_steps_per_image), and grey "
                "frames (image_shape); there is nothing to export to"
            )


def export(
    run_: Run,
    out: str | os.PathLike,
    without_relation: bool = False,
    overwrite: bool = False,
    train_itr: int | None = None,
) -> list[str]:
    """Writes a run as the original program does: model.ckpt-<step>.*, checkpoint, flags.json.

    Args:
      run_: loaded without changes.
      out: the folder; checkpoints of other iterations of the same run may be there already.
      without_relation: leave out a relational module and its inputs, which the original does not have.
      overwrite: replace a checkpoint of the same iteration.
      train_itr: the original's number of training steps; None: the run's.

    Returns:
      Lines that say what was written and what the original will do differently.

    Raises:
      UserError: the original cannot represent the run, or the folder cannot take the files.
    """
    if train_itr is not None:
        run_ = run_._replace(
            config=attrs.evolve(run_.config, train=attrs.evolve(run_.config.train, train_itr=train_itr))
        )
    out, train = pathlib.Path(out), run_.config.train
    _check_original_can_build(run_.source, run_.config.model)
    unnamed = original.unnamed_variables(run_.model)
    if unnamed and not without_relation:
        raise UserError(
            f"{run_.source}: relation {run_.config.model.relation} has {len(unnamed)} variables that the "
            f"original has no place for ({unnamed[0]}, ...); --without_relation leaves them out"
        )
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
        notes.append(
            f"warning: the run has reached its train_itr {train.train_itr}, at which the original stops at "
            "once: it takes its flags from flags.json, not from the command line; --train_itr N writes more"
        )
    if run_.config.model.k_particles == 1:
        notes.append("warning: with k_particles 1 the original's target is not a number: it cannot train on this")
    if unnamed:
        notes.append(f"left out: {len(unnamed)} variables of relation {run_.config.model.relation}")
    if not run_.config.model.mean_image:
        notes.append("the run has no mean image, the original always has: it is zero, which gives the same frames")
    if train.target != "vimco":
        notes.append(f"target {train.target} is unknown to the original, which continues with its own VIMCO")
    if train.clip_norm:
        notes.append(f"clip_norm {train.clip_norm:g} is unknown to the original, which does not clip")
    files = [f"{name}.data-00000-of-00001", f"{name}.index", "checkpoint"]
    with appearing(out, files if has_flags else ["flags.json"] + files) as stage:
        values = original.original_values(run_.model, optimizer, run_.step)
        original.write_original(str(stage / name), values)
        (stage / "flags.json").write_text(json.dumps(flags, indent=1, sort_keys=True) + "\n")
        steps = sorted({*original.original_checkpoints(str(out)), run_.step})
        state = [f'model_checkpoint_path: "model.ckpt-{steps[-1]}"']
        state += [f'all_model_checkpoint_paths: "model.ckpt-{step}"' for step in steps]
        (stage / "checkpoint").write_text("\n".join(state) + "\n")
    return [f"{out / name}: {len(values)} values of {run_.source} (step {run_.step})"] + [f"  {x}" for x in notes]


def save_safetensors(
    run_: Run, out: str | os.PathLike, overwrite: bool = False, figures: Mapping[str, Any] | None = None
) -> list[str]:
    """Writes a run as a folder to share: model.safetensors, config.json, and a model card, card.json and README.md.

    Args:
      run_: any.
      out: the folder.
      overwrite: replace an existing model.
      figures: further contents of the card, JSON values; see `eval.models`.

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
            raise UserError(f"{out / name}: already exists and is not {kind.name}: choose another folder")
    if (out / safetensors_folder.WEIGHTS).exists() and not overwrite:
        raise UserError(f"{out / safetensors_folder.WEIGHTS} exists already; --overwrite replaces it")
    data = pathlib.PurePath(run_.trained.train.train_data).name  # the folders exist on the maker's machine only
    config = attrs.evolve(run_.config, train=attrs.evolve(run_.config.train, train_data=data))
    told = {
        "run": pathlib.Path(run_.folder).resolve().name,
        "checkpoint": pathlib.Path(run_.source).name,
        "step": run_.step,
        "all_steps": run_.all_steps,
        "recipe": recipe_of(config),
        "seed": config.train.seed,
        "data": data,
        "data_sha256": train_data_fingerprint(run_.folder) or None,
        **facts(run_.folder, run_.step),
        **(figures or {}),
    }
    with appearing(out, safetensors_folder.FILES) as stage:
        safetensors_folder.save(stage, config, run_.model, told)
    return [f"{out}: {len(run_.model.trainable_variables)} tensors of {run_.source} (step {run_.step})"]


def main() -> int:
    command = read_export()
    if isinstance(command, Original):
        lines = export(
            load_run(command.run, command.which),
            command.out,
            command.without_relation,
            command.overwrite,
            command.train_itr,
        )
    else:
        lines = save_safetensors(load_run(command.run, command.which), command.out, command.overwrite)
    for line in lines:
        print(line)
    return 0
