"""Bounds and likelihoods of a run on a data split, as a table and JSON.

    python -m eval.likelihood --run runs/sqair_0 --data data/balls4mass64.h5 --split test
    python -m eval.likelihood --run ORIGINAL_RUN --data data/balls4mass64.h5 --checkpoint all --k_particles 500

All frames are inferred. Many particles and many frames are computed in chunks, of which only log-probabilities and
counts are kept, not the canvases.
"""

from data_gen.console import parse, progress, run_module
from data_gen.errors import UserError
from data_gen.files import begins, check_output, fingerprint, output_path, to_json
from eval.options import Likelihood as Arguments

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.likelihood", lambda: parse(Arguments, "eval.likelihood"))

import math
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
import tensorflow as tf
from scipy.special import softmax

from eval import metrics
from eval.predict import generator, infer_parts, load, noise_seed
from eval.truth import Source, Stream
from sqair import spatial_transformer
from sqair.config import to_flags
from sqair.model import SQAIR
from sqair.runs import original
from sqair.runs.folder import BEST, CHECKPOINTS, versions
from sqair.runs.loading import checkpoint_fingerprint, fill
from sqair.runs.safetensors import WEIGHTS

_KIND = begins("a file of eval.likelihood", '{\n "results":')
_MOST_PARTICLES = 640  # B*K at once: about a GB
_MOST_OBJECTS = 255  # the largest object id in `groups`, uint8


def checkpoints_of(folder: str) -> list[str]:
    """The iterations of all checkpoints in a run folder, ours or the original's, in order.

    Raises:
      UserError: there is none.
    """
    if (pathlib.Path(folder) / WEIGHTS).is_file():
        return ["best"]  # a model to share is one checkpoint
    found = set(original.original_checkpoints(folder))
    for place in (CHECKPOINTS, BEST):
        for path in pathlib.Path(folder, place).glob("step-*.index"):
            if path.stem.removeprefix("step-").isdecimal():
                found.add(int(path.stem.removeprefix("step-")))
    if not found:
        raise UserError(f"{folder}: no checkpoint in it; expected a run folder of sqair.train or of the original")
    return [str(step) for step in sorted(found)]


def relational_log_likelihood(model: SQAIR, canvas: tf.Tensor, obs: tf.Tensor, collisions: np.ndarray) -> np.ndarray:
    """log p(x|z) over the pixels of colliding objects, for every particle.

    Args:
      canvas: [T, P, H, C*W] rows; obs: [T, B, H, W(, C)]; collisions: bool [T, B, H, W].

    Returns:
      [T, B, K], nats per frame.
    """
    std, colour = model.config.output_std, obs.shape.rank == 5
    canvas = spatial_transformer.rows_to_image(canvas, model.config.image_size[2]).numpy()
    frames = obs.numpy()[:, :, None]  # [T, B, 1, H, W(, C)]
    canvas = canvas.reshape([*frames.shape[:2], -1, *frames.shape[3:]])  # [T, B, K, H, W(, C)]
    # Frame by frame, since the pixels of all particles in float64 need much memory.
    return np.stack(
        [
            metrics.relational_log_likelihood(*frame, std, colour)
            for frame in zip(frames, canvas, collisions[:, :, None])
        ]
    )


def particles(
    model: SQAIR,
    stream: Stream,
    k_particles: int,
    rng: np.random.Generator,
    advance: Callable[[int], Any] = lambda n: None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Log-probabilities of K particles of a batch, in chunks of the model's own number of particles.

    Returns:
      log_weights [B, K]; data_ll, log_p, log_q, count and, if the data have collisions, relational_ll [B, T, K].
      And of the truth: count [B, T], -1 unknown, and, if the data have collisions, collides, bool [B, T].
    """
    chunks = []
    for _ in range(0, k_particles, model.config.k_particles):
        parts: list[dict[str, np.ndarray]] = []
        true_parts: list[dict[str, np.ndarray]] = []
        log_weights = []
        for _, truth, forward in infer_parts(model, stream, noise_seed(rng), advance=advance):
            obs = tf.constant(truth.frames.swapaxes(0, 1))
            shape = [obs.shape[0], *forward.log_weights.shape]  # T, B, K
            part = {
                name: value.numpy().reshape(shape)
                for name, value in (
                    ("data_ll", forward.data_ll),
                    ("log_p", forward.log_p),
                    ("log_q", forward.log_q),
                    ("count", forward.num_steps),
                )
            }
            true_parts.append({"count": truth.count})
            if truth.collisions is not None:
                part["relational_ll"] = relational_log_likelihood(
                    model, forward.canvas, obs, truth.collisions.swapaxes(0, 1)
                )
                true_parts[-1]["collides"] = np.asarray(truth.collisions.any((2, 3)))
            parts.append({name: value.swapaxes(0, 1) for name, value in part.items()})
            log_weights.append(forward.log_weights.numpy())
        chunks.append(_joined(parts, 1) | {"log_weights": sum(log_weights)})
    return ({name: value[..., :k_particles] for name, value in _joined(chunks, -1).items()}, _joined(true_parts, 1))


def _joined(parts: list[dict[str, np.ndarray]], axis: int) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts], axis) for name in parts[0]}


class Totals:
    """Sums over sequences of what `result` reports as means."""

    def __init__(self, n_slots: int):
        """Args: n_slots: N."""
        self.n_sequences = 0
        self._sums: dict[str, Any] = {}
        self._confusion = np.zeros((_MOST_OBJECTS + 1, n_slots + 1))
        self._raw_right = 0.0
        self._collides: Any = False

    def add(self, numbers: dict[str, np.ndarray], count: np.ndarray, collides: np.ndarray | None = None) -> None:
        """Adds sequences.

        Args:
          numbers: from `particles`.
          count: true numbers of objects [B, T], -1 unknown.
          collides: [B, T], whether objects collide; None if the data do not tell.
        """
        if collides is not None:
            self._collides |= collides.any(0)
        log_weights = numbers["log_weights"].astype(float)
        bounds = metrics.ParticleBounds().update(log_weights)
        weights = softmax(log_weights, -1)[:, None]  # [B, 1, K]
        kl = numbers["log_q"].astype(float) - numbers["log_p"]
        means = {"iwae": bounds.iwae, "vae": bounds.vae, "ess": bounds.effective_sample_size}
        for name, value in {**numbers, "kl": kl}.items():
            if name != "log_weights":
                means[name] = (weights * value).sum(-1)  # [B, T]
        for name, value in means.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.sum(0)
        self.n_sequences += len(count)

        known = count >= 0
        inferred = numbers["count"].astype(int)  # [B, T, K]
        truth = np.broadcast_to(count[..., None], inferred.shape)[known]
        weights = np.broadcast_to(weights, inferred.shape)[known]
        np.add.at(self._confusion, (truth, inferred[known]), weights)
        self._raw_right += (truth == inferred[known]).mean(-1).sum() if truth.size else 0.0

    def result(self, n_frames: int) -> dict[str, Any]:
        """The figures as JSON values."""
        sums = {name: value / self.n_sequences for name, value in self._sums.items()}
        by_frame = {
            name: sums[name] for name in ("data_ll", "relational_ll", "log_p", "log_q", "kl", "count") if name in sums
        }
        means: dict[str, float | None] = {name: float(value.mean()) for name, value in by_frame.items()}
        by_frame = {name: value.tolist() for name, value in by_frame.items()}
        if "relational_ll" in by_frame:  # None, and not 0, where no object collides
            means["relational_ll"] = means["relational_ll"] if np.any(self._collides) else None
            by_frame["relational_ll"] = [
                value if collides else None for value, collides in zip(by_frame["relational_ll"], self._collides)
            ]
        counted, n_slots = self._confusion.sum(), self._confusion.shape[1] - 1
        highest = np.flatnonzero(self._confusion.any(1)).max(initial=n_slots)
        return {
            "iwae": sums["iwae"],
            "vae": sums["vae"],
            "iwae_per_frame": sums["iwae"] / n_frames,
            "vae_per_frame": sums["vae"] / n_frames,
            "ess": sums["ess"],
            **means,
            "count_accuracy": np.trace(self._confusion) / counted if counted else None,
            "raw_count_accuracy": self._raw_right / counted if counted else None,
            "confusion": self._confusion[: highest + 1].tolist() if counted else None,
            "by_frame": by_frame,
        }


def evaluate(
    model: SQAIR,
    source: Source,
    k_particles: int,
    batch_size: int,
    seed: int,
    advance: Callable[[int], Any] = lambda n: None,
) -> dict[str, Any]:
    """Bounds and likelihoods, means over the sequences of a source.

    Args:
      model: its own number of particles is the size of the chunks.
      source: opened for this model.
      k_particles: K.
      batch_size: B.
      seed: of the noise, which depends on the chunks and batches too.
      advance: called with the number of frames just computed, over sequences and chunks.

    Returns:
      iwae, vae: nats per sequence, as the original reports them; *_per_frame, data_ll, relational_ll, kl, log_p, log_q:
      nats per frame, importance-weighted over particles except for the bounds; count: objects; ess: particles;
      count_accuracy, importance-weighted, and raw_count_accuracy, not; confusion: frames, true counts by inferred ones,
      importance-weighted; by_frame: lists over the frames. None where a figure is not defined, such as relational_ll
      where nothing collides.
    """
    totals = Totals(model.config.n_steps_per_image)
    for number, stream in enumerate(source.streams(batch_size)):
        numbers, truth = particles(model, stream, k_particles, generator(seed, number, 0), advance)
        truth = {name: value[: stream.size] for name, value in truth.items()}
        totals.add({name: value[: stream.size] for name, value in numbers.items()}, **truth)
    return totals.result(source.n_frames)


def chunk_size(k_particles: int, batch_size: int) -> int:
    """Particles per chunk: equal chunks that fit into memory; the surplus of the last one is dropped."""
    most = max(_MOST_PARTICLES // batch_size, 1)
    return math.ceil(k_particles / math.ceil(k_particles / most))


def results(arguments: Arguments) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yields the figures of every checkpoint asked for, and one line for each kind of figure that the data do not
    allow."""
    chosen = checkpoints_of(arguments.run) if arguments.checkpoint == "all" else [arguments.checkpoint]
    chunk = chunk_size(arguments.k_particles, arguments.batch_size)
    model = None
    for which in chosen:
        loaded = load(arguments.run, which, chunk, arguments.n_slots)
        if model is None:
            model = loaded.model
        else:
            fill(model, loaded.model)  # the first model is compiled
        with (
            Source(
                arguments.data, arguments.split, model.config.image_size, arguments.n_frames, arguments.n_sequences
            ) as source,
            progress(
                source.n_sequences * arguments.n_frames * -(-arguments.k_particles // chunk),
                f"step {loaded.step}",
                "frames",
            ) as advance,
        ):
            for line in source.describe() if which == chosen[0] else ():
                print(line, file=sys.stderr)
            figures = evaluate(model, source, arguments.k_particles, arguments.batch_size, arguments.seed, advance)
            yield (
                {
                    "run": arguments.run,
                    "checkpoint": loaded.source,
                    "step": loaded.step,
                    "data": arguments.data,
                    "split": arguments.split,
                    "n_sequences": source.n_sequences,
                    "n_frames": arguments.n_frames,
                    "k_particles": arguments.k_particles,
                    "n_slots": model.config.n_steps_per_image,
                    "seed": arguments.seed,
                    **figures,
                    "checkpoint_fingerprint": checkpoint_fingerprint(loaded.source),
                    "data_fingerprint": fingerprint(arguments.data),
                    "flags": to_flags(loaded.config),
                },
                source.notes,
            )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def text(figures: dict[str, Any]) -> str:
    """One checkpoint's figures for the terminal."""
    k, frames = figures["k_particles"], figures["n_frames"]
    rows = [
        (f"IWAE, {k} particles", _number(figures["iwae_per_frame"], 2), f"{figures['iwae']:.2f} over {frames} frames"),
        ("VAE bound", _number(figures["vae_per_frame"], 2), f"{figures['vae']:.2f} over {frames} frames"),
        ("log p(x|z)", _number(figures["data_ll"], 2), ""),
        ("relational log-likelihood", _number(figures.get("relational_ll"), 2), ""),
        ("KL", _number(figures["kl"], 2), ""),
        ("count accuracy", _number(figures["count_accuracy"], 4), "share of frames"),
        ("objects", _number(figures["count"], 2), "per frame"),
        ("effective sample size", _number(figures["ess"], 2), f"of {k} particles"),
    ]
    lines = [
        f"{figures['checkpoint']}, step {figures['step']:,}; {figures['data']}, {figures['split']}: "
        f"{figures['n_sequences']:,} sequences of {frames} frames",
        "nats per frame, unless stated otherwise",
    ]
    lines += [f"  {name:28}{value:>12}  {note}".rstrip() for name, value, note in rows]
    if figures["confusion"] is not None:
        confusion = np.array(figures["confusion"])
        lines.append("  frames by true count (row) and inferred count (column)")
        lines.append("  " + " " * 6 + "".join(f"{column:>10}" for column in range(confusion.shape[1])))
        lines += [
            f"  {row:>6}" + "".join(f"{value:10.0f}" for value in values)
            for row, values in enumerate(confusion)
            if values.any()
        ]
    return "\n".join(lines)


_COLUMNS = (
    "step",
    "iwae",
    "vae",
    "iwae_per_frame",
    "vae_per_frame",
    "data_ll",
    "relational_ll",
    "kl",
    "count_accuracy",
    "ess",
)


def table(rows: list[dict[str, Any]]) -> str:
    """Several checkpoints' figures, one per row; iwae and vae in nats per sequence, the rest per frame."""
    lines = ["".join(f"{name:>16}" for name in _COLUMNS)]
    for row in rows:
        cells = [f"{row['step']:,}"] + [_number(row.get(name), 4 if "accuracy" in name else 2) for name in _COLUMNS[1:]]
        lines.append("".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    arguments = parse(Arguments, "eval.likelihood")
    if arguments.out:
        check_output(arguments.out, _KIND, (arguments.data,))
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for figures, notes in results(arguments):  # noqa: B007  notes are printed after the loop
        rows.append(figures)
        print(text(figures) + "\n", flush=True)
    if arguments.checkpoint == "all":
        print(table(rows))
    for note in notes:
        print(f"note: {note}")
    if arguments.out:
        content = {
            "results": rows,
            "settings": attrs.asdict(attrs.evolve(arguments, out=str(arguments.out))),
            "notes": notes,
            "versions": versions(),
        }
        with output_path(arguments.out, _KIND, (arguments.data,)) as temporary:
            temporary.write_text(to_json(content))
        print(f"wrote {arguments.out}")
