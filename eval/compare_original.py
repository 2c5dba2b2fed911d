"""Runs our model on what the original program recorded, and compares every quantity.

    python -m eval.compare_original FOLDER

FOLDER holds flags.json, model.ckpt-<itr>.*, inputs.npz, outputs.npz and gradient_norms.json, as described in
../shared/reference/README.md. Exit code 0 only if everything is within tolerance.
"""

import json
import pathlib
from typing import Annotated, Dict, List, NamedTuple

import attrs
import numpy as np
import tensorflow as tf
import tyro

from data_gen.command_line import UserError, parse, run
from sqair import original, spatial_transformer
from sqair.config import load_flags
from sqair.discover import number_of_steps
from sqair.model import SQAIR, Forward, report
from sqair.noise import Noise, PhaseNoise
from sqair.targets import iwae

FORWARD_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 5e-4
# A sum that cancels: the original's own float32 rounding is 2e-3 there (docs/port.md).
SCALE_OFFSET = "propagation/propagation_core/stochastic_transform_param/scale_offset"
SCALE_OFFSET_TOLERANCE = 5e-3


class Row(NamedTuple):
    """One compared quantity: the largest difference relative to the largest recorded magnitude."""

    name: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance      # False for NaN


class Recording(NamedTuple):
    """One folder of recorded figures: its model with the recorded weights, inputs and expected outputs."""

    model: SQAIR
    obs: tf.Tensor
    noise: Noise
    counts: tf.Tensor
    outputs: Dict[str, np.ndarray]
    gradient_norms: Dict[str, List[float]]


def _load_npz(path: pathlib.Path) -> Dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the folder must hold the original's recorded figures") from None
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a NumPy archive ({error})") from None


def load_inputs(inputs: Dict[str, np.ndarray]):
    """Recorded inputs -> obs [T, B, H, W], `Noise` [T, N, P, d], counts int32 [T, B].

    Raises:
      UserError: a member is missing.
    """
    wanted = ["imgs", "nums"] + [f"noise_{p}_{x}" for p in ("prop", "disc") for x in ("where", "what", "presence")]
    missing = [x for x in wanted if x not in inputs]
    if missing:
        raise UserError(f"inputs.npz: member {missing[0]} is missing")
    noise = Noise(*(PhaseNoise(*(tf.constant(inputs[f"noise_{phase}_{x}"]) for x in ("where", "what", "presence")))
                    for phase in ("prop", "disc")))
    return tf.constant(inputs["imgs"]), noise, tf.constant(inputs["nums"].sum(-1), tf.int32)


def _check_noise(folder: pathlib.Path, noise: Noise, leading: List[int], n_what: int) -> None:
    for phase, recorded in zip(("prop", "disc"), noise):
        for name, value, size in zip(recorded._fields, recorded, (4, n_what, 1)):
            expected = tuple(leading + [size])
            if tuple(value.shape) != expected:
                raise UserError(f"{folder / 'inputs.npz'}: noise_{phase}_{name} has shape {tuple(value.shape)}, the "
                                f"flags and images ask for {expected}")


def load_recording(folder) -> Recording:
    """Reads a folder of recorded figures.

    Raises:
      UserError: something is missing or does not fit.
    """
    folder = pathlib.Path(folder)
    config = load_flags(folder / "flags.json")[0].model
    inputs = _load_npz(folder / "inputs.npz")
    obs, noise, counts = load_inputs(inputs)
    shape = obs.shape.as_list()[2:]
    particles = noise.discovery.what.shape[2]
    if particles != obs.shape[1] * config.k_particles:
        raise UserError(f"{folder}: noise for {particles} particles, but {obs.shape[1]} sequences and k_particles "
                        f"{config.k_particles} in flags.json make {obs.shape[1] * config.k_particles}")
    mean_image = inputs.get("mean_img", np.zeros(0)).size > 0
    config = attrs.evolve(config, image_shape=tuple(shape), mean_image=mean_image)
    model = SQAIR(config)
    original.load_original(model, original.latest_original(str(folder)))
    _check_noise(folder, noise, [obs.shape[0], config.n_steps_per_image, particles], config.n_what)
    try:
        gradient_norms = json.loads((folder / "gradient_norms.json").read_text())
        gradient_norms = {name: [float(norm), float(total)] for name, (norm, total) in gradient_norms.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'gradient_norms.json'}: cannot be read as variable -> [norm, sum] ({error})"
                        ) from None
    return Recording(model, obs, noise, counts, _load_npz(folder / "outputs.npz"), gradient_norms)


def original_outputs(model: SQAIR, forward: Forward, counts: tf.Tensor) -> Dict[str, tf.Tensor]:
    """A forward pass under the names of the original's recorded quantities, [T, P, ...]."""
    frame, latents = forward.frame, forward.latents
    channels = model.config.image_size[2]
    h = model.config.glimpse_size
    glimpse = tf.reshape(forward.glimpse, forward.glimpse.shape.as_list()[:3] + [h, h] + [channels] * (channels > 1))
    discovered, propagated = frame.discovered, frame.propagated
    prop_presence, disc_presence = propagated.presence[..., 0], discovered.presence[..., 0]
    kept_probability = tf.sigmoid(propagated.presence_logit[..., 0])
    scalars = report(forward, counts)
    return {
        "what": latents.what, "what_loc": latents.what_loc, "what_scale": latents.what_scale,
        "where": latents.where, "where_loc": latents.where_loc, "where_scale": latents.where_scale,
        "presence": forward.presence, "presence_logit": latents.presence_logit[..., 0],
        "presence_prob": tf.sigmoid(latents.presence_logit[..., 0]),
        "obj_id": frame.object_id,
        "canvas": spatial_transformer.rows_to_image(forward.canvas, channels), "glimpse": glimpse,
        "prop_pres": prop_presence, "disc_pres": disc_presence,
        "num_prop_steps_per_sample": tf.reduce_sum(prop_presence, -1),
        "num_disc_steps_per_sample": tf.reduce_sum(disc_presence, -1),
        "num_steps_per_sample": forward.num_steps,
        "prop_prob": frame.presence_prev * tf.where(prop_presence > 0, kept_probability, 1.0 - kept_probability),
        "disc_prob": number_of_steps(tf.sigmoid(discovered.presence_logit[..., 0])),
        "disc_what_log_prob": forward.q_discovery.what, "disc_where_log_prob": forward.q_discovery.where,
        "disc_log_prob": forward.q_discovery.discrete,
        "disc_what_prior_log_prob": forward.p_discovery.what, "disc_where_prior_log_prob": forward.p_discovery.where,
        "disc_prior_log_prob": forward.p_discovery.discrete,
        "prop_what_log_prob": forward.q_propagation.what, "prop_where_log_prob": forward.q_propagation.where,
        "prop_log_prob": forward.q_propagation.discrete,
        "prop_what_prior_log_prob": forward.p_propagation.what,
        "prop_where_prior_log_prob": forward.p_propagation.where,
        "prop_prior_log_prob": forward.p_propagation.discrete,
        "discrete_log_prob": forward.discrete_log_prob, "step_log_prob": forward.discrete_log_prob,
        "data_ll_per_sample": forward.data_ll, "kl_per_sample": forward.log_q - forward.log_p,
        "log_q_z_given_x_per_sample": forward.log_q, "log_p_z_per_sample": forward.log_p,
        "log_weights_per_timestep": forward.log_weights_per_frame, "log_weights": forward.log_weights,
        "importance_weights": forward.importance_weights,
        "elbo_iwae_per_example": iwae(forward.log_weights),
        "elbo_iwae": scalars.iwae, "elbo_vae": scalars.vae,
        "normalised_elbo_iwae": scalars.iwae_per_frame, "normalised_elbo_vae": scalars.vae_per_frame,
        "data_ll": scalars.data_ll, "kl": scalars.kl, "log_p_z": scalars.log_p, "log_q_z_given_x": scalars.log_q,
        "mse": scalars.mse, "raw_mse": scalars.raw_mse,
        "num_steps": scalars.num_steps, "num_disc_steps": scalars.num_disc_steps,
        "num_prop_steps": scalars.num_prop_steps, "num_step_accuracy": scalars.num_step_accuracy,
        "raw_num_step_accuracy": scalars.raw_num_step_accuracy, "ess": scalars.ess,
    }


def relative_difference(ours, recorded) -> float:
    """max |ours - recorded| / max |recorded|; inf if the shapes differ, NaN if ours is not finite."""
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    if ours.shape != recorded.shape:
        return float("inf")
    if not recorded.size:
        return 0.0
    scale = np.abs(recorded).max()
    return float(np.abs(ours - recorded).max() / (scale if scale else 1.0))


def compute(model: SQAIR, obs: tf.Tensor, noise: Noise, counts: tf.Tensor):
    """One forward and backward pass on recorded noise.

    Returns:
      Two dictionaries by original names: quantities, and whole gradients of the loss.
    """
    variables = model.trainable_variables
    eagerly = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)       # one pass only: tracing would take longer than it
    try:
        with tf.GradientTape() as tape:
            forward = model(obs, noise, propagate_first=True)
            loss = model.loss(forward)
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
    finally:
        tf.config.run_functions_eagerly(eagerly)
    outputs = {**original_outputs(model, forward, counts), "target": loss}
    by_variable = {id(v): g for v, g in zip(variables, gradients)}
    by_name = {name: original.gather_original(columns, [by_variable[id(c.variable)] for c in columns])
               for name, columns in original.original_names(model).items()}
    return {name: value.numpy() for name, value in outputs.items()}, by_name


def compare(recording: Recording) -> List[Row]:
    """Compares every recorded quantity and gradient.

    Returns:
      A row a quantity, in the recording's order; one that we do not compute has difference inf.
    """
    outputs, gradients = compute(recording.model, recording.obs, recording.noise, recording.counts)
    rows = []
    for name, recorded in recording.outputs.items():
        difference = relative_difference(outputs[name], recorded) if name in outputs else float("inf")
        rows.append(Row(name, difference, FORWARD_TOLERANCE))
    for name, (norm, _) in recording.gradient_norms.items():
        tolerance = SCALE_OFFSET_TOLERANCE if name == SCALE_OFFSET else GRADIENT_TOLERANCE
        ours = np.linalg.norm(gradients[name].astype(np.float64)) if name in gradients else float("inf")
        rows.append(Row(f"gradient {name}", relative_difference(ours, norm), tolerance))
    missing = sorted(set(gradients) - set(recording.gradient_norms))
    rows.extend(Row(f"gradient {name} (not recorded)", float("inf"), GRADIENT_TOLERANCE) for name in missing)
    return rows


@attrs.frozen
class Arguments:
    """Compares our model with what the original program recorded."""

    folder: Annotated[str, tyro.conf.Positional]
    """Folder with flags.json, a checkpoint, inputs.npz, outputs.npz and gradient_norms.json."""


def main() -> int:
    arguments = parse(Arguments, "eval.compare_original")
    rows = compare(load_recording(arguments.folder))
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:{width}}  {row.difference:9.2e}  {'pass' if row.passed else 'FAIL'} (<= {row.tolerance:g})")
    failed = [row.name for row in rows if not row.passed]
    worst = max(rows, key=lambda row: row.difference / row.tolerance if row.passed else float("inf"))
    print(f"{arguments.folder}: {len(rows) - len(failed)} of {len(rows)} quantities equal the original's"
          + (f"; FAILED: {', '.join(failed[:5])}" if failed else f"; nearest to its tolerance: {worst.name}"))
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
