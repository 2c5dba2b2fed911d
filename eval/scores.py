"""Computes the figures of a file of predictions, with NumPy from that file alone: no model or data file is needed."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from data_gen.errors import UserError
from eval import geometry, metrics, tracking
from eval.predictions import Predictions
from sqair.config import model_titles

# Tracking costs as much as all the rest together; more sequences would not change its third digit.
TRACKED_SEQUENCES = 1000
_BLOCK = 200  # sequences whose images are in memory at a time


class Metric(NamedTuple):
    """How a metric is shown: its name, its decimals, what it is (for the notes below a table).

    compute: `Predictions` -> one figure per sample, [M]; None for those that `evaluate` computes together with others.
    """

    label: str
    digits: int
    meaning: str
    compute: Callable[[Predictions], np.ndarray] | None = None


# The only list of metrics, in the order of tables; docs/extending.md adds one.
METRICS: dict[str, Metric] = {
    "data_ll_predicted": Metric("log-likelihood", 1, "log p(x|z) of the last frame, which is predicted"),
    "relational_ll_predicted": Metric("relational log-likelihood", 2, "its part on the pixels of colliding balls"),
    "data_ll_inferred": Metric("log-likelihood, inferred", 1, "mean over the inferred frames"),
    "relational_ll_inferred": Metric("relational log-likelihood, inferred", 2, "mean over the inferred frames"),
    "iwae": Metric("IWAE bound", 1, "all frames inferred, K particles"),
    "vae": Metric("VAE bound", 1, "all frames inferred"),
    "kl": Metric("KL", 2, "log q - log p, all frames inferred, importance-weighted"),
    "count_accuracy": Metric("count accuracy", 3, "share of the inferred frames with the right number of objects"),
    "mota": Metric("MOTA", 3, f"inferred frames of at most {TRACKED_SEQUENCES:,} sequences, IoU of at least .5"),
    "motp": Metric("MOTP (1 - IoU)", 3, "of the matches; lower is better"),
    "id_switches": Metric("ID switches", 2, "in 1,000 appearances of a ball"),
    "ari": Metric("foreground ARI", 3, "inferred frames, background left out"),
    "position_error_inferred": Metric(
        "position error, inferred", 2, "pixels, last inferred frame, where objects are matched to balls"
    ),
    "position_error": Metric("position error", 2, "pixels, last frame, of objects still followed"),
    "lost": Metric("lost", 3, "share of the balls whose object has vanished in the last frame"),
}
HORIZON_METRICS = ("data_ll", "relational_ll", "position_error", "lost")
PAPER_METRICS = ("data_ll_predicted", "relational_ll_predicted")
_ONE_FIGURE = ("iwae", "vae", "kl")  # not one per sample
_COUNTS = ("n_sequences", "n_frames", "n_generated", "n_samples", "k_particles")
BOXES = {
    "drawn": "the pixels of the object's pasted glimpse that exceed half of their maximum; their centre of mass",
    "window": "the attention window; its middle",
}


def evaluate(predictions: Predictions, boxes: str = "drawn") -> dict[str, Any]:
    """All metrics of one file of predictions.

    Args:
      predictions: the file.
      boxes: what an object's box and centre are, a key of `BOXES`.

    Returns:
      JSON values: the file's run, model and data, `collapse` (see `metrics.collapsed`), `confusion` (frames; true
      counts by inferred ones), `bounds` a perfect canvas would reach, `metrics`: name of `METRICS` -> one figure per
      sample (or one in all), `by_horizon`: name -> [M][L + 1], horizon 0 being the last inferred frame. Figures that
      the data do not allow are left out; one that is not defined is None, such as a relational one where nothing
      collides.

    Raises:
      UserError: the file lacks the boxes asked for.
    """
    about, sizes = predictions.about, predictions.sizes
    first = about.first_generated
    pictures = _pictures(predictions)
    collides = pictures["collides"]
    found = _likelihoods(predictions, collides) | _bounds(predictions) | _tracking(predictions, boxes)
    counts, true_counts = predictions["rollout/presence"][:, :, :first].sum(-1), predictions["truth/count"][:, :first]
    confusion, known = None, (true_counts >= 0).all()
    if known:
        true_counts = np.broadcast_to(true_counts[:, None], counts.shape)
        found["count_accuracy"] = np.array(
            [metrics.count_accuracy(true_counts[:, m], counts[:, m]) for m in range(sizes["M"])]
        )
        most = int(max(true_counts.max(), about.slots))
        confusion = metrics.confusion_matrix(true_counts, counts, most).tolist()
    found |= {name: value for name, value in pictures.items() if name == "ari"}
    found |= {name: metric.compute(predictions) for name, metric in METRICS.items() if metric.compute}
    horizon = _by_horizon(predictions, collides, boxes)
    if "position_error" in horizon:
        found["position_error_inferred"] = horizon["position_error"][:, 0]
    if first < sizes["T"]:
        found |= {name: horizon[name][:, -1] for name in ("position_error", "lost") if name in horizon}
    return {
        "file": predictions.path,
        "run": about.run,
        "checkpoint": about.checkpoint,
        "step": about.step,
        "model": about.model,
        "seed": about.seed,
        "data_set": about.data_set,
        "slots": about.slots,
        "trained_slots": about.trained_slots,
        "balls": _balls(predictions),
        "data_check": _data_check(predictions),
        "checkpoint_fingerprint": about.checkpoint_fingerprint,
        "data_fingerprint": about.data_fingerprint,
        "comparable": {
            "n_sequences": sizes["S"],
            "n_frames": sizes["T"],
            "n_generated": sizes["T"] - first,
            "n_samples": sizes["M"],
            "k_particles": sizes["K"],
            "split": about.split,
        },
        "boxes": boxes,
        "flags": about.flags,
        "notes": about.notes,
        "versions": about.versions,
        "collapse": metrics.collapsed(counts, about.slots, true_counts if known else None),
        "confusion": confusion,
        "bounds": pictures["bounds"],
        "metrics": {name: _listed(np.atleast_1d(found[name])) for name in METRICS if name in found},
        "by_horizon": {name: _listed(horizon[name]) for name in HORIZON_METRICS if name in horizon},
    }


def _listed(values: np.ndarray) -> Any:
    """Nested lists for JSON, None where a value is not finite."""
    if np.ndim(values):
        return [_listed(value) for value in values]
    return float(values) if np.isfinite(values) else None


def _by_frame(predictions: Predictions, collides: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Log-likelihoods, means over the sequences, [M, T]; and the frames where they are defined, [T]."""
    return {
        name: (predictions[f"rollout/{name}"][:].mean(0, dtype=float), collides | (name == "data_ll"))
        for name in ("data_ll", "relational_ll")
        if f"rollout/{name}" in predictions
    }


def _likelihoods(predictions: Predictions, collides: np.ndarray) -> dict[str, np.ndarray]:
    first, n_frames = predictions.about.first_generated, predictions.sizes["T"]
    found = {}
    for name, (values, telling) in _by_frame(predictions, collides).items():
        found[f"{name}_inferred"] = np.where(telling[:first].any(), values[:, :first].mean(1), np.nan)
        if first < n_frames:
            found[f"{name}_predicted"] = np.where(telling[-1], values[:, -1], np.nan)
    return found


def _bounds(predictions: Predictions) -> dict[str, float]:
    n_frames = predictions.sizes["T"]
    log_weights = predictions["inference/log_weights"][:].astype(float)  # [S, K]
    weights = np.exp(log_weights - log_weights.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    kl = predictions["inference/log_q"][:].astype(float) - predictions["inference/log_p"][:]
    return {
        "iwae": metrics.iwae_bound(log_weights, n_frames).mean(),
        "vae": metrics.vae_bound(log_weights, n_frames).mean(),
        "kl": (weights * kl.mean(-1)).sum(-1).mean(),
    }


def check_drawn(predictions: Predictions, member: str) -> None:
    """Raises: UserError: the file lacks this member, box or centre, of the objects' pasted glimpses."""
    if f"rollout/{member}" not in predictions:
        raise UserError(
            f"{predictions.path}: it does not tell what objects draw; make it again with eval.predict, or "
            "take their windows: --boxes window"
        )


def _objects(predictions: Predictions, boxes: str, where: tuple, member: str) -> np.ndarray:
    """A part of the objects' boxes or centres (member) in pixels."""
    if boxes == "window":
        convert = {"box": geometry.boxes_from_where, "centre": geometry.centres_from_where}[member]
        return convert(predictions["rollout/where"][where], (predictions.sizes["H"], predictions.sizes["W"]))
    check_drawn(predictions, member)
    return predictions[f"rollout/{member}"][where]


def _tracking(predictions: Predictions, boxes: str) -> dict[str, np.ndarray]:
    if "truth/box" not in predictions:
        return {}
    size, first = (predictions.sizes["H"], predictions.sizes["W"]), predictions.about.first_generated
    frames = (slice(TRACKED_SEQUENCES), slice(first))
    true_boxes = predictions["truth/box"][frames]
    truth, ignored = tracking.ground_truth(
        predictions["truth/centre"][frames], predictions["truth/pixels"][frames], size
    )
    samples = (frames[0], slice(None), frames[1])
    found, object_id = _objects(predictions, boxes, samples, "box"), predictions["rollout/object_id"][samples]
    try:
        scores = [
            tracking.track(true_boxes, truth, found[:, m], object_id[:, m], ignored, image_size=size)
            for m in range(found.shape[1])
        ]
    except ValueError as error:
        raise UserError(f"{predictions.path}: {error}; make it again with eval.predict") from None
    return {
        "mota": np.array([score.mota for score in scores]),
        "motp": np.array([score.motp for score in scores]),
        "id_switches": np.array([1000 * score.id_switches / max(score.objects, 1) for score in scores]),
    }


def _pictures(predictions: Predictions) -> dict[str, Any]:
    """Figures that need whole images: ARI [M] over inferred frames, whether anything collides in a frame [T] (true if
    the data do not tell), and the bounds of a perfect canvas."""
    sizes, first = predictions.sizes, predictions.about.first_generated
    has_groups, has_collisions = "truth/groups" in predictions, "truth/collisions" in predictions
    std, channels = predictions.about.flags["output_std"], sizes.get("C", 1)
    total, frames = np.zeros(sizes["M"]), np.zeros(sizes["M"])
    colliding = np.zeros(sizes["T"])  # pixels
    image = np.zeros((1, sizes["H"], sizes["W"]))
    bound = metrics.upper_bounds(image, image, std)
    for start in range(0, sizes["S"], _BLOCK):
        block = slice(start, start + _BLOCK)
        if has_groups:
            groups = predictions["truth/groups"][block, :first]
            segmentation = predictions["rollout/segmentation"][block, :, :first]
            for m in range(sizes["M"]):
                ari = metrics.foreground_ari(groups, segmentation[:, m])
                total[m] += np.nansum(ari)
                frames[m] += np.isfinite(ari).sum()
        if has_collisions:
            colliding += predictions["truth/collisions"][block].sum((0, 2, 3))
    bounds = dict.fromkeys(("data_ll_inferred", "data_ll_predicted"), channels * bound.data)
    for name, part in (("relational_ll_inferred", colliding[:first]), ("relational_ll_predicted", colliding[-1:])):
        if part.any():
            bounds[name] = float(channels * bound.pixel * part.mean() / sizes["S"])
    found: dict[str, Any] = {"bounds": bounds, "collides": (colliding > 0) | (not has_collisions)}
    if has_groups:
        found["ari"] = np.where(frames > 0, total / np.maximum(frames, 1), np.nan)
    return found


def _by_horizon(predictions: Predictions, collides: np.ndarray, boxes: str) -> dict[str, np.ndarray]:
    """[M, L + 1] each; horizon 0 is the last inferred frame."""
    match = predictions.about.first_generated - 1
    found = {
        name: np.where(telling, values, np.nan)[:, match:]
        for name, (values, telling) in _by_frame(predictions, collides).items()
    }
    if "truth/centre" in predictions:
        size = (predictions.sizes["H"], predictions.sizes["W"])
        true_centres = predictions["truth/centre"][:]
        centres = _objects(predictions, boxes, (), "centre")
        object_id = predictions["rollout/object_id"][:]
        errors = [
            metrics.rollout_position_error(true_centres, centres[:, m], object_id[:, m], match, size)
            for m in range(centres.shape[1])
        ]
        found["position_error"] = np.stack([error.error for error in errors])
        found["lost"] = np.stack([error.lost for error in errors])
    return found


def _balls(predictions: Predictions) -> list[int]:
    """The numbers of objects that occur in sequences; empty where the data do not tell."""
    if "truth/centre" not in predictions:
        return []
    exists = np.isfinite(predictions["truth/centre"][:, 0, :, 0])
    return np.unique(exists.sum(-1)).tolist()


def _data_check(predictions: Predictions) -> int:
    """A checksum of the first frames, to tell whether two files show the same sequences."""
    return zlib.crc32(np.ascontiguousarray(predictions["truth/frames"][:, 0]).tobytes())


def check_figures(figures: Any) -> None:
    """Checks that a JSON value is what `evaluate` makes, as far as it is used again.

    Raises:
      ValueError, KeyError, TypeError: it is not.
    """

    def check(name: str, sound: bool) -> None:
        if not sound:
            raise ValueError(name)

    def is_number(value: Any) -> bool:
        return type(value) in (int, float) and abs(value) < 1e30

    def are_numbers(values: Any, size: int) -> bool:
        return isinstance(values, list) and len(values) == size and all(v is None or is_number(v) for v in values)

    same, found, horizon = figures["comparable"], figures["metrics"], figures["by_horizon"]
    for name in ("file", "data_set", "collapse"):
        check(name, isinstance(figures[name], str))
    check("model", figures["model"] in model_titles())
    counts = {name: figures[name] for name in ("seed", "slots", "trained_slots", "data_check")}
    counts |= {name: same[name] for name in _COUNTS}
    for name, value in counts.items():
        check(name, type(value) is int and 0 <= value < 2**32)
    check("comparable", set(same) == {*_COUNTS, "split"} and isinstance(same["split"], str))
    check("balls", isinstance(figures["balls"], list) and all(type(n) is int for n in figures["balls"]))
    check("flags", isinstance(figures["flags"], dict))
    check("bounds", all(is_number(figures["bounds"][name]) for name in ("data_ll_inferred", "data_ll_predicted")))
    check("bounds", set(figures["bounds"]) <= set(METRICS) and all(map(is_number, figures["bounds"].values())))
    check("metrics", {"data_ll_inferred", "iwae"} <= set(found) <= set(METRICS))
    for name, values in found.items():
        check(name, are_numbers(values, 1 if name in _ONE_FIGURE else same["n_samples"]))
    check("by_horizon", {"data_ll"} <= set(horizon) <= set(HORIZON_METRICS))
    for name, samples in horizon.items():
        check(
            name,
            isinstance(samples, list)
            and len(samples) == same["n_samples"]
            and all(are_numbers(values, same["n_generated"] + 1) for values in samples),
        )
