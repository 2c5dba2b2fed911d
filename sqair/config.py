"""Configuration: frozen records whose fields carry the original's flag names, and the presets.

A run folder holds all of them in `flags.json`, flat, beside the checkpoints; an original `flags.json` loads too.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import attrs
import tyro

from data_gen.errors import UserError
from data_gen.files import read_json
from relational.registry import RELATIONS, find_relation
from sqair.training.rules import RULES

NO_RELATION = "none"
Cell = Literal["VanillaRNN", "GRU"]
RelationInput = Literal["prior", "rnn", "where"]


def _at_least(minimum: int) -> Callable[[Any, Any, Any], Any]:
    return attrs.validators.and_(attrs.validators.ge(minimum), attrs.validators.le(2**31))


def _choice(*choices: Collection[str]) -> Any:
    """The type of a flag whose value is one of these names, which --help shows."""
    return tyro.conf.arg(metavar=f"{{{','.join(name for names in choices for name in names)}}}")


def _one_of(*choices: Collection[str]) -> Callable[[Any, attrs.Attribute, str], None]:
    """A validator: the value is in one of the collections when it is checked, since registries may grow."""

    def check(instance: Any, attribute: attrs.Attribute, value: str) -> None:
        known = [name for names in choices for name in names]
        if value not in known:
            raise ValueError(f"{attribute.name} must be one of {', '.join(known)}, got {value}")

    return check


def _finite(instance: Any, attribute: attrs.Attribute, value: float) -> None:
    if not -1e30 < value < 1e30:
        raise ValueError(f"{attribute.name} must be a finite number, got {value}")


_POSITIVE = attrs.validators.and_(attrs.validators.gt(0.0), _finite)
_FRACTION = attrs.validators.and_(attrs.validators.gt(0.0), attrs.validators.lt(1.0))


def _parse_scale_prior(text: str) -> list[float]:
    values = [float(x) for x in str(text).split(",")]
    if len(values) not in (1, 2) or not all(abs(x) < 1e30 for x in values):
        raise ValueError(text)
    return values


@attrs.frozen
class ModelConfig:
    """Options that define the model: a checkpoint fits one configuration only."""

    n_steps_per_image: int = attrs.field(default=3, validator=[_at_least(1), attrs.validators.le(64)])
    """N, the number of object slots per frame."""
    n_what: int = attrs.field(default=50, validator=[_at_least(1), attrs.validators.le(4096)])
    """D, the number of appearance latents of an object."""
    n_units: int = attrs.field(default=8, validator=[_at_least(1), attrs.validators.le(256)])
    """Width of the networks in units of 32."""
    glimpse_size: int = attrs.field(default=20, validator=[_at_least(2), attrs.validators.le(1024)])
    """Height and width of a glimpse, in pixels."""
    k_particles: int = attrs.field(default=5, validator=[_at_least(1), attrs.validators.le(10**6)])
    """K, the number of importance particles."""
    masked_glimpse: bool = True
    """Mask glimpses in propagation by the temporal state."""
    transition: Cell = "VanillaRNN"
    """RNN over slots, in discovery and propagation."""
    time_transition: Cell = "GRU"
    """RNN over time of each object."""
    prior_transition: Cell = "GRU"
    """RNN of the propagation prior."""
    prop_prior_type: Literal["rnn", "rw", "guided"] = "rnn"
    """Propagation prior: free (rnn), random walk (rw) or guided walk (guided)."""
    disc_prior_type: Literal["cat", "geom"] = "cat"
    """Prior of the number of discovered objects: categorical (cat) or geometric (geom)."""
    step_success_prob: float = attrs.field(default=0.75, validator=_FRACTION)
    """Success probability of the geometric prior."""
    rec_where_prior: bool = True
    """Recurrent prior of where in discovery."""
    scale_prior: str = "-2"
    """Mean of the prior of the scale logits: one number, or two with a comma (x, y)."""
    transform_var_bias: float = attrs.field(default=-3.0, validator=_finite)
    """Starting value of the offset of where's raw standard deviation."""
    output_scale: float = attrs.field(default=0.25, validator=_finite)
    """Starting value of the factor of decoded glimpses."""
    output_std: float = attrs.field(default=0.3, validator=_POSITIVE)
    """Standard deviation of a pixel."""
    disc_step_bias: float = attrs.field(default=1.0, validator=_finite)
    """Starting value of the bias of discovering an object."""
    prop_step_bias: float = attrs.field(default=5.0, validator=_finite)
    """Starting value of the bias of propagating an object."""
    prop_prior_step_bias: float = attrs.field(default=10.0, validator=_finite)
    """Added to the propagation prior's presence logit."""
    sample_from_prior: bool = False
    """Sample frames after generate_after from the prior."""
    generate_after: int = attrs.field(default=-1, validator=attrs.validators.ge(-1))
    """With sample_from_prior: frames with an index above this one are predicted; below 1: none."""
    image_shape: tuple[int, ...] = (50, 50)
    """Height, width and, for colour, channels of a frame. (not a flag of the original, which takes it from the data)"""
    mean_image: bool = True
    """Learn a mean image that starts at the training set's mean. (ours: the original does so when the data has one)"""
    relation: Annotated[str, _choice([NO_RELATION], RELATIONS)] = attrs.field(
        default=NO_RELATION, validator=_one_of([NO_RELATION], RELATIONS)
    )
    """Relational module of propagation: none (SQAIR), interaction network (in), relational memory core (rmc), or
    the latter with one row per object (rmc_slots). (ours)"""
    relation_inputs: tuple[RelationInput, ...] = ("prior", "rnn", "where")
    """Where the relations enter: the propagation prior, its RNN, the where head. (ours)"""
    relation_embedding: int = attrs.field(default=5, validator=[_at_least(1), attrs.validators.le(4096)])
    """Width of the interaction network's embeddings. (ours)"""

    def __attrs_post_init__(self) -> None:
        try:
            _parse_scale_prior(self.scale_prior)
        except ValueError:
            raise ValueError(f"scale_prior must be one number or two with a comma, got {self.scale_prior!r}") from None
        shape = self.image_shape
        if (
            len(shape) not in (2, 3)
            or not all(2 <= x <= 4096 for x in shape[:2])
            or not all(1 <= x <= 16 for x in shape[2:])
        ):
            raise ValueError(
                f"image_shape must be height and width of 2 to 4096 pixels and optionally 1 to 16 channels, got {shape}"
            )
        if self.relation != NO_RELATION and not self.relation_inputs:
            raise ValueError("relation_inputs must name at least one of prior, rnn, where")

    @property
    def n_hidden(self) -> int:
        """R, the width of all hidden layers."""
        return 32 * self.n_units

    @property
    def least_weights(self) -> int:
        """A lower bound on the number of weights, too low by a factor of 1 to 3 where one of the sizes is large."""
        height, width, channels = self.image_size
        inputs = channels * (height * width + 2 * self.glimpse_size**2) + 8 * (self.n_hidden + self.n_what)
        return inputs * self.n_hidden

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, *channels = self.image_shape
        return height, width, channels[0] if channels else 1

    @property
    def scale_prior_values(self) -> list[float]:
        """The means of the x and y scale logits: one number for both, or two."""
        return _parse_scale_prior(self.scale_prior)


@attrs.frozen
class TrainConfig:
    """How the model is trained."""

    train_data: str = "data/balls4mass64.h5"
    """HDF5 file with groups training and validation."""
    crop: int = attrs.field(default=50, validator=attrs.validators.ge(0))
    """Central pixels of a frame that the model sees; 0: the whole frame. (ours)"""
    batch_size: int = attrs.field(default=32, validator=_at_least(1))
    """B, sequences per training step."""
    opt: Annotated[str, _choice(RULES)] = attrs.field(default="rmsprop", validator=_one_of(RULES))
    """Optimiser, as in TensorFlow 1; rmsprop and momentum with momentum 0.9."""
    learning_rate: float = attrs.field(default=1e-5, validator=_POSITIVE)
    """Learning rate at the start."""
    schedule: str = "4,6,10"
    """The rate is divided by 3 at boundaries that split train_itr in these proportions; empty: constant."""
    final_learning_rate: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Let the learning rate fall along half a cosine wave to this at train_itr, in place of the schedule; 0: off.
    (ours)"""
    decay_itr: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Steps before that fall begins. (ours)"""
    l2: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Weight of the l2 penalty."""
    target: Literal["vimco", "vimco_textbook", "iwae"] = "vimco"
    """Objective: the original's VIMCO, the published one, or IWAE without the score-function term. (ours)"""
    clip_norm: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Clip gradients to this global norm; 0: off. (ours)"""
    train_itr: int = attrs.field(default=2_000_000, validator=_at_least(0))
    """Maximum number of training steps."""
    seq_len: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Length of the sequences at the start, in frames; 0: max_seq_len."""
    stage_itr: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Steps after which sequences get one frame longer; 0: constant length."""
    max_seq_len: int = attrs.field(default=10, validator=_at_least(1))
    """T, the greatest length of the sequences. (ours: the original takes the data's)"""
    save_itr: int = attrs.field(default=1000, validator=_at_least(1))
    """Steps between checkpoints. (the original has 100,000; a kill would lose days)"""
    log_itr: int = attrs.field(default=10_000, validator=_at_least(1))
    """Steps between evaluations on the validation set; where sequences get longer, at the new length."""
    log_at_start: bool = False
    """Evaluate before the first step too."""
    report_loss_every: int = attrs.field(default=1000, validator=_at_least(1))
    """Steps between reports of the training batch."""
    fig_itr: int = attrs.field(default=10_000, validator=_at_least(1))
    """Steps between pictures for TensorBoard."""
    eval_on_train: bool = True
    """Evaluate on the training set too."""
    eval_size_fraction: float = attrs.field(default=1.0, validator=[attrs.validators.gt(0.0), attrs.validators.le(1.0)])
    """Fraction of each data set that evaluations use."""
    patience: int = attrs.field(default=10, validator=attrs.validators.ge(0))
    """Stop when the validation bound has not improved for this many epochs; 0: never. (paper, section 3)"""
    keep_checkpoints: int = attrs.field(default=3, validator=_at_least(1))
    """Newest checkpoints that are kept, besides the best one. (ours)"""
    seed: int = attrs.field(default=0, validator=[attrs.validators.ge(0), attrs.validators.lt(2**31)])
    """Seed of initial weights, order of the data and noise. (ours)"""
    xla: bool = False
    """Compile frames by XLA: after a slow start about as quick as batches in one piece, on two cores slower than two
    shards. (ours)"""
    shards: int = attrs.field(default=0, validator=[_at_least(0), attrs.validators.le(1024)])
    """Compute batches in this many parts side by side, each on its share of the cores; results differ only by rounding.
    0: one per core, as long as the parts are equal and have 8 sequences or more (two parts: any even batch); one with
    --xla, --distribute or a GPU. (ours)"""
    bfloat16: bool = False
    """Let oneDNN round the factors of matrix products to bfloat16 on CPUs that support it; not with --xla. It changes
    results. (ours)"""
    distribute: Literal["none", "mirrored", "multi_worker"] = "none"
    """Split batches over all GPUs of this machine (mirrored) or of all machines in TF_CONFIG (multi_worker). (ours)"""
    tf32: bool = False
    """Let GPUs round the factors of float32 products to TF32: faster, 10 bits of mantissa instead of 23. (ours)"""


@attrs.frozen
class Config:
    """The configuration of a run."""

    model: tyro.conf.OmitArgPrefixes[ModelConfig] = ModelConfig()
    train: tyro.conf.OmitArgPrefixes[TrainConfig] = TrainConfig()


def model_name(relation: str) -> str:
    """The name that models with a relation have in files and tables: sqair, or rsqair_<kind>."""
    return "sqair" if relation == NO_RELATION else f"rsqair_{relation}"


def preset_of(relation: str) -> str:
    """The name of the preset that trains a model with a relation on bouncing balls."""
    return "sqair_balls" if relation == NO_RELATION else model_name(relation)


def model_titles() -> dict[str, str]:
    """Name -> title of all models, in the order in which tables and figures show them."""
    return {
        model_name(NO_RELATION): "SQAIR",
        **{model_name(kind): f"R-SQAIR ({relation.title})" for kind, relation in RELATIONS.items()},
    }


def relation_kinds() -> list[str]:
    """The values of --relation."""
    return [NO_RELATION, *RELATIONS]


def has_fixed_slots(relation: str) -> bool:
    """Whether a model with a relation can run with no other number of slots than it was trained with."""
    return relation != NO_RELATION and find_relation(relation).fixed_slots


def _presets() -> dict[str, Config]:
    # Paper, section 3: defaults of SQAIR but n_what 5, 4 slots; length 3, one more every 10,000 steps, up to 10.
    balls = Config(
        ModelConfig(n_what=5, n_steps_per_image=4),
        TrainConfig(batch_size=32, seq_len=3, stage_itr=10_000, max_seq_len=10),
    )

    def related(relation: str) -> Config:
        return attrs.evolve(balls, model=attrs.evolve(balls.model, relation=relation))

    return {
        preset_of(NO_RELATION): balls,
        **{preset_of(kind): related(kind) for kind in RELATIONS},
        # What the SQAIR release's training script runs on moving MNIST: the flags' defaults, length 3 and one more
        # every 100,000 steps. Its README speaks of 1,000,000 steps; the script leaves --train_itr at 2,000,000, which
        # the schedule is made for and the published model's flags say too. It does not stop early.
        "sqair_mnist": Config(
            train=TrainConfig(
                train_data="data/moving_mnist.h5", crop=0, seq_len=3, stage_itr=100_000, train_itr=2_000_000, patience=0
            )
        ),
        # AIR: one frame, discovery alone.
        "air_balls": attrs.evolve(balls, train=attrs.evolve(balls.train, seq_len=1, stage_itr=0, max_seq_len=1)),
    }


PRESETS = _presets()

# Training recipes: values of `TrainConfig` for `--recipe` (docs/learning.md).
RECIPES: dict[str, dict[str, Any]] = {
    # Made for half an hour of two cores. The published VIMCO estimator is what allows four times the original's rate.
    "short": dict(
        target="vimco_textbook",
        clip_norm=500.0,
        learning_rate=4e-5,
        final_learning_rate=1e-6,
        decay_itr=700,
        schedule="",
        train_itr=4000,
        seq_len=3,
        stage_itr=250,
        max_seq_len=10,
        patience=0,
        save_itr=250,
        log_itr=250,
        report_loss_every=50,
        fig_itr=1000,
        eval_on_train=False,
        eval_size_fraction=0.32,
    ),
}


def with_recipe(config: "Config", name: str) -> "Config":
    """A configuration trained by a recipe of `RECIPES`.

    Raises:
      UserError: there is no such recipe.
    """
    if name not in RECIPES:
        raise UserError(f"--recipe {name}: no such recipe; choose from {', '.join(RECIPES)}")
    return attrs.evolve(config, train=attrs.evolve(config.train, **RECIPES[name]))


def recipe_of(config: "Config") -> str | None:
    """The recipe whose values a configuration has, all of them; None if there is none."""
    train = attrs.asdict(config.train)
    return next((name for name, values in RECIPES.items() if values.items() <= train.items()), None)


def to_flags(config: Config) -> dict[str, Any]:
    """All fields of a configuration, flat, as JSON values."""
    flags = {**attrs.asdict(config.model), **attrs.asdict(config.train)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flags.items()}


def _coerce(name: str, value: Any, like: Any) -> Any:
    """A JSON value as the type of a field's default. The original writes integers as 32.0 and scale_prior as -2.0."""
    wrong = UserError(f"flag {name} must be of type {type(like).__name__}, got {json.dumps(value)[:60]}")
    if isinstance(like, bool):
        if not isinstance(value, bool):
            raise wrong
        return value
    if isinstance(like, (int, float)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong
        if isinstance(like, float):
            try:
                return float(value)
            except OverflowError:
                raise wrong from None
        if value != value or value in (float("inf"), float("-inf")) or value != int(value):
            raise wrong
        return int(value)
    if isinstance(like, str):
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise wrong
        try:
            return value if isinstance(value, str) else f"{value:g}"
        except OverflowError:
            raise wrong from None
    if not isinstance(value, (list, tuple)) or not all(isinstance(x, type(like[0])) for x in value):
        raise wrong
    return tuple(value)


def _check_choice(name: str, value: Any, kind: Any) -> None:
    """Raises `UserError` unless the value, or each one of a tuple, is one of the Literal's options."""
    values = value if get_origin(kind) is tuple else (value,)
    kind = get_args(kind)[0] if get_origin(kind) is tuple else kind
    for x in values:
        if get_origin(kind) is Literal and x not in get_args(kind):
            raise UserError(f"flag {name} must be one of {', '.join(get_args(kind))}, got {x}")


def from_flags(flags: Mapping[str, Any], base: Config = Config()) -> tuple[Config, list[str]]:
    """A configuration from flat flags.

    Args:
      flags: field names to JSON values; missing ones keep the value of `base`.
      base: see `flags`.

    Returns:
      The configuration, and the names of unknown flags, sorted.

    Raises:
      UserError: a flag has a wrong type or an impossible value; names it.
    """
    parts: list[Any] = []
    unknown = set(flags)
    for part in (base.model, base.train):
        values = {}
        for field in attrs.fields(type(part)):
            if field.name in flags:
                values[field.name] = _coerce(field.name, flags[field.name], field.default)
                _check_choice(field.name, values[field.name], field.type)
                unknown.discard(field.name)
        try:
            parts.append(attrs.evolve(part, **values))
        except (ValueError, TypeError) as error:
            raise UserError(f"flag out of range: {error.args[0] if error.args else error}") from None
    model, train = parts
    return Config(model, train), sorted(unknown)


def load_flags(path: str | os.PathLike) -> tuple[Config, list[str]]:
    """Reads a run folder's `flags.json`, ours or the original's; see `from_flags`.

    Raises:
      UserError: the file is missing, not JSON, not a flat object, or a flag is wrong.
    """
    flags = read_json(path, "a run folder needs its flags")
    if not isinstance(flags, dict):
        raise UserError(f"{path}: expected a JSON object of flags, got a {type(flags).__name__}")
    try:
        return from_flags(flags)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# Flags that may differ when a run is continued: they change what is reported and kept, not what is computed
# (`distribute` and `shards`: except for rounding).
CHANGEABLE = (
    "train_data",
    "save_itr",
    "report_loss_every",
    "fig_itr",
    "keep_checkpoints",
    "eval_on_train",
    "distribute",
    "shards",
)


def sequence_length(train: TrainConfig, step: int) -> int:
    """The curriculum: min(seq_len + step // stage_itr, max_seq_len) frames."""
    start = train.seq_len or train.max_seq_len
    return min(start + (step // train.stage_itr if train.stage_itr else 0), train.max_seq_len)


def longest(train: TrainConfig) -> int:
    """The greatest length of the sequences that a run may come to, in frames."""
    return train.max_seq_len if train.stage_itr else sequence_length(train, 0)
