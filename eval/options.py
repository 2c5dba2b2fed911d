"""The options of this package's commands, read before the modules that do the work are imported.

TensorFlow, scipy and matplotlib take seconds to import, so no module that needs them may be imported here.
"""

import collections
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import attrs
import tyro

from data_gen.console import parse, within
from data_gen.errors import UserError
from sqair.config import NO_RELATION, PRESETS, RelationInput, relation_kinds

Paths = tuple[pathlib.Path, ...]


@attrs.frozen(kw_only=True)
class _OfRunOnData:
    """Options of every command that runs a model on a split of a data file."""

    run: str
    """Run folder, ours or the original's, or the prefix of a checkpoint in it."""
    data: str
    """Data file, HDF5."""
    split: str = "test"
    """Split of the data file."""
    n_sequences: int | None = attrs.field(default=None, validator=attrs.validators.optional(within(1, 10**8)))
    """How many sequences, from the first on; all if left out."""
    n_slots: int | None = attrs.field(default=None, validator=attrs.validators.optional(within(1, 64)))
    """Object slots; those of the run if left out. (Not for relation rmc, whose weights fix their number.)"""
    seed: int = attrs.field(default=0, validator=within(0, 2**31 - 1))
    """Seed of the noise."""


@attrs.frozen(kw_only=True)
class Likelihood(_OfRunOnData):
    """Computes bounds and likelihoods of a run, ours or the original's, on a data split."""

    checkpoint: str = "best"
    """best, newest, an iteration, or all for a table over the checkpoints of the folder."""
    k_particles: int = attrs.field(default=5, validator=within(1, 10**6))
    """K: particles of the bounds; more than fit into memory are computed in chunks."""
    n_frames: int = attrs.field(default=10, validator=within(1, 10_000))
    """T: frames per sequence, from the first on."""
    batch_size: int = attrs.field(default=32, validator=within(1, 10_000))
    """Sequences per batch."""
    out: pathlib.Path | None = None
    """JSON file to write the figures to."""


@attrs.frozen(kw_only=True)
class Predict(_OfRunOnData):
    """Infers the first frames of sequences, predicts the last ones, and writes both to a file."""

    out: pathlib.Path
    """File to write; it appears when it is complete and replaces an older one."""
    checkpoint: str = "best"
    """best, newest, or an iteration."""
    n_frames: int = attrs.field(default=10, validator=within(1, 10_000))
    """T: frames per sequence, from the first on."""
    n_generated: int = attrs.field(default=1, validator=within(0, 9_999))
    """Number of these frames that are predicted: the last ones."""
    n_samples: int = attrs.field(default=5, validator=within(1, 1000))
    """Samples per sequence."""
    k_particles: int = attrs.field(default=5, validator=within(1, 10_000))
    """K: particles per sample."""
    canvases: bool = False
    """Store the decoded frames too, for pictures."""
    batch_size: int = attrs.field(default=32, validator=within(1, 10_000))
    """Sequences per batch; the noise depends on it."""

    def __attrs_post_init__(self):
        if self.n_generated >= self.n_frames:
            raise UserError(
                f"--n_generated {self.n_generated}: at least one of the --n_frames {self.n_frames} has to be inferred"
            )


@attrs.frozen(kw_only=True)
class Breakdown(_OfRunOnData):
    """Splits what a predicted frame loses against the same frame inferred by kind of latent."""

    checkpoint: str = "best"
    """best, newest, or an iteration."""
    k_particles: int = attrs.field(default=5, validator=within(1, 10_000))
    """K: particles per pass; one is drawn by its weight on all frames but the last."""
    n_frames: int = attrs.field(default=10, validator=within(2, 10_000))
    """T: frames per sequence, from the first on."""
    batch_size: int = attrs.field(default=32, validator=within(1, 10_000))
    """Sequences per batch; the noise depends on it."""
    without_relation: tuple[RelationInput, ...] = ()
    """Which of its inputs (prior, rnn, where) a trained relation is taken away from: what does the model owe to it?"""
    exchange_others: bool = False
    """Relate every object to those of another sequence: what does the model owe to the objects there are? For relations
    with a gamma and a memory for each object (in, rmc_slots)."""
    out: pathlib.Path | None = None
    """JSON file to write the figures to."""


@attrs.frozen(kw_only=True)
class Tables:
    """Makes the paper's comparison from files of predictions."""

    predictions: tuple[str, ...]
    """Files of eval.predict, patterns, or folders of them."""
    out: pathlib.Path
    """Folder to write to."""
    expected_models: tuple[str, ...] = ()
    """Models to expect (sqair, rsqair_in, rsqair_rmc, ...), each with every expected seed."""
    expected_seeds: tuple[int, ...] = ()
    """Seeds to expect of each; runs without predictions are listed as failed."""
    boxes: Literal["drawn", "window"] = "drawn"
    """An object's box and centre, for MOTA and position errors. drawn: of the pixels of its pasted glimpse that exceed
    half of their maximum; window: of its attention window, which may be far larger."""


def _endings(endings: tuple[str, ...]) -> Callable[[Any, Any, Iterable[pathlib.Path]], None]:
    def check(settings, attribute, paths: Iterable[pathlib.Path]) -> None:
        for path in paths:
            if path.suffix.lower() not in endings:
                raise UserError(f"--{attribute.name} {path}: expected a name that ends in {' or '.join(endings)}")

    return check


_PICTURE = _endings((".png", ".pdf"))


def _not_empty(settings, attribute, paths) -> None:
    if not paths:
        raise UserError(f"--{attribute.name}: name at least one")


@attrs.frozen(kw_only=True)
class Sequences:
    """The paper's figure 3: inputs above reconstructions and predictions, boxes coloured by the object's id."""

    out: Paths = attrs.field(validator=[_PICTURE, _not_empty])
    """Files to write, .png or .pdf."""
    run: pathlib.Path | None = None
    """Run folder, ours or the original's, or the prefix of a checkpoint in it."""
    data: Paths = ()
    """Data files, HDF5, each a part of the figure."""
    predictions: Paths = ()
    """Files of eval.predict --canvases, each a part of the figure, in place of --run and --data."""
    split: str = "test"
    """Split of the data files."""
    checkpoint: str = "best"
    """best, newest, or an iteration."""
    n_sequences: int = attrs.field(default=4, validator=within(1, 100))
    """Sequences of each file, from the first on."""
    n_frames: int = attrs.field(default=10, validator=within(1, 10_000))
    """T: frames per sequence, from the first on. Of more than 100 the still image shows some, the animation all."""
    generate_after: int | None = attrs.field(default=None, validator=attrs.validators.optional(within(0, 9_998)))
    """Frames after this one (the first is 0) are predicted from the propagation prior; none if left out."""
    k_particles: int = attrs.field(default=5, validator=within(1, 1000))
    """K: particles, of which one is drawn."""
    n_slots: int | None = attrs.field(default=None, validator=attrs.validators.optional(within(1, 64)))
    """Object slots; those of the run if left out."""
    seed: int = attrs.field(default=0, validator=within(0, 2**31 - 1))
    """Seed of the noise."""
    attention: bool = False
    """Show the attention between objects, under the frames."""
    boxes: Literal["drawn", "window"] = "drawn"
    """An object's box. drawn: around the pixels of its pasted glimpse that exceed half of their maximum; window: its
    attention window, which may be far larger."""
    gif: bool = False
    """Write an animation too, FILE.gif beside FILE.png: input, reconstruction and rollout, which begins after
    generate_after, or half-way. (From predictions: input and rollout.)"""

    def __attrs_post_init__(self):
        if bool(self.predictions) == bool(self.run or self.data) or bool(self.run) != bool(self.data):
            raise UserError("give --run with --data, or --predictions alone")
        if self.generate_after is not None and self.predictions:
            raise UserError("--generate_after: with --predictions the file says what is predicted; leave it out")
        if self.generate_after is not None and self.generate_after >= self.n_frames - 1:
            raise UserError(
                f"--generate_after {self.generate_after}: no frame of --n_frames {self.n_frames} is left "
                f"after it; choose at most {self.n_frames - 2}"
            )


@attrs.frozen(kw_only=True)
class Figure4:
    """The paper's figure 4: log-likelihood and relational log-likelihood of the last frame, by model and data set."""

    metrics: Paths = attrs.field(validator=_not_empty)
    """Files metrics/*.json of eval.tables, or the folder of them."""
    out: Paths = attrs.field(validator=[_PICTURE, _not_empty])
    """Files to write, .png or .pdf."""


@attrs.frozen(kw_only=True)
class Curves:
    """Learning curves of several runs: mean and range of the seeds of each model."""

    runs: Paths = attrs.field(validator=_not_empty)
    """Run folders of sqair.train."""
    out: Paths = attrs.field(validator=[_PICTURE, _not_empty])
    """Files to write, .png or .pdf."""
    of: Literal["validation", "training", "batch", "machine"] = "validation"
    """What is shown: evaluations on the validation or the training set, the training batches, or the time, memory and
    files that the training process used."""
    quantities: tuple[str, ...] | None = None
    """Columns of metrics.csv (of machine: of resources.csv); left out: bound, likelihood, KL and count accuracy (of
    machine: wall-clock and CPU seconds per step, memory and open files)."""

    beside: pathlib.Path | None = None
    """Learning curve of the original program (JSON) to draw beside runs of one fixed length."""


FIGURES: dict[str, type[Sequences | Figure4 | Curves]] = {"sequences": Sequences, "figure4": Figure4, "curves": Curves}


def read_figure() -> Sequences | Figure4 | Curves:
    """Parses the command line of eval.figures; its first word names the figure, sequences by default."""
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments[:1] and arguments[0] in FIGURES else "sequences"
    chosen = FIGURES[name]
    others = ", ".join(f"python -m eval.figures {other}" for other in FIGURES if other != name)
    return parse(chosen, f"eval.figures {name}", arguments, description=f"{chosen.__doc__}\n\nOther figures: {others}.")


@attrs.frozen(kw_only=True)
class Page:
    """Makes index.html, one self-contained file, from a folder of results."""

    results: pathlib.Path
    """Folder of results; index.html is written there."""
    title: str | None = None
    """Heading; the folder's name if left out."""
    command: str | None = None
    """The command that made the results, to be shown."""
    runs: tuple[pathlib.Path, ...] = ()
    """Run folders elsewhere whose settings and versions are to be shown."""


def _unique(settings: Any, attribute: attrs.Attribute, values: tuple) -> None:
    if not values:
        raise UserError(f"--{attribute.name} must name at least one")
    repeated = [value for value, count in collections.Counter(values).items() if count > 1]
    if repeated:
        raise UserError(f"--{attribute.name}: {repeated[0]} is there twice; name each once")


SQAIR = "sqair"  # the model without a relation in --models; the others have their relation's name


def _models(settings: Any, attribute: attrs.Attribute, values: tuple[str, ...]) -> None:
    known = [SQAIR if kind == NO_RELATION else kind for kind in relation_kinds()]
    for value in values:
        if value not in known:
            raise UserError(f"--models {value}: no such model; choose from {', '.join(known)}")


def _seeds(settings: Any, attribute: attrs.Attribute, values: tuple[int, ...]) -> None:
    for value in values:
        if not 0 <= value < 2**31:
            raise UserError(f"--seeds: {value} is no seed; expected whole numbers from 0 to 2,147,483,647")


def _positive(settings: Any, attribute: attrs.Attribute, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"--{attribute.name} {value}: expected at least 1")


@attrs.frozen
class Paper:
    """Reproduces the paper's tables and figures."""

    models: tuple[str, ...] = attrs.field(default=(SQAIR, "in", "rmc"), validator=[_unique, _models])
    """Models to compare: sqair, in, rmc, rmc_slots, or the kind of another relation."""
    seeds: tuple[int, ...] = attrs.field(default=(0, 1, 2, 3, 4), validator=[_unique, _seeds])
    """One training run per seed and model."""
    scale: Literal["paper", "short", "small"] = "paper"
    """paper; short: the paper's protocol with less data and the short recipe of training, about an hour per run on two
    cores; or small: little data and hardly any training, to try the whole pipeline in 20 minutes."""
    jobs: int | None = attrs.field(default=None, validator=_positive)
    """Runs at a time; if left out 1, or 2 at the small scale, whose runs mostly use one core."""
    xla: bool = False
    """Train with --xla, which is slower on a processor of two cores and was not measured on GPUs."""
    dry_run: bool = False
    """Print each command and why it would run or not, then stop."""
    report: bool = False
    """Only make the tables and figures of finished runs; another process may be training."""
    data_4: pathlib.Path | None = None
    """Data file with 4 balls, ours or R-NEM's, to train and test on; made in data_dir if left out."""
    data_678: pathlib.Path | None = None
    """Data file with 6 to 8 balls to test on; made in data_dir if left out."""
    n_sequences: int | None = attrs.field(default=None, validator=_positive)
    """Test sequences to predict, from the first on; all if left out (small: 32)."""
    name: str | None = None
    """Name of the folders in runs and results; the scale if left out."""
    runs: pathlib.Path | None = None
    """Folder of the run folders; runs/NAME if left out."""
    results: pathlib.Path | None = None
    """Folder of predictions, logs, tables and figures; results/NAME if left out."""
    data_dir: pathlib.Path | None = None
    """Folder of the data that are made; data, data/short or data/small if left out."""

    def __attrs_post_init__(self):
        for name in ("data_4", "data_678", "name", "runs", "results", "data_dir"):
            if getattr(self, name) is not None and str(getattr(self, name)) in ("", "."):
                raise UserError(f"--{name} is empty; leave it out or name something")
        if self.name and pathlib.PurePath(self.name).name != self.name:
            raise UserError(
                f"--name {self.name}: expected the name of a folder, without /; --runs and --results take whole paths"
            )
        if self.dry_run and self.report:
            raise UserError("--dry_run and --report: give one of them")

    @property
    def results_folder(self) -> pathlib.Path:
        return self.results or pathlib.Path("results", self.name or self.scale)


@attrs.frozen
class Benchmark:
    """Times training and evaluation steps."""

    models: tuple[str, ...] = ("sqair_balls", "rsqair_in", "rsqair_rmc")
    """Presets to time."""
    run: str | None = None
    """Time this trained model (as --run of eval.predict) instead of presets, with its own particles and slots."""
    data: pathlib.Path | None = None
    """Data file whose training split the model of --run is timed on; the one it was trained on if left out."""
    all_slots: bool = False
    """Also time every case with absent slots computed, in turns with the case without them."""
    lengths: tuple[int, ...] = (3, 10)
    """Lengths of the sequences, frames."""
    modes: tuple[Literal["graph", "shards", "bfloat16", "xla"], ...] = ("graph", "xla", "shards")
    """graph: batches in one piece; shards: in parts side by side, as in training on CPUs; bfloat16: as shards, with
    bfloat16 products; xla: frames compiled by XLA."""
    batch_size: int = attrs.field(default=32, validator=within(1, 10_000))
    """B."""
    k_particles: int = attrs.field(default=5, validator=within(1, 10_000))
    """K."""
    n_steps_per_image: int = attrs.field(default=4, validator=within(1, 64))
    """N."""
    repeats: int = attrs.field(default=24, validator=within(2, 10_000))
    """Number of timed steps, an eighth of them at a time."""
    scaling: bool = False
    """Also time the first model in the last mode against length, batch size, particles and slots."""
    json: pathlib.Path | None = None
    """File to write the figures to."""
    in_process: bool = False
    """Time the first case in this process, as many steps as each line of standard input asks for; print JSON."""

    def __attrs_post_init__(self):
        unknown = [model for model in self.models if model not in PRESETS]
        if unknown:
            raise UserError(f"--models {unknown[0]}: no such preset; choose from {', '.join(PRESETS)}")
        if self.data and not self.run:
            raise UserError("--data: only a trained model is timed on real frames; name it with --run")


@attrs.frozen
class CompareOriginal:
    """Compares our model with recorded passes of the original program."""

    folder: Annotated[str, tyro.conf.Positional]
    """Folder with flags.json, a checkpoint, inputs.npz, outputs.npz and gradient_norms.json."""


@attrs.frozen
class AddModel:
    """Makes a model to share from a run: as `sqair.export safetensors`, with figures in its card."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint."""
    out: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write model.safetensors, config.json, card.json and README.md in."""
    which: str = "best"
    """best, newest, or an iteration."""
    metrics: Paths = ()
    """Files metrics/*.json of eval.tables, or the folder of them: the card shows those of this checkpoint."""
    overwrite: bool = False
    """Replace an existing model."""


@attrs.frozen
class CheckModels:
    """Computes the figures in the cards of models again and reports those that differ."""

    folders: Annotated[Paths, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER ...")] = attrs.field(
        validator=_not_empty
    )
    """Folders of models."""


def read_models() -> AddModel | CheckModels:
    """Parses the command line of eval.models."""
    kinds = Annotated[AddModel, tyro.conf.subcommand("add")] | Annotated[CheckModels, tyro.conf.subcommand("check")]
    return parse(
        kinds,
        "eval.models",
        description="Makes models to share from runs, and checks them.",
        config=(tyro.conf.HelptextFromCommentsOff,),
    )
