"""Runs our model on recorded passes of the original program, and compares every quantity.

    python -m eval.compare_original FOLDER

FOLDER holds flags.json, model.ckpt-<itr>.*, inputs.npz, outputs.npz and gradient_norms.json, as described in
../shared/reference/README.md, and perhaps gradients.npz. Exit code 0 only if everything is within tolerance.

Both programs round to float32, so they differ where rounding matters: in sums that cancel, at the edges of pixels.
How far rounding moves a quantity is measured: the pass is repeated with every weight moved to the next float32 above
or below, at random. A quantity may differ by FACTOR times the furthest that it moved, plus what the longest sum, over
all pixels of all canvases, loses when it is added up in another order.
"""

from data_gen.console import parse, run_module
from data_gen.errors import UserError
from eval.options import CompareOriginal as Arguments

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.compare_original", lambda: parse(Arguments, "eval.compare_original"))

import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import attrs
import numpy as np
import tensorflow as tf

from eval.original_sampling import OriginalSampling, Sampled, nothing_sampled
from sqair import spatial_transformer
from sqair.config import TrainConfig, load_flags
from sqair.devices import prepare_tensorflow
from sqair.discover import number_of_steps
from sqair.model import SQAIR, Forward, report
from sqair.noise import Noise, PhaseNoise
from sqair.objectives import iwae
from sqair.runs import original
from sqair.runs.values import read_values

MOVED_PASSES = 16
FACTOR = 4.0
LITTLE = 1e-2  # where rounding requires a greater tolerance, equality means little


class Row(NamedTuple):
    """One compared quantity: its difference from the recorded one, how far rounding moves it, and the tolerance that
    follows; all relative to the largest recorded magnitude."""

    name: str
    difference: float
    rounding: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN


class Recording(NamedTuple):
    """One folder of recorded figures: its model with the recorded weights, inputs and expected outputs.

    target, l2: of the loss. quantities: expected, by their original names. gradients: variable -> norm, sum and, where
    recorded, the whole gradient. ignored: flags of flags.json that are not applied -> why.
    """

    model: SQAIR
    target: str
    l2: float
    obs: tf.Tensor
    noise: Noise
    counts: tf.Tensor
    outputs: dict[str, np.ndarray]
    gradients: dict[str, dict[str, np.ndarray]]
    ignored: dict[str, str]


def _load_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the folder must hold the original's recorded figures") from None
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a NumPy archive ({error})") from None


def load_inputs(inputs: dict[str, np.ndarray]) -> tuple[tf.Tensor, Noise, tf.Tensor]:
    """Recorded inputs -> obs [T, B, H, W], `Noise` [T, N, P, d], counts int32 [T, B].

    Raises:
      UserError: a member is missing.
    """
    wanted = ["imgs", "nums"] + [f"noise_{p}_{x}" for p in ("prop", "disc") for x in ("where", "what", "presence")]
    missing = [x for x in wanted if x not in inputs]
    if missing:
        raise UserError(f"inputs.npz: member {missing[0]} is missing")
    noise = Noise(
        *(
            PhaseNoise(*(tf.constant(inputs[f"noise_{phase}_{x}"]) for x in ("where", "what", "presence")))
            for phase in ("prop", "disc")
        )
    )
    return tf.constant(inputs["imgs"]), noise, tf.constant(inputs["nums"].sum(-1), tf.int32)


def _check_noise(folder: pathlib.Path, noise: Noise, leading: list[int], n_what: int) -> None:
    for phase, recorded in zip(("prop", "disc"), noise):
        for name, value, size in zip(recorded._fields, recorded, (4, n_what, 1)):
            expected = tuple(leading + [size])
            if tuple(value.shape) != expected:
                raise UserError(
                    f"{folder / 'inputs.npz'}: noise_{phase}_{name} has shape {tuple(value.shape)}, the "
                    f"flags and images ask for {expected}"
                )


def load_gradients(folder: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """Variable -> {"norm", "sum"} of its gradient, and {"whole"} where it was recorded."""
    path = folder / "gradient_norms.json"
    try:
        norms = json.loads(path.read_text())
        gradients = {
            name: {"norm": np.array(norm, np.float64), "sum": np.array(total, np.float64)}
            for name, (norm, total) in norms.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as variable -> [norm, sum] ({error})") from None
    whole = _load_npz(folder / "gradients.npz") if (folder / "gradients.npz").exists() else {}
    for name, value in whole.items():
        gradients.setdefault(name.replace("|", "/"), {})["whole"] = value
    return gradients


def load_recording(folder: str | os.PathLike) -> Recording:
    """Reads a folder of recorded figures.

    Raises:
      UserError: something is missing or does not fit.
    """
    folder = pathlib.Path(folder)
    path = folder / "flags.json"
    config, unknown = load_flags(path)
    if config.model.relation != "none":
        raise UserError(f"{path}: relation is {config.model.relation}, but the original has no relations")
    given = json.loads(path.read_text())
    ignored = {name: "not known" for name in unknown}
    ignored.update(
        {
            field.name: "no part of one pass"
            for field in attrs.fields(TrainConfig)
            if field.name in given and field.name not in ("target", "l2")
        }
    )
    obs, noise, counts = load_inputs(_load_npz(folder / "inputs.npz"))
    particles, k = noise.discovery.what.shape[2], config.model.k_particles
    if particles != obs.shape[1] * k:
        raise UserError(
            f"{folder}: noise for {particles} particles, but {obs.shape[1]} sequences and k_particles "
            f"{k} in flags.json make {obs.shape[1] * k}"
        )
    prefix = original.latest_original(str(folder))
    values = read_values(prefix)
    model = SQAIR(
        attrs.evolve(
            config.model, image_shape=tuple(obs.shape[2:]), mean_image="decoder/air_decoder/Variable" in values
        )
    )
    original.load_original(model, prefix, values)
    _check_noise(folder, noise, [obs.shape[0], config.model.n_steps_per_image, particles], config.model.n_what)
    return Recording(
        model,
        config.train.target,
        config.train.l2,
        obs,
        noise,
        counts,
        _load_npz(folder / "outputs.npz"),
        load_gradients(folder),
        ignored,
    )


def original_outputs(model: SQAIR, forward: Forward, drawn: Sampled, counts: tf.Tensor) -> dict[str, tf.Tensor]:
    """A forward pass under the names of the original's recorded quantities, [T, P, ...].

    Args: model; its pass; the slots that the pass drew; true number of objects, int32 [T, B].
    """
    frame, latents = forward.frame, forward.latents
    channels = model.config.image_size[2]
    h = model.config.glimpse_size
    glimpse = tf.reshape(forward.glimpse, forward.glimpse.shape.as_list()[:3] + [h, h] + [channels] * (channels > 1))
    discovered, propagated = frame.discovered, frame.propagated
    prop_presence, disc_presence = propagated.presence[..., 0], discovered.presence[..., 0]
    kept_probability = tf.sigmoid(drawn.inferred.presence_logit[..., 0])
    n_propagated, n_discovered = (tf.reduce_sum(x.presence, [2, 3]) for x in (drawn.inferred, drawn.discovered))
    scalars = report(forward, counts)
    return {
        "what": latents.what,
        "what_loc": latents.what_loc,
        "what_scale": latents.what_scale,
        "where": latents.where,
        "where_loc": latents.where_loc,
        "where_scale": latents.where_scale,
        "presence": forward.presence,
        "presence_logit": latents.presence_logit[..., 0],
        "presence_prob": tf.sigmoid(latents.presence_logit[..., 0]),
        "obj_id": frame.object_id,
        "canvas": spatial_transformer.rows_to_image(forward.canvas, channels),
        "glimpse": glimpse,
        "prop_pres": prop_presence,
        "disc_pres": disc_presence,
        "num_prop_steps_per_sample": n_propagated,
        "num_disc_steps_per_sample": n_discovered,
        "num_steps_per_sample": forward.num_steps,
        "prop_prob": frame.presence_prev
        * tf.where(drawn.sampled.presence[..., 0] > 0, kept_probability, 1.0 - kept_probability),
        "disc_prob": number_of_steps(tf.sigmoid(discovered.presence_logit[..., 0])),
        "disc_what_log_prob": forward.q_discovery.what,
        "disc_where_log_prob": forward.q_discovery.where,
        "disc_log_prob": forward.q_discovery.discrete,
        "disc_what_prior_log_prob": forward.p_discovery.what,
        "disc_where_prior_log_prob": forward.p_discovery.where,
        "disc_prior_log_prob": forward.p_discovery.discrete,
        "prop_what_log_prob": forward.q_propagation.what,
        "prop_where_log_prob": forward.q_propagation.where,
        "prop_log_prob": forward.q_propagation.discrete,
        "prop_what_prior_log_prob": forward.p_propagation.what,
        "prop_where_prior_log_prob": forward.p_propagation.where,
        "prop_prior_log_prob": forward.p_propagation.discrete,
        "discrete_log_prob": forward.discrete_log_prob,
        "step_log_prob": forward.discrete_log_prob,
        "data_ll_per_sample": forward.data_ll,
        "kl_per_sample": forward.log_q - forward.log_p,
        "log_q_z_given_x_per_sample": forward.log_q,
        "log_p_z_per_sample": forward.log_p,
        "log_weights_per_timestep": forward.log_weights_per_frame,
        "log_weights": forward.log_weights,
        "importance_weights": forward.importance_weights,
        "elbo_iwae_per_example": iwae(forward.log_weights),
        "elbo_iwae": scalars.iwae,
        "elbo_vae": scalars.vae,
        "normalised_elbo_iwae": scalars.iwae_per_frame,
        "normalised_elbo_vae": scalars.vae_per_frame,
        "data_ll": scalars.data_ll,
        "kl": scalars.kl,
        "log_p_z": scalars.log_p,
        "log_q_z_given_x": scalars.log_q,
        "mse": scalars.mse,
        "raw_mse": scalars.raw_mse,
        "num_steps": scalars.num_steps,
        "num_disc_steps": forward.weighted_mean(n_discovered),
        "num_prop_steps": forward.weighted_mean(n_propagated),
        "num_step_accuracy": scalars.num_step_accuracy,
        "raw_num_step_accuracy": scalars.raw_num_step_accuracy,
        "ess": scalars.ess,
    }


class Pass(NamedTuple):
    """One forward and backward pass, by original names: quantities, and gradients as norm, sum and whole. presences:
    all that were drawn."""

    outputs: dict[str, np.ndarray]
    gradients: dict[str, dict[str, np.ndarray]]
    presences: list[np.ndarray]


def make_pass(recording: Recording) -> Callable[[], Pass]:
    """A function that computes a pass with the model's current weights."""
    model, config = recording.model, recording.model.config
    sampling = OriginalSampling(model)

    def forward() -> tuple[Forward, Sampled]:
        if config.sample_from_prior:
            return sampling(recording.obs, recording.noise)
        forward = model(recording.obs, recording.noise, propagate_first=True)
        return forward, nothing_sampled(forward.frame)

    def compute() -> Pass:
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            weighed, drawn = forward()
            # One particle leaves VIMCO none to hold out; the original's values for that are left out.
            loss = model.loss(weighed, recording.target if config.k_particles > 1 else "iwae", recording.l2)
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        outputs = {**original_outputs(model, weighed, drawn, recording.counts), "target": loss}
        by_variable = {id(v): g.numpy() for v, g in zip(variables, gradients)}
        whole = {
            name: original.gather_original(columns, [by_variable[id(c.variable)] for c in columns])
            for name, columns in original.original_names(model).items()
        }
        return Pass(
            {name: value.numpy() for name, value in outputs.items()},
            {
                name: {
                    "norm": np.asarray(np.linalg.norm(g.astype(np.float64))),
                    "sum": g.sum(dtype=np.float64),
                    "whole": g,
                }
                for name, g in whole.items()
            },
            [x.presence.numpy() for x in drawn[1:]],
        )

    return compute


def moved_passes(model: SQAIR, compute: Callable[[], Pass], base: Pass) -> list[Pass]:
    """Passes with every weight moved to the next float32 above or below; the weights are put back.

    A pass in which a presence flips has other objects, which is more than rounding: another pass replaces it.
    """
    random, values = np.random.RandomState(0), [v.numpy() for v in model.trainable_variables]
    passes: list[Pass] = []
    try:
        for _ in range(2 * MOVED_PASSES):
            for variable, value in zip(model.trainable_variables, values):
                up = random.random_sample(value.shape) < 0.5
                variable.assign(np.nextafter(value, np.where(up, np.inf, -np.inf).astype(np.float32)))
            moved = compute()
            if all(np.array_equal(x, y) for x, y in zip(moved.presences, base.presences)):
                passes.append(moved)
            if len(passes) == MOVED_PASSES:
                break
    finally:
        for variable, value in zip(model.trainable_variables, values):
            variable.assign(value)
    if len(passes) < MOVED_PASSES // 2:
        raise UserError(
            f"presences flip in {2 * MOVED_PASSES - len(passes)} of {2 * MOVED_PASSES} passes with weights "
            "moved by rounding: this recording decides nothing; record other noise"
        )
    return passes


def _quantities(outputs: dict[str, np.ndarray], gradients: dict[str, dict[str, np.ndarray]]) -> dict[str, tuple]:
    """Name of a row -> (value, magnitude that differences are relative to)."""
    rows = {name: (value, np.abs(value).max() if np.size(value) else 0.0) for name, value in outputs.items()}
    for name, parts in gradients.items():
        for part, value in parts.items():
            rows[f"gradient of {name}, {part}"] = value, parts["norm"] if part == "sum" else np.abs(value).max()
    return rows


def relative_difference(ours, recorded, magnitude: float) -> float:
    """max |ours - recorded| / magnitude, or undivided if that is zero; inf if the shapes differ, NaN as in ours."""
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    if ours.shape != recorded.shape:
        return float("inf")
    return float(np.abs(ours - recorded).max(initial=0.0) / (magnitude or 1.0))


class Measured(NamedTuple):
    """What our model computes of a recording: one pass, and passes with moved weights."""

    base: Pass
    moved: list[Pass]


def measure(recording: Recording) -> Measured:
    """Computes all that a recording is compared with."""
    compute = make_pass(recording)
    base = compute()
    return Measured(base, moved_passes(recording.model, compute, base))


def compare(recording: Recording, measured: Measured) -> tuple[list[Row], dict[str, str]]:
    """Compares every recorded quantity and gradient.

    Returns:
      A row per quantity, in the recording's order, with difference inf for one that we do not compute; and the
      quantities that cannot be compared -> why.
    """
    ours, *moved = (_quantities(x.outputs, x.gradients) for x in (measured.base, *measured.moved))
    least = 0.5 * float(np.finfo(np.float32).eps) * math.sqrt(measured.base.outputs["canvas"].size)
    rows, left_out = [], {}
    for name, (recorded, magnitude) in _quantities(recording.outputs, recording.gradients).items():
        if recording.model.config.k_particles == 1 and not np.isfinite(recorded).all():
            left_out[name] = "one particle leaves VIMCO none to hold out: not finite in the original"
            continue
        if name not in ours:
            rows.append(Row(name, float("inf"), 0.0, least))
            continue
        value = ours[name][0]
        rounding = max(relative_difference(x[name][0], value, magnitude) for x in moved)
        rows.append(Row(name, relative_difference(value, recorded, magnitude), rounding, FACTOR * rounding + least))
    left_out.update({name: "not recorded" for name in measured.base.outputs if name not in recording.outputs})
    missing = sorted(set(measured.base.gradients) - set(recording.gradients))
    rows.extend(Row(f"gradient of {name} (not recorded)", float("inf"), 0.0, least) for name in missing)
    return rows, left_out


def _print_named(what: str, names: dict[str, str]) -> None:
    """One line per reason: `what`, the names that have the reason, and the reason."""
    for reason in dict.fromkeys(names.values()):
        print(f"{what}: {', '.join(name for name in names if names[name] == reason)} ({reason})")


def main() -> int:
    arguments = parse(Arguments, "eval.compare_original")
    prepare_tensorflow()
    recording = load_recording(arguments.folder)
    rows, left_out = compare(recording, measure(recording))
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}  difference  by rounding  tolerance")
    for row in rows:
        print(
            f"{row.name:{width}}  {row.difference:10.2e}  {row.rounding:11.2e}  {row.tolerance:9.2e}  "
            f"{'pass' if row.passed else 'FAIL'}"
        )
    _print_named("flags not applied", recording.ignored)
    _print_named("left out", left_out)
    _print_named("says little", {row.name: "rounding alone moves it" for row in rows if row.tolerance > LITTLE})
    failed = [row.name for row in rows if not row.passed]
    worst = max(rows, key=lambda row: row.difference / row.tolerance if row.passed else float("inf"))
    print(
        f"{arguments.folder}: {len(rows) - len(failed)} of {len(rows)} quantities equal the original's"
        + (f"; FAILED: {', '.join(failed[:5])}" if failed else f"; nearest to its tolerance: {worst.name}")
    )
    return 1 if failed else 0
