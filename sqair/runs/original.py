"""Reads and writes the original's checkpoints (TensorFlow 1): its variables' names, and the parts of ours for them."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data_gen.errors import UserError
from sqair.config import Config, to_flags
from sqair.model import SQAIR
from sqair.neural import GRU, MLP, GaussianHead, Linear
from sqair.runs.values import read_values
from sqair.training.optimizers import Optimizer
from sqair.training.rules import RULES


class VariablePart(NamedTuple):
    """Columns [start, stop) of a variable; all of it if stop is None."""

    variable: tf.Variable
    start: int = 0
    stop: int | None = None

    def read(self, value) -> np.ndarray:
        """These columns of a value of the variable's shape."""
        return np.asarray(value)[..., self.start : self.stop] if self.stop is not None else np.asarray(value)


Names = dict[str, list[VariablePart]]


def _linear(scope: str, layer: Linear) -> Names:
    names = {f"{scope}/w": [VariablePart(layer.w[key]) for key in layer.inputs if key != "gamma"]}
    if layer.b is not None:
        names[f"{scope}/b"] = [VariablePart(layer.b)]
    return names


def _mlp(scope: str, mlp: MLP) -> Names:
    names: Names = {}
    for i, layer in enumerate(mlp.layers):
        names.update(_linear(f"{scope}/linear" + (f"_{i}" if i else ""), layer))
    return names


def _cell(scope: str, cell) -> Names:
    if not isinstance(cell, GRU):
        return {**_linear(f"{scope}/in_to_hidden", cell.inputs), **_linear(f"{scope}/hidden_to_hidden", cell.recurrent)}
    names: Names = {}
    r = cell.size
    for i, gate in enumerate("zrh"):
        names[f"{scope}/w{gate}"] = [
            VariablePart(cell.inputs.w[key], i * r, (i + 1) * r) for key in cell.inputs.inputs if key != "gamma"
        ]
        names[f"{scope}/b{gate}"] = [VariablePart(cell.inputs.b, i * r, (i + 1) * r)]
        names[f"{scope}/u{gate}"] = (
            [VariablePart(cell.candidate.w["x"])]
            if gate == "h"
            else [VariablePart(cell.recurrent.w["x"], i * r, (i + 1) * r)]
        )
    return names


def _gaussian(scope: str, head: GaussianHead) -> Names:
    return {} if head.linear is None else _linear(f"{scope}/gaussian_from_param_vec/linear", head.linear)


def _where_head(scope: str, head) -> Names:
    scope = f"{scope}/stochastic_transform_param"
    return {**_mlp(f"{scope}/mlp", head.mlp), f"{scope}/scale_offset": [VariablePart(head.scale_offset)]}


def _scopes(kinds: Sequence[str]) -> list[str]:
    """Sonnet's names of cells made one after another in a scope: vanilla_rnn, gru, gru_1, ..."""
    base = {"VanillaRNN": "vanilla_rnn", "GRU": "gru"}
    names = []
    for i, kind in enumerate(kinds):
        before = list(kinds[:i]).count(kind)
        names.append(base[kind] + (f"_{before}" if before else ""))
    return names


def original_names(model: SQAIR) -> Names:
    """The original's name of every trainable variable, and the parts of our variables for it.

    Args:
      model: any model; the relational module and its inputs have no names.

    Returns:
      Name -> our columns, stacked by rows; a vector, scalar or image is one entry.
    """
    config = model.config
    timestep = model.sequence.timestep
    discover, propagate = timestep.discover, timestep.propagate
    found, kept, encoder = discover.core, propagate.core, discover.core.glimpse_encoder
    slot_cell = _scopes([config.transition])[0]
    rnn, temporal, prior = _scopes([config.transition, config.time_transition, config.prior_transition])
    prior_scope = {
        "rnn": "propagate_prior",
        "rw": "random_walk_propagate_prior",
        "guided": "guided_walk_propagate_prior",
    }[config.prop_prior_type]

    names: Names = {}
    names.update(_mlp("decoder/air_decoder/decoder/mlp", model.decoder.mlp))
    names["decoder/air_decoder/decoder/output_scale"] = [VariablePart(model.decoder.output_scale)]
    if model.decoder.mean_image is not None:
        names["decoder/air_decoder/Variable"] = [VariablePart(model.decoder.mean_image)]

    scope = "discovery/discovery_core"
    names.update(_mlp(f"{scope}/encoder/mlp", discover.frame_encoder))
    names.update(_mlp(f"{scope}/encoder_1/mlp", encoder.mlp))
    names.update(_gaussian(f"{scope}/air_encoder", encoder.head))
    if encoder.mask_mlp is not None:
        names.update(_mlp(f"{scope}/air_encoder/mlp", encoder.mask_mlp))
    names.update(_mlp(f"{scope}/steps_predictor/mlp", found.steps_predictor))
    names.update(_where_head(scope, found.where_head))
    names.update(_cell(f"discovery/{slot_cell}", found.rnn))
    names[f"discovery/discover/discovery/{slot_cell}_initial_state_0/w"] = [VariablePart(found.initial_state)]
    if discover.where_prior is not None:
        scope, where_prior = "discovery/discover/recurrent_normal_impl", discover.where_prior
        names.update(_linear(f"{scope}/linear_1", where_prior.conditioning))
        names.update(_linear(f"{scope}/linear", where_prior.readout))
        names.update(_linear(f"{scope}/vanilla_rnn/in_to_hidden", where_prior.in_to_hidden))
        names.update(_linear(f"{scope}/vanilla_rnn/hidden_to_hidden", where_prior.hidden_to_hidden))
        names[f"{scope}/init_sample"] = [VariablePart(where_prior.initial_sample)]
        names[f"{scope}/{scope}/vanilla_rnn_initial_state_0/w"] = [VariablePart(where_prior.initial_state)]
    if discover.steps_mlp is not None:
        names.update(_mlp("discovery/discover/mlp", discover.steps_mlp))
        scope = "model/sequential_air/while/sqair_timestep/discover"
        names[f"{scope}/step_prior_bias"] = [VariablePart(discover.step_bias)]
        names[f"{scope}/step_prior_timestep_bias"] = [VariablePart(discover.timestep_bias)]

    scope = "propagation/propagation_core"
    names.update(_mlp(f"{scope}/rnn_inpt/mlp", kept.where_bias))
    names.update(_mlp(f"{scope}/steps_predictor/mlp", kept.steps_predictor))
    names.update(_where_head(scope, kept.where_head))
    names.update(_gaussian(f"{scope}/what", kept.temporal_head))
    names.update(_linear(f"{scope}/what/linear", kept.gates))
    names[f"{scope}/affine_diag_normal/cholesky_scale"] = [VariablePart(kept.where_posterior.cholesky_scale)]
    names.update(_cell(f"propagation/{rnn}", kept.rnn))
    names.update(_cell(f"propagation/{temporal}", kept.temporal))
    names.update(_cell(f"propagation/{prior}", propagate.prior.rnn))
    names.update(_linear(f"propagation/{prior_scope}/linear", propagate.prior.readout))
    names[f"propagation/sequential_ssm/propagation/{rnn}_initial_state_0/w"] = [VariablePart(kept.initial_state)]
    scope = "sequence/sequential_air"
    names[f"{scope}/propagation/{temporal}_initial_state_0/w"] = [VariablePart(propagate.temporal_initial_state)]
    names[f"{scope}/propagation/{prior}_initial_state_0/w"] = [VariablePart(propagate.prior.initial_state)]
    names.update(_mlp(f"{scope}/sqair_timestep/mlp", timestep.latent_encoder))
    return names


def original_constants(model: SQAIR) -> dict[str, np.ndarray]:
    """The original's variables that are not trained, name -> value; its global step is not among them."""
    std = np.sqrt(np.float32(model.config.output_std))
    constants = {
        "decoder/air_decoder/output_std": std,
        "decoder/air_decoder/background_std": std,
        "discovery/discovery_core/air_encoder/gaussian_from_param_vec/min_std": np.float32(0.01),
        "propagation/propagation_core/what/gaussian_from_param_vec/min_std": np.float32(0.01),
        "propagation/propagation_core/where_update_scale": np.float32(1.0),
    }
    return constants


def gather_original(columns: Sequence[VariablePart], values: Sequence) -> np.ndarray:
    """Assembles the original's value from values of our variables (weights, gradients, optimiser slots)."""
    parts = [c.read(v) for c, v in zip(columns, values)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, 0)


def original_shape(columns: Sequence[VariablePart]) -> list[int]:
    """The shape of the original's variable."""
    shapes = [
        list(
            np.empty(c.variable.shape, np.bool_)[..., c.start : c.stop].shape
            if c.stop is not None
            else c.variable.shape
        )
        for c in columns
    ]
    return shapes[0] if len(shapes) == 1 else [sum(s[0] for s in shapes)] + shapes[0][1:]


# Kind of optimiser -> our name of a slot -> what TensorFlow 1 appends to the variable's name.
SLOT_SUFFIXES = {
    "rmsprop": {"rms": "RMSProp", "momentum": "RMSProp_1"},
    "adam": {"m": "Adam", "v": "Adam_1"},
    "momentum": {"momentum": "Momentum"},
    "sgd": {},
}
OPTIMIZER_SLOTS = tuple(suffix for slots in SLOT_SUFFIXES.values() for suffix in slots.values())


def latest_original(folder: str) -> str:
    """The prefix of the newest `model.ckpt-<itr>` of an original run folder.

    Raises:
      UserError: there is none.
    """
    found = original_checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: no original checkpoint (model.ckpt-<itr>.index) in it")
    return found[max(found)]


def original_checkpoints(folder: str) -> dict[int, str]:
    """Iteration -> prefix of every `model.ckpt-<itr>` of an original run folder, by iteration."""
    found = {}
    for path in pathlib.Path(folder).glob("model.ckpt-*.index"):
        iteration = path.name[len("model.ckpt-") : -len(".index")]
        if iteration.isdecimal():
            found[int(iteration)] = str(path)[: -len(".index")]
    return dict(sorted(found.items()))


def load_original(model: SQAIR, prefix: str, values: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Fills a model without relations with an original checkpoint.

    Args:
      model: made for the checkpoint's flags.
      prefix: path of the checkpoint, without .index.
      values: what `read_values` read of it, if that was done before.

    Returns:
      All of the checkpoint's values, those that are no variables of ours (optimiser slots, global step) included.

    Raises:
      UserError: the checkpoint cannot be read, or does not fit the flags; names the first variables that differ.
    """
    values = read_values(prefix) if values is None else values
    names = original_names(model)
    wrong = []
    for name in [*names, *original_constants(model)]:
        if name in values and values[name].dtype != np.float32:
            wrong.append(f"{name} is of type {values[name].dtype}, expected float32")
    step = values.get("global_step", np.int64(0))
    if step.shape or step.dtype.kind != "i" or not 0 <= step < 2**31:
        wrong.append(f"global_step is {step}")
    for name, columns in names.items():
        if name not in values:
            wrong.append(f"{name} is missing")
        elif list(values[name].shape) != original_shape(columns):
            wrong.append(f"{name} has shape {list(values[name].shape)}, the flags ask for {original_shape(columns)}")
    for name, constant in original_constants(model).items():
        if not wrong and name in values and not np.allclose(values[name], constant, rtol=1e-5):
            wrong.append(f"{name} is {np.ravel(values[name])[0]:.6g}, the flags ask for {constant:.6g}")
    for name in sorted(values):
        if (
            name not in names
            and name not in original_constants(model)
            and name not in ("global_step",)
            and name.rsplit("/", 1)[-1] not in OPTIMIZER_SLOTS
            and not name.startswith("beta")
        ):
            wrong.append(f"{name} has no place in the model")
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{prefix} does not fit the flags: {'; '.join(wrong[:3])}{more}")
    assign_original(names, values)
    return values


def assign_original(names: Names, values: dict[str, np.ndarray]) -> None:
    """Assigns original values to our variables; a variable of several original ones is put together first."""
    new: dict[int, np.ndarray] = {}
    variables: dict[int, tf.Variable] = {}
    for name, columns in names.items():
        row = 0
        for c in columns:
            key = id(c.variable)
            variables[key] = c.variable
            target = new.setdefault(key, np.array(c.variable.numpy()))
            value = values[name]
            if len(columns) > 1:
                value = value[row : row + c.variable.shape[0]]
                row += c.variable.shape[0]
            if c.stop is None:
                target[...] = np.reshape(value, target.shape)
            else:
                target[..., c.start : c.stop] = value
    for key, value in new.items():
        variables[key].assign(value)


def slot_names(names: Names, optimizer: Optimizer) -> Names:
    """The original's name of every slot of an optimiser, and the parts of our slots for it.

    Args: names: `original_names`. optimizer: of the same model.
    """
    place = {id(v): i for i, v in enumerate(optimizer.variables_to_train)}
    return {
        f"{name}/{suffix}": [c._replace(variable=optimizer.slots[slot][place[id(c.variable)]]) for c in columns]
        for name, columns in names.items()
        for slot, suffix in SLOT_SUFFIXES[optimizer.kind].items()
    }


def load_original_slots(optimizer: Optimizer, model: SQAIR, values: dict[str, np.ndarray]) -> bool:
    """Fills an optimiser with the slots of an original checkpoint.

    Args:
      optimizer: of `model`.
      model: without relations.
      values: all of the checkpoint, see `load_original`.

    Returns:
      Whether the checkpoint holds them; if not, nothing is changed.
    """
    slots = slot_names(original_names(model), optimizer)
    if not all(name in values and list(values[name].shape) == original_shape(slots[name]) for name in slots):
        return False
    assign_original(slots, values)
    updates = int(values.get("global_step", 0))
    power = float(values.get("beta2_power", 0.0))
    if 1e-30 < power < 1.0:  # Adam stores its step as a power of its decay, which underflows in the end
        updates = int(round(np.log(power) / np.log(0.999))) - 1
    optimizer.updates.assign(max(updates, 0))
    return True


def unnamed_variables(model: SQAIR) -> list[str]:
    """Names of trainable variables that the original has no place for: those of the relational module."""
    named = {id(c.variable) for columns in original_names(model).values() for c in columns}
    return [v.name.split(":")[0] for v in model.trainable_variables if id(v) not in named]


def original_values(model: SQAIR, optimizer: Optimizer, step: int) -> dict[str, np.ndarray]:
    """All that the original's saver stores of a training state, name -> value; variables without a name are left out.

    Args: model: any. optimizer: of it. step: the global step.
    """
    names = original_names(model)
    columns = {**names, **slot_names(names, optimizer)}
    values = {name: gather_original(c, [x.variable.numpy() for x in c]) for name, c in columns.items()}
    mean = "decoder/air_decoder/Variable"
    if mean not in values:  # the original's training always has one; zeros draw the same frames
        values[mean] = np.zeros(model.config.image_size, np.float32)
        for slot, suffix in SLOT_SUFFIXES[optimizer.kind].items():
            values[f"{mean}/{suffix}"] = np.full(model.config.image_size, RULES[optimizer.kind].slots[slot], np.float32)
    values.update(original_constants(model))
    values["global_step"] = np.array(step, np.int64)
    if optimizer.kind == "adam":
        power = int(optimizer.updates) + 1
        values["beta1_power"] = np.array(0.9**power, np.float32)
        values["beta2_power"] = np.array(0.999**power, np.float32)
    return values


def write_original(prefix: str, values: dict[str, np.ndarray]) -> None:
    """Writes a checkpoint that TensorFlow 1's saver restores.

    Args:
      prefix: path without .index.
      values: name -> value.

    Raises:
      UserError: it cannot be written.
    """
    names = sorted(values)
    try:
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.constant(values[name]) for name in names],
        )
    except tf.errors.OpError as error:
        raise UserError(f"{prefix}: cannot be written ({str(error).splitlines()[0][:200]})") from None


# Those of our flags that the original has. It has save_itr too, but keeps every checkpoint, and ours are saved a
# hundred times as often; its user gives paths, names and devices.
ORIGINAL_FLAGS = (
    "n_steps_per_image",
    "n_what",
    "n_units",
    "glimpse_size",
    "k_particles",
    "masked_glimpse",
    "transition",
    "time_transition",
    "prior_transition",
    "prop_prior_type",
    "disc_prior_type",
    "step_success_prob",
    "rec_where_prior",
    "scale_prior",
    "transform_var_bias",
    "output_scale",
    "output_std",
    "disc_step_bias",
    "prop_step_bias",
    "prop_prior_step_bias",
    "sample_from_prior",
    "batch_size",
    "opt",
    "learning_rate",
    "schedule",
    "l2",
    "train_itr",
    "seq_len",
    "stage_itr",
    "log_itr",
    "log_at_start",
    "report_loss_every",
    "fig_itr",
    "eval_on_train",
    "eval_size_fraction",
)


def original_flags(config: Config) -> dict[str, Any]:
    """The flags of a configuration that the original has, with its names and types."""
    flags = to_flags(config)
    return {"debug": False, **{name: flags[name] for name in ORIGINAL_FLAGS}}
