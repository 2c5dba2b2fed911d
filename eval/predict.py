"""Writes a model's inferences and predictions on a data split to one file, for metrics, tables and figures.

    python -m eval.predict --run runs/sqair_0 --data data/balls4mass64.h5 --out results/sqair_0_balls4mass64.h5

The paper's protocol (section 3): the first frames are inferred, the objects of the last one are sampled from the
learned propagation prior. Every sample is a pass of its own over the sequence, with K particles of its own noise, of
which one is drawn by its importance weight on the inferred frames. The predicted frames do not affect the draw: weights
that included their likelihood would pick the luckiest guess and score it as the prediction.
One more pass infers all frames, for the bounds. The file's members are listed in `eval.predictions`.

Sequences are inferred `PART` frames at a time, each part from the state after the part before it, so that memory does
not grow with their length. A sample of more than `KEPT` frames is computed twice: for the weights, and, once a particle
is drawn, for its values.
"""

from data_gen.console import parse, progress, run_module
from data_gen.files import check_output, fingerprint
from eval.options import Predict as Arguments

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.predict", lambda: parse(Arguments, "eval.predict"))

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import attrs
import numpy as np
import tensorflow as tf

from data_gen.writer import new_file
from eval import geometry, metrics
from eval.predictions import PREDICTIONS, About, Writer
from eval.truth import PART, Source, Stream, Truth
from sqair import spatial_transformer
from sqair.config import to_flags
from sqair.devices import prepare_tensorflow
from sqair.model import SQAIR, Forward, resample
from sqair.runs.folder import versions
from sqair.runs.loading import Run, checkpoint_fingerprint, load_run

KEPT = 60  # the longest sequence, in frames, whose particles are all kept until one is drawn


def load(path: str, which: str, k_particles: int, n_slots: int | None = None) -> Run:
    """Loads a run for evaluation.

    Args:
      path, which: see `sqair.runs.loading.find_checkpoint`.
      k_particles: K.
      n_slots: N; None for the run's own.

    Returns:
      A `Run`.

    Raises:
      UserError: the run is missing, damaged, or cannot have that many slots.
    """
    prepare_tensorflow()
    changes = {"k_particles": k_particles, **({"n_steps_per_image": n_slots} if n_slots else {})}
    return load_run(path, which, **changes)


def generator(*numbers: int) -> np.random.Generator:
    """The random generator of one pass, seeded by (seed, batch, pass)."""
    return np.random.default_rng(numbers)


def noise_seed(rng: np.random.Generator) -> np.ndarray:
    """A seed for `SQAIR.draw_noise`, int32 [2]."""
    return rng.integers(2**31, size=2, dtype=np.int32)


class Drawn(NamedTuple):
    """The particle drawn of each of B sequences, over T frames; batch second, as in the model.

    what [T, B, N, D]; where [T, B, N, 4]; presence, object_id [T, B, N]; canvas [T, B, H, W(, C)];
    pasted [T, B, N, H, W], see `paste`; attention [T, B, heads, rows, rows] or [T, B, 0];
    log_weights [B, K] of the inferred frames; particle [B].
    """

    what: tf.Tensor
    where: tf.Tensor
    presence: tf.Tensor
    object_id: tf.Tensor
    canvas: tf.Tensor
    pasted: tf.Tensor
    attention: tf.Tensor
    log_weights: tf.Tensor
    particle: tf.Tensor


def infer(model: SQAIR, obs: tf.Tensor, seed: np.ndarray, first_generated: int | None = None) -> Forward:
    """One pass: frames from `first_generated` on are predicted, the others inferred.

    Args:
      model: any.
      obs: [T, B, H, W(, C)].
      seed: int32 [2], of the noise.
      first_generated: T or None: infer all. The flags sample_from_prior and generate_after are ignored.

    Returns:
      `Forward`.
    """
    n_frames, batch = obs.shape[:2]
    last_inferred = (n_frames if first_generated is None else first_generated) - 1
    return model(obs, model.draw_noise(seed, n_frames, batch), generate_after=last_inferred)


def infer_parts(
    model: SQAIR,
    stream: Stream,
    seed: np.ndarray,
    first_generated: int | None = None,
    advance: Callable[[int], Any] = lambda n: None,
) -> Iterator[tuple[int, Truth, Forward]]:
    """The same pass as `infer`, with the same noise, but with only some frames at a time in memory.

    Args:
      model: any.
      stream: the sequences.
      seed, first_generated: see `infer`.
      advance: called with the number of frames, over all sequences, after each part.

    Yields:
      The index of the first frame of a part, its `Truth` and its `Forward`.
    """
    last_inferred = (stream.n_frames if first_generated is None else first_generated) - 1
    state = None
    for first, truth in stream.parts():
        obs = tf.constant(truth.frames.swapaxes(0, 1))
        n_frames, batch = obs.shape[:2]
        noise = model.draw_noise(seed, n_frames, batch, first)
        if not model.sequence.is_compiled:
            print(
                f"compiling the model for {stream.batch_size} x {model.config.k_particles} particles, "
                f"{model.config.n_steps_per_image} slots ...",
                file=sys.stderr,
                flush=True,
            )
        forward = model(obs, noise, generate_after=last_inferred, state=state, first=first)
        state = forward.state
        advance(stream.size * obs.shape[0])
        yield first, truth, forward


def paste(model: SQAIR, glimpse: tf.Tensor, where: tf.Tensor, presence: tf.Tensor) -> tf.Tensor:
    """What each slot adds to the canvas.

    Args:
      model: for its sizes.
      glimpse: [..., N, h*w*C]; where: [..., N, 4]; presence: [..., N].

    Returns:
      [..., N, H, W], mean over the channels; 0 where the slot is empty.
    """
    height, width, channels = model.config.image_size
    size = model.config.glimpse_size
    shape = presence.shape.as_list()
    pasted = spatial_transformer.paste(
        tf.reshape(glimpse, [-1, 1, glimpse.shape[-1]]),
        tf.reshape(where, [-1, 1, 4]),
        tf.reshape(presence, [-1, 1]),
        (size, size, channels),
        (height, width),
    )  # [L*N, H, C*W]
    return tf.reduce_mean(tf.reshape(pasted, shape + [height, channels, width]), -2)


def draw_particle(model: SQAIR, forward: Forward, log_weights: tf.Tensor, uniform: tf.Tensor) -> Drawn:
    """Draws one particle per sequence by its importance weight.

    Args:
      model: that made the pass.
      forward: the pass, or a part of it.
      log_weights: [B, K], of all inferred frames of the pass.
      uniform: [B] uniform noise.

    Returns:
      `Drawn`.
    """
    batch, k = log_weights.shape
    forward = forward._replace(log_weights=log_weights)

    def drawn(x):
        return resample(forward, x, uniform)

    presence = drawn(forward.presence)
    present = presence[..., None]
    where = drawn(forward.latents.where)
    return Drawn(
        what=drawn(forward.latents.what) * present,
        where=where * present,
        presence=presence,
        object_id=drawn(forward.frame.object_id),
        canvas=spatial_transformer.rows_to_image(drawn(forward.canvas), model.config.image_size[2]),
        pasted=paste(model, drawn(forward.glimpse), where, presence),
        attention=drawn(forward.frame.attention),
        log_weights=log_weights,
        particle=drawn(tf.tile(tf.range(k), [batch])[None])[0],
    )


def sample(
    model: SQAIR,
    stream: Stream,
    first_generated: int,
    rng: np.random.Generator,
    advance: Callable[[int], Any] = lambda n: None,
) -> Iterator[tuple[int, Truth, Drawn]]:
    """One particle of each sequence, drawn by its importance weight on the inferred frames, some frames at a time.

    Args:
      model: any.
      stream: the sequences.
      first_generated: frames from this one on are predicted and do not affect the draw; T to infer all.
      rng: source of the noise.
      advance: see `infer_parts`; it is called with `frames_of_a_sample` frames per sequence in all.

    Yields:
      The index of the first frame of a part, its `Truth` and its `Drawn`.
    """
    seed, kept, log_weights = noise_seed(rng), [], []
    uniform = tf.constant(rng.random(stream.batch_size, np.float32))
    for part in infer_parts(model, stream, seed, first_generated, advance):
        first, truth, forward = part
        log_weights.append(tf.reduce_sum(forward.log_weights_per_frame[: max(first_generated - first, 0)], 0))
        if stream.n_frames <= KEPT:
            kept.append(part)
        elif first + truth.frames.shape[1] >= first_generated:
            break
    weights = tf.reshape(tf.add_n(log_weights), forward.log_weights.shape)
    for first, truth, forward in kept or infer_parts(model, stream, seed, first_generated, advance):
        yield first, truth, draw_particle(model, forward, weights, uniform)


def frames_of_a_sample(n_frames: int, first_generated: int) -> int:
    """The frames per sequence that `sample` computes; in long sequences some are computed twice."""
    return n_frames if n_frames <= KEPT else n_frames + min(PART * math.ceil(first_generated / PART), n_frames)


def likelihoods(truth: Truth, canvas: np.ndarray, std: float) -> dict[str, np.ndarray]:
    """Log-likelihoods of canvases, nats per frame, in float64.

    Args:
      truth: B sequences.
      canvas: [B, T, H, W(, C)], means of the pixels.
      std: their standard deviation.

    Returns:
      Members of `eval.predictions`, without the samples' axis: data_ll [B, T]; relational_ll [B, T] if the data have
      collisions; object_ll [B, T, n] if they have groups and positions.
    """
    pixels = metrics.gaussian_log_likelihood(truth.frames, canvas, std, truth.frames.ndim == 5)  # [B, T, H, W]
    found = {"rollout/data_ll": pixels.sum((-2, -1))}
    if truth.collisions is not None:
        found["rollout/relational_ll"] = metrics.masked_sum(pixels, truth.collisions)
    if truth.groups is not None and truth.pixels is not None:
        objects = range(1, truth.pixels.shape[-1] + 1)
        found["rollout/object_ll"] = np.stack([metrics.masked_sum(pixels, truth.groups == i) for i in objects], -1)
    return found


def rollout(
    model: SQAIR,
    stream: Stream,
    first_generated: int,
    rng: np.random.Generator,
    canvases: bool,
    advance: Callable[[int], Any] = lambda n: None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """One sample of a batch, some frames at a time: yields the index of the first of them, and members of the group
    `rollout` without the samples' axis, [B, ...]."""
    for first, truth, drawn in sample(model, stream, first_generated, rng, advance):
        found = {f"rollout/{name}": value.numpy() for name, value in drawn._asdict().items()}
        found = {name: value.swapaxes(0, 1) if value.ndim > 2 else value for name, value in found.items()}
        canvas, attention = found.pop("rollout/canvas"), found.pop("rollout/attention")
        pasted = found.pop("rollout/pasted")
        found |= likelihoods(truth, canvas, model.config.output_std)
        found["rollout/segmentation"] = geometry.segmentation(pasted)
        found["rollout/box"], found["rollout/centre"] = geometry.boxes_and_centres_from_pixels(pasted)
        if canvases:
            found["rollout/canvas"] = as_bytes(canvas)
        if attention.ndim == 5:
            found["rollout/attention"] = attention
        yield first, found


def inference(
    model: SQAIR, stream: Stream, rng: np.random.Generator, advance: Callable[[int], Any] = lambda n: None
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """All frames of a batch inferred, some at a time: yields the index of the first of them, and members of the groups
    `truth` and `inference`, [B, K, ...]; log_weights, which are of all frames, come with the last part."""
    log_weights: list[np.ndarray] = []
    for first, truth, forward in infer_parts(model, stream, noise_seed(rng), advance=advance):
        found = {"data_ll": forward.data_ll, "log_p": forward.log_p, "log_q": forward.log_q, "count": forward.num_steps}
        batch, k = forward.log_weights.shape
        log_weights.append(forward.log_weights.numpy())
        members = true_members(truth) | {
            f"inference/{name}": value.numpy().reshape(-1, batch, k).transpose(1, 2, 0) for name, value in found.items()
        }  # [T, P] -> [B, K, T]
        if first + len(forward.data_ll) == stream.n_frames:
            members["inference/log_weights"] = sum(log_weights)
        yield first, members


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Intensities, clipped to [0, 1], as uint8."""
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def true_members(truth: Truth) -> dict[str, np.ndarray]:
    """The members of the group `truth`."""
    found = truth._asdict() | {"frames": as_bytes(truth.frames)}
    return {f"truth/{name}": value for name, value in found.items() if value is not None}


def predict(
    model: SQAIR,
    source: Source,
    first_generated: int,
    n_samples: int,
    batch_size: int,
    seed: int,
    canvases: bool,
    advance: Callable[[int], Any] = lambda n: None,
) -> Iterator[tuple[Mapping[str, int], dict[str, np.ndarray]]]:
    """Yields parts of the members of `eval.predictions`: where each begins along its axes S, M and T, and the arrays.

    A batch of sequences, a sample and `PART` frames are computed at a time. The noise depends on the seed, the number
    of the batch and of the sample, and on the size of the batch.
    """
    for number, stream in enumerate(source.streams(batch_size)):
        parts = [(0, inference(model, stream, generator(seed, number, 0), advance))]
        parts += [
            (i, rollout(model, stream, first_generated, generator(seed, number, 1 + i), canvases, advance))
            for i in range(n_samples)
        ]
        for i, frames in parts:
            for first, members in frames:
                yield (
                    {"S": stream.first, "M": i, "T": first},
                    {
                        name: value[: stream.size, None] if name.startswith("rollout/") else value[: stream.size]
                        for name, value in members.items()
                    },
                )


def settings(arguments: Arguments) -> dict[str, Any]:
    """The options as JSON values."""
    return attrs.asdict(arguments) | {"out": str(arguments.out)}


def write(arguments: Arguments) -> list[str]:
    """Writes the file of predictions.

    Returns:
      One line for each kind of figure that the data do not allow.

    Raises:
      UserError: run, data and options do not fit together.
    """
    check_output(arguments.out, PREDICTIONS, (arguments.data,))
    loaded = load(arguments.run, arguments.checkpoint, arguments.k_particles, arguments.n_slots)
    model, first_generated = loaded.model, arguments.n_frames - arguments.n_generated
    with (
        Source(
            arguments.data, arguments.split, model.config.image_size, arguments.n_frames, arguments.n_sequences
        ) as source,
        new_file(arguments.out, PREDICTIONS, (arguments.data,)) as file,
    ):
        for line in source.describe():
            print(line, file=sys.stderr)
        about = About(
            run=loaded.folder,
            checkpoint=loaded.source,
            step=loaded.step,
            flags=to_flags(loaded.config),
            trained_slots=loaded.trained.model.n_steps_per_image,
            data=os.fspath(arguments.data),
            split=arguments.split,
            first_generated=first_generated,
            settings=settings(arguments),
            notes=source.notes,
            versions=versions(),
            checkpoint_fingerprint=checkpoint_fingerprint(loaded.source),
            data_fingerprint=fingerprint(arguments.data),
        )
        sizes = {"S": source.n_sequences, "M": arguments.n_samples, "T": arguments.n_frames}
        writer = Writer(file, about, sizes, {"S": arguments.batch_size, "M": 1, "T": PART})
        frames = arguments.n_frames + arguments.n_samples * frames_of_a_sample(arguments.n_frames, first_generated)
        with progress(source.n_sequences * frames, "predicting", "frames") as advance:
            for place, members in predict(
                model,
                source,
                first_generated,
                arguments.n_samples,
                arguments.batch_size,
                arguments.seed,
                arguments.canvases,
                advance,
            ):
                writer.write(members, place)
    return source.notes


def main() -> None:
    arguments = parse(Arguments, "eval.predict")
    for note in write(arguments):
        print(f"note: {note}")
    print(f"wrote {arguments.out} ({os.path.getsize(arguments.out) / 1e6:.1f} MB)")
