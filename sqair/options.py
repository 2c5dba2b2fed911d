"""The options of sqair.train and sqair.export, read before TensorFlow is imported, which takes seconds."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import attrs
import tyro

from data_gen import console, hdf5
from data_gen.console import take, take_preset
from data_gen.errors import UserError
from sqair.config import PRESETS, RECIPES, Config, load_flags, with_recipe


@attrs.frozen
class Train:
    """Trains SQAIR or R-SQAIR. Options are the original's; --preset sets them to a row of the paper's table."""

    run_dir: str
    """Run folder; the same command with the same folder continues the run."""
    init_from: str | None = None
    """Run folder or checkpoint, ours (the best) or the original's, that a new run takes its weights from; steps,
    schedule, curriculum and optimiser start anew. Flags of starting values, if given, set those weights anew."""
    continue_from: str | None = None
    """Run folder or checkpoint, ours (the newest) or the original's, that a new run continues: weights, optimiser,
    steps, schedule, curriculum. Options that are not given are that run's; --train_itr, --learning_rate and most
    others may be changed."""
    describe: bool = False
    """Print the number of parameters of every module and stop."""
    config: tyro.conf.OmitArgPrefixes[Config] = Config()


def parse(arguments: list[str]) -> Train:
    """Parses the command line. `--preset NAME` or the run that `--continue_from` names, at any position, set the
    defaults of all other options; `--recipe NAME` those of training."""
    arguments = list(arguments)
    preset, recipe = take_preset(arguments, PRESETS), take(arguments, "recipe")
    source, run_dir, train_data = (take(list(arguments), name) for name in ("continue_from", "run_dir", "train_data"))
    if preset and source:
        raise UserError(
            "--preset and --continue_from: options that are not given are those of the continued run; leave "
            "--preset out"
        )
    config = _continued(source, run_dir, train_data) if source else PRESETS[preset] if preset else Config()
    if recipe is not None:
        config = with_recipe(config, recipe)
    description = (
        f"{Train.__doc__}\n\nPresets (--preset NAME, before or among the other options): "
        f"{', '.join(PRESETS)}.\n\nRecipes (--recipe NAME, likewise): {', '.join(RECIPES)}; without one, "
        "training as in the paper."
    )
    return console.parse(
        Train,
        "sqair.train",
        arguments,
        may_be_empty=("schedule",),
        default=Train(run_dir=tyro.MISSING, config=config),
        description=description,
        config=(tyro.conf.HelptextFromCommentsOff,),
    )


def _continued(source: str, run_dir: str | None, train_data: str | None) -> Config:
    """The configuration of the run to continue; if that no longer exists, of the run that continues it."""
    own = pathlib.Path(run_dir or "") / "flags.json"
    with console.without_notices():
        from sqair.runs import loading  # imports TensorFlow, this early only for a run to continue
    try:
        config, is_original = loading.load_config(source)
    except UserError:
        if not own.exists():
            raise
        return load_flags(own)[0]
    if is_original and not train_data:
        raise UserError(
            f"--continue_from {source}: a run of the original program does not name data that can be read "
            "here; add --train_data FILE"
        )
    return config


def asked_flags(arguments: Sequence[str]) -> set[str]:
    """The names of the options that a command line gives."""
    return {word[2:].split("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}


_Run = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
_Out = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


@attrs.frozen
class Original:
    """Writes a run as a checkpoint that the original program can restore and continue.

    The original looks for RESULTS_DIR/RUN_NAME/NUMBER: make OUT such a folder and start it with --resume.
    """

    run: _Run
    """Run folder or checkpoint."""
    out: _Out
    """Folder to write model.ckpt-<step>.*, checkpoint and flags.json in."""
    which: str = "newest"
    """best, newest, or an iteration."""
    without_relation: bool = False
    """Leave out a relational module and its inputs, which the original does not have."""
    overwrite: bool = False
    """Replace a checkpoint of the same iteration."""
    train_itr: int | None = None
    """The original's number of training steps, over which it divides its schedule; left out: the run's. A finished run
    needs more."""


@attrs.frozen
class Safetensors:
    """Writes a run's weights as safetensors, with its flags and a model card, to share or to load elsewhere."""

    run: _Run
    """Run folder or checkpoint."""
    out: _Out
    """Folder to write model.safetensors, config.json, card.json and README.md in."""
    which: str = "best"
    """best, newest, or an iteration."""
    overwrite: bool = False
    """Replace an existing model."""


def begin() -> None:
    """Parses the command line of sqair.train, checks that the data exist, and prints what is about to run."""
    arguments = parse(sys.argv[1:])
    if arguments.describe:
        return
    config = arguments.config
    for split in ("training", "validation"):
        hdf5.open_split(config.train.train_data, split).close()
    print(
        f"{arguments.run_dir}: relation {config.model.relation}, data {config.train.train_data}; loading TensorFlow",
        flush=True,
    )


def read_export() -> Original | Safetensors:
    """Parses the command line of sqair.export."""
    return console.parse(
        Original | Safetensors,
        "sqair.export",
        description="Writes runs in other programs' formats.",
        config=(tyro.conf.HelptextFromCommentsOff,),
    )
