"""The paper's comparison from files of predictions, as Markdown, CSV and LaTeX.

    python -m eval.tables --predictions results/predictions --out results/paper

Each file is one run on one data set (`eval.predict`); runs are grouped by model and seed, which the file itself names.
Writes metrics/<model>_seed<seed>_<data set>.json for every file, and table.md, table.tex, table.csv, differences.csv.
Metrics are numpy over the files: neither the model nor the data file is needed. Those of a file that has not changed
since this code last read it are taken from its JSON.
"""

from data_gen.command_line import (
    Kind,
    UserError,
    begins,
    check_output,
    fingerprint,
    output_path,
    parse,
    progress,
    read_json,
    run_module,
)
from eval.options import Tables as Arguments

if __name__ == "__main__":      # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.tables", lambda: parse(Arguments, "eval.tables"))

import csv
import glob
import itertools
import json
import math
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np

from eval import geometry, metrics, tracking
from eval.predictions import Predictions
from eval.statistics import Difference, Summary, bootstrap_difference, summarise
from sqair.config import has_fixed_slots, model_name, model_titles, relation_kinds

# Tracking costs as much as all the rest together; more sequences would not change its third digit.
TRACKED_SEQUENCES = 1000
_BLOCK = 200    # sequences whose pictures are in memory


class Metric(NamedTuple):
    """How a metric is shown: its name, the digits behind the point, what it is (for the table's foot).

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
    "position_error_inferred": Metric("position error, inferred", 2,
                                      "pixels, last inferred frame, where objects are matched to balls"),
    "position_error": Metric("position error", 2, "pixels, last frame, of objects still followed"),
    "lost": Metric("lost", 3, "share of the balls whose object has vanished in the last frame"),
}
HORIZON_METRICS = ("data_ll", "relational_ll", "position_error", "lost")
PAPER_METRICS = ("data_ll_predicted", "relational_ll_predicted")
_ONE_FIGURE = ("iwae", "vae", "kl")     # not one per sample
_COUNTS = ("n_sequences", "n_frames", "n_generated", "n_samples", "k_particles")
BOXES = {
    "drawn": "the pixels of what the object draws that are above half of its greatest; their centre of mass",
    "window": "the attention window; its middle",
}
LAST_INFERRED = "0 (last inferred frame)"
COMPARED = (*PAPER_METRICS, "data_ll_inferred", "iwae", "position_error")

# Figure 4 and section 3 of the paper, by the numbers of balls in the data; all with 4 slots.
PAPER = {
    (4,): {
        "sqair": {"data_ll_predicted": 399.5, "relational_ll_predicted": 0.21},
        "rsqair_in": {"data_ll_predicted": 429.2, "relational_ll_predicted": 1.95},
        "rsqair_rmc": {"data_ll_predicted": 457.32, "relational_ll_predicted": 3.62},
    },
    (6, 7, 8): {
        "sqair": {"relational_ll_predicted": -164.1},
        "rsqair_in": {"relational_ll_predicted": -96.7},
        "rsqair_rmc": {"relational_ll_predicted": -97.0},
    },
}

# Flags that make two runs different models, though their relation is the same.
_SAME_IN_MODEL = ("n_units", "n_what", "glimpse_size", "prop_prior_type", "disc_prior_type", "rec_where_prior",
                  "masked_glimpse", "transition", "time_transition", "prior_transition", "output_std", "mean_image",
                  "relation_inputs", "relation_embedding", "image_shape")


# ---------------------------------------------------------------------------------------------------------------
# One file -> its figures
# ---------------------------------------------------------------------------------------------------------------


def evaluate(predictions: Predictions, boxes: str = "drawn") -> dict[str, Any]:
    """All metrics of one file of predictions.

    Args:
      predictions: the file.
      boxes: what an object's box and centre are, a key of `BOXES`.

    Returns:
      JSON values: what the file is of, `collapse` (see `metrics.collapsed`), `confusion` (frames; true counts by
      inferred ones), `bounds` a perfect canvas would reach, `metrics`: name of `METRICS` -> one figure per sample (or
      one in all), `by_horizon`: name -> [M][L + 1], horizon 0 being the last inferred frame. What the data lack is
      left out; a figure that is not defined is None, such as a relational one of frames in which nothing collides.

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
        found["count_accuracy"] = np.array([metrics.count_accuracy(true_counts[:, m], counts[:, m])
                                            for m in range(sizes["M"])])
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
        "file": predictions.path, "run": about.run, "checkpoint": about.checkpoint, "step": about.step,
        "model": about.model, "seed": about.seed, "data_set": about.data_set, "slots": about.slots,
        "trained_slots": about.trained_slots, "balls": _balls(predictions), "data_check": _data_check(predictions),
        "checkpoint_fingerprint": about.checkpoint_fingerprint, "data_fingerprint": about.data_fingerprint,
        "comparable": {"n_sequences": sizes["S"], "n_frames": sizes["T"], "n_generated": sizes["T"] - first,
                       "n_samples": sizes["M"], "k_particles": sizes["K"], "split": about.split},
        "boxes": boxes, "flags": about.flags, "notes": about.notes, "versions": about.versions,
        "collapse": metrics.collapsed(counts, about.slots, true_counts if known else None),
        "confusion": confusion, "bounds": pictures["bounds"],
        "metrics": {name: _listed(np.atleast_1d(found[name])) for name in METRICS if name in found},
        "by_horizon": {name: _listed(horizon[name]) for name in HORIZON_METRICS if name in horizon},
    }


def _listed(values: np.ndarray) -> Any:
    """Nested lists for JSON, None where a value is not finite."""
    if np.ndim(values):
        return [_listed(value) for value in values]
    return float(values) if np.isfinite(values) else None


def _by_frame(predictions: Predictions, collides: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Log-likelihoods, means over the sequences, [M, T]; and the frames that tell something about them, [T]."""
    return {name: (predictions[f"rollout/{name}"][:].mean(0, dtype=float), collides | (name == "data_ll"))
            for name in ("data_ll", "relational_ll") if f"rollout/{name}" in predictions}


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
    log_weights = predictions["inference/log_weights"][:].astype(float)     # [S, K]
    weights = np.exp(log_weights - log_weights.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    kl = predictions["inference/log_q"][:].astype(float) - predictions["inference/log_p"][:]
    return {"iwae": metrics.iwae_bound(log_weights, n_frames).mean(),
            "vae": metrics.vae_bound(log_weights, n_frames).mean(),
            "kl": (weights * kl.mean(-1)).sum(-1).mean()}


def check_drawn(predictions: Predictions, member: str) -> None:
    """Raises: UserError: the file has no such member, box or centre, of what objects draw."""
    if f"rollout/{member}" not in predictions:
        raise UserError(f"{predictions.path}: it does not tell what objects draw; make it again with eval.predict, or "
                        "take their windows: --boxes window")


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
    truth, ignored = tracking.ground_truth(predictions["truth/centre"][frames], predictions["truth/pixels"][frames],
                                           size)
    samples = (frames[0], slice(None), frames[1])
    found, object_id = _objects(predictions, boxes, samples, "box"), predictions["rollout/object_id"][samples]
    try:
        scores = [tracking.track(true_boxes, truth, found[:, m], object_id[:, m], ignored, image_size=size)
                  for m in range(found.shape[1])]
    except ValueError as error:
        raise UserError(f"{predictions.path}: {error}; make it again with eval.predict") from None
    return {"mota": np.array([score.mota for score in scores]), "motp": np.array([score.motp for score in scores]),
            "id_switches": np.array([1000 * score.id_switches / max(score.objects, 1) for score in scores])}


def _pictures(predictions: Predictions) -> dict[str, Any]:
    """What needs whole pictures: ARI [M] over inferred frames, in which frames anything collides [T] (all where the
    data do not tell), and the bounds of a perfect canvas."""
    sizes, first = predictions.sizes, predictions.about.first_generated
    has_groups, has_collisions = "truth/groups" in predictions, "truth/collisions" in predictions
    std, channels = predictions.about.flags["output_std"], sizes.get("C", 1)
    total, frames = np.zeros(sizes["M"]), np.zeros(sizes["M"])
    colliding = np.zeros(sizes["T"])            # pixels
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
    found = {name: np.where(telling, values, np.nan)[:, match:]
             for name, (values, telling) in _by_frame(predictions, collides).items()}
    if "truth/centre" in predictions:
        size = (predictions.sizes["H"], predictions.sizes["W"])
        true_centres = predictions["truth/centre"][:]
        centres = _objects(predictions, boxes, (), "centre")
        object_id = predictions["rollout/object_id"][:]
        errors = [metrics.rollout_position_error(true_centres, centres[:, m], object_id[:, m], match, size)
                  for m in range(centres.shape[1])]
        found["position_error"] = np.stack([error.error for error in errors])
        found["lost"] = np.stack([error.lost for error in errors])
    return found


def _balls(predictions: Predictions) -> list[int]:
    """The numbers of objects that sequences have, or nothing where the data do not tell."""
    if "truth/centre" not in predictions:
        return []
    exists = np.isfinite(predictions["truth/centre"][:, 0, :, 0])
    return np.unique(exists.sum(-1)).tolist()


def _data_check(predictions: Predictions) -> int:
    """Tells whether two files show the same sequences."""
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
        check(name, isinstance(samples, list) and len(samples) == same["n_samples"]
              and all(are_numbers(values, same["n_generated"] + 1) for values in samples))


# ---------------------------------------------------------------------------------------------------------------
# Many files -> the comparison
# ---------------------------------------------------------------------------------------------------------------


@attrs.frozen
class DataSet:
    """All runs on one data set.

    Attributes:
      name: of the data set.
      runs: model -> figures of its runs (`evaluate`), by seed.
      failed: (model, seed, reason) of every run that is missing or whose figures are not finite.
      collapsed: (model, seed, how) of every run that has given up counting; it is in the means.
    """

    name: str
    runs: Mapping[str, Sequence[Mapping[str, Any]]]
    failed: Sequence[tuple[str, int, str]]
    collapsed: Sequence[tuple[str, int, str]]

    def seeds(self, model: str) -> str:
        """How many runs the means are over, and of how many."""
        runs, failed = len(self.runs[model]), sum(model == other for other, _, _ in self.failed)
        return f"{runs} of {runs + failed}" if failed else str(runs)

    @property
    def any(self) -> Mapping[str, Any]:
        """One of the runs, for what they have in common."""
        return next(iter(self.runs.values()))[0]

    @property
    def paper(self) -> Mapping[str, Mapping[str, float]]:
        """The paper's figures on such data: model -> metric -> figure."""
        balls = tuple(self.any["balls"])
        fits = [key for key in PAPER if balls and set(balls) <= set(key)]
        return PAPER[fits[0]] if fits and self.any["slots"] == 4 else {}

    def has(self, metric: str, where: str = "metrics") -> bool:
        """Whether any run has the metric, if only as one that is not defined. Args: where: metrics or by_horizon."""
        return any(metric in run[where] for runs in self.runs.values() for run in runs)

    def values(self, model: str, metric: str, horizon: int | None = None) -> np.ndarray:
        """[R, M] figures of a model's runs; without those runs in which a figure is not defined."""
        values = [run["metrics"].get(metric) if horizon is None else
                  [sample[horizon] for sample in run["by_horizon"].get(metric, [[None] * (horizon + 1)])]
                  for run in self.runs[model]]
        return np.array([v for v in values if v and None not in v], float)

    def summary(self, model: str, metric: str, horizon: int | None = None) -> Summary | None:
        """Mean and spreads over seeds and samples, None if no run has the figure."""
        values = self.values(model, metric, horizon)
        return summarise(values) if values.size else None

    def differences(self) -> Iterable[tuple[str, str, str, Difference]]:
        """Yields (later model, earlier model, metric, difference of their means)."""
        for first, second in itertools.combinations(self.runs, 2):
            for metric in COMPARED:
                values = self.values(second, metric), self.values(first, metric)
                if all(v.size for v in values):
                    yield second, first, metric, bootstrap_difference(*values)


def collect(runs: Sequence[Mapping[str, Any]], expected_models: Sequence[str] = (),
            expected_seeds: Sequence[int] = ()) -> list[DataSet]:
    """Groups figures by data set, model and seed.

    Args:
      runs: from `evaluate`.
      expected_models, expected_seeds: runs that there should be on every data set.

    Returns:
      The data sets, by name.

    Raises:
      UserError: two files of the same run and data, or files that do not compare.
    """
    data_sets = []
    titles, bound = model_titles(), {model_name(kind) for kind in relation_kinds() if has_fixed_slots(kind)}
    unknown = [model for model in [*expected_models, *(run["model"] for run in runs)] if model not in titles]
    if unknown:
        raise UserError(f"{unknown[0]}: no such model; the models are {', '.join(titles)}")
    for name in sorted({run["data_set"] for run in runs}):
        here = sorted((run for run in runs if run["data_set"] == name),
                      key=lambda run: (list(titles).index(run["model"]), run["seed"]))
        _check_comparable(name, here)
        finite = [run for run in here if None not in run["metrics"]["data_ll_inferred"] + run["metrics"]["iwae"]]
        failed = [(run["model"], run["seed"], f"its log-likelihoods are not finite ({run['file']})")
                  for run in here if run not in finite]
        seen = {(run["model"], run["seed"]) for run in here}
        other_slots = any(run["slots"] != run["trained_slots"] for run in here)
        for model, seed in itertools.product(expected_models, expected_seeds):
            # Where a model cannot run with the number of slots, nothing is missing.
            if (model, seed) not in seen and not (model in bound and other_slots):
                failed.append((model, seed, "no predictions"))
        collapsed = [(run["model"], run["seed"], run["collapse"]) for run in finite if run["collapse"] != "none"]
        by_model = {model: [run for run in finite if run["model"] == model]
                    for model in dict.fromkeys(run["model"] for run in finite)}
        if not by_model:
            raise UserError(f"{name}: none of the {len(here)} runs has finite log-likelihoods; look at their train.log")
        data_sets.append(DataSet(name, by_model, failed, collapsed))
    return data_sets


def _title(model: str, seed: int) -> str:
    return f"{model_titles()[model]}, seed {seed}"


def _check_comparable(name: str, runs: Sequence[Mapping[str, Any]]) -> None:
    first = runs[0]
    for other in runs[1:]:
        pair = f"{first['file']} and {other['file']}"
        for key, value in first["comparable"].items():
            if other["comparable"][key] != value:
                raise UserError(f"{pair} do not compare: {key} is {value} and {other['comparable'][key]}; make them "
                                "with the same options")
        if other["data_check"] != first["data_check"]:
            raise UserError(f"{pair} show different sequences though both are called {name}; predict from one data "
                            "file or give the two different names")
    for one, two in itertools.combinations(runs, 2):
        if one["model"] != two["model"]:
            continue
        if one["seed"] == two["seed"]:
            raise UserError(f"{one['file']} and {two['file']} are both {_title(one['model'], one['seed'])} on {name}; "
                            "keep one of them")
        for key in _SAME_IN_MODEL:
            if one["flags"].get(key) != two["flags"].get(key):
                raise UserError(f"{one['file']} and {two['file']} are both {one['model']} but of other settings: {key} "
                                f"is {one['flags'].get(key)} and {two['flags'].get(key)}; make two tables")


# ---------------------------------------------------------------------------------------------------------------
# The comparison as text
# ---------------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """Rows of cells below a heading, before they are Markdown or LaTeX; mathematics is in plain characters."""

    title: str
    header: list[str]
    rows: list[list[str]]


def _cell(summary: Summary | None, digits: int, seeds: int) -> str:
    if summary is None:
        return "–"
    spread = "" if math.isnan(summary.std) else f" ± {summary.std:.{digits}f}"
    return f"{summary.mean:.{digits}f}{spread}" + (f" ({summary.seeds} of {seeds})" if summary.seeds < seeds else "")


def tables(data_set: DataSet) -> list[Table]:
    """The paper's comparison, all metrics, metrics by horizon, and differences between models."""
    paper, bounds, models, titles = data_set.paper, data_set.any["bounds"], list(data_set.runs), model_titles()
    shown = [metric for metric in PAPER_METRICS if data_set.has(metric)]
    found = []
    if shown:
        header, rows = ["model", "seeds"], []
        for metric in shown:
            header += [METRICS[metric].label, "paper"]
        for model, runs in data_set.runs.items():
            row = [titles[model], data_set.seeds(model)]
            for metric in shown:
                digits, theirs = METRICS[metric].digits, paper.get(model, {}).get(metric)
                row += [_cell(data_set.summary(model, metric), digits, len(runs)),
                        "–" if theirs is None else f"{theirs:g}"]
            rows.append(row)
        rows.append(["perfect canvas", "–"] + [cell for metric in shown for cell in (
            f"{bounds[metric]:.{METRICS[metric].digits}f}" if metric in bounds else "–", "–")])
        found.append(Table("Predicted last frame, nats", header, rows))

    names = [titles[model] for model in models]
    rows = [[METRICS[metric].label, *(_cell(data_set.summary(m, metric), METRICS[metric].digits, len(data_set.runs[m]))
                                      for m in models)]
            for metric in METRICS if data_set.has(metric)]
    found.append(Table("All metrics (log-likelihoods, bounds and KL: nats per frame)", ["metric", *names], rows))

    last = data_set.any["comparable"]["n_generated"]
    rows = []
    for metric, h in itertools.product(HORIZON_METRICS, range(last + 1) if last else ()):
        metric_of = METRICS.get(metric) or METRICS[f"{metric}_predicted"]
        if data_set.has(metric, "by_horizon"):
            rows.append([metric_of.label, str(h) if h else LAST_INFERRED,
                         *(_cell(data_set.summary(m, metric, h), metric_of.digits, len(data_set.runs[m]))
                           for m in models)])
    if rows:
        found.append(Table("By horizon", ["metric", "frames ahead", *names], rows))

    rows = []
    for later, earlier, metric, difference in data_set.differences():
        digits = METRICS[metric].digits
        interval = ("–" if math.isnan(difference.low) else
                    f"{difference.low:.{digits}f} to {difference.high:.{digits}f}")
        rows.append([f"{titles[later]} − {titles[earlier]}", METRICS[metric].label,
                     f"{difference.difference:.{digits}f}", interval, difference.note or "–"])
    if rows:
        found.append(Table("Differences of means, with 95 % bootstrap intervals over seeds",
                           ["models", "metric", "difference", "interval", "note"], rows))
    return found


def _settings(data_set: DataSet) -> str:
    same = data_set.any["comparable"]
    return (f"{same['split']} split, {same['n_sequences']:,} sequences of {same['n_frames']} frames, the last "
            f"{same['n_generated']} predicted; {same['n_samples']} samples per sequence, {same['k_particles']} "
            f"particles, {data_set.any['slots']} slots")


def _trouble(data_set: DataSet) -> list[str]:
    return ([f"failed, not in the means: {_title(model, seed)}: {why}" for model, seed, why in data_set.failed]
            + [f"collapsed, in the means: {_title(model, seed)}: {how}" for model, seed, how in data_set.collapsed])


def _foot(data_sets: Sequence[DataSet]) -> list[str]:
    everything = [run for data_set in data_sets for run in itertools.chain(*data_set.runs.values())]
    used = {metric for run in everything for metric in run["metrics"]}
    geometry = dict.fromkeys(run["boxes"] for run in everything if "mota" in run["metrics"])
    return ["Mean ± standard deviation over all seeds and samples together; table.csv has the two apart. "
            "\"Paper\": figure 4 and section 3 of the R-SQAIR paper. \"Perfect canvas\": what a canvas equal to the "
            "image would reach on these data. \"–\": not defined on these data, as a relational log-likelihood is "
            "where nothing collides.",
            *(f"Box and centre of an object (--boxes {boxes}): {BOXES[boxes]}." for boxes in geometry),
            *(f"{METRICS[metric].label}: {METRICS[metric].meaning}." for metric in METRICS if metric in used)]


def markdown(data_sets: Sequence[DataSet]) -> str:
    """The comparison as Markdown."""
    lines = ["# Comparison", ""]
    for data_set in data_sets:
        lines += [f"## {data_set.name}", "", _settings(data_set) + ".", ""]
        for table in tables(data_set):
            lines += [f"### {table.title}", "", "| " + " | ".join(table.header) + " |",
                      "|" + "---|" * len(table.header)]
            lines += ["| " + " | ".join(row) + " |" for row in table.rows] + [""]
        lines += ["### Failed and collapsed runs", ""]
        lines += [f"- {line}" for line in _trouble(data_set)] or ["None."]
        lines.append("")
    return "\n".join(lines + ["## Notes", ""] + [f"- {line}" for line in _foot(data_sets)]) + "\n"


_LATEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$",
          "−": r"$-$", "–": "--"}


def _latex(text: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w$-])-(?=\d)", "$-$", text)      # a minus, not a hyphen


def latex(data_sets: Sequence[DataSet]) -> str:
    """The comparison as LaTeX tables, to be \\input; needs the package booktabs."""
    lines = ["% Made by eval.tables; needs \\usepackage{booktabs}."]
    for data_set in data_sets:
        for table in tables(data_set):
            if table.title.startswith("Differences"):       # the notes are sentences; the interval says enough
                table = table._replace(header=table.header[:-1], rows=[row[:-1] for row in table.rows])
            text_columns = 2 if table.header[1] in ("metric", "frames ahead") else 1
            columns = "l" * text_columns + "r" * (len(table.header) - text_columns)
            lines += [r"\begin{table}", r"\centering",
                      rf"\caption{{{_latex(f'{data_set.name}. {table.title}. {_settings(data_set)}.')}}}",
                      rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
                      " & ".join(map(_latex, table.header)) + r" \\", r"\midrule"]
            lines += [" & ".join(map(_latex, row)) + r" \\" for row in table.rows]
            lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        lines += [f"% {data_set.name}, {line}" for line in _trouble(data_set)]
    return "\n".join(lines) + "\n"


_CSV = ("data_set", "model", "metric", "horizon", *Summary._fields, "runs", "paper", "bound")


def csv_rows(data_sets: Sequence[DataSet]) -> list[list[Any]]:
    """One row per data set, model, metric and horizon (empty: the metric as it stands), the header first."""
    rows: list[list[Any]] = [list(_CSV)]
    for data_set in data_sets:
        horizons = data_set.any["comparable"]["n_generated"] + 1
        asked = [(metric, None) for metric in METRICS] + list(itertools.product(HORIZON_METRICS, range(horizons)))
        for (model, runs), (metric, horizon) in itertools.product(data_set.runs.items(), asked):
            summary = data_set.summary(model, metric, horizon)
            if summary is not None:
                at_end = horizon is None
                rows.append([data_set.name, model, metric, "" if at_end else horizon, *summary, len(runs),
                             data_set.paper.get(model, {}).get(metric, "") if at_end else "",
                             data_set.any["bounds"].get(metric, "") if at_end else ""])
    return rows


def _difference_rows(data_sets: Sequence[DataSet]) -> list[list[Any]]:
    rows: list[list[Any]] = [["data_set", "model", "minus", "metric", *Difference._fields]]
    for data_set in data_sets:
        rows += [[data_set.name, *names, *difference] for *names, difference in data_set.differences()]
    return rows


# ---------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------


def find(patterns: Sequence[str]) -> list[str]:
    """The files that folders (all .h5 in and below them), names and patterns stand for.

    Raises:
      UserError: one of them stands for nothing.
    """
    found: list[str] = []
    for pattern in patterns:
        path = pathlib.Path(pattern)
        names = sorted(map(str, path.rglob("[!.]*.h5")) if path.is_dir() else glob.glob(pattern, recursive=True))
        if not names:
            raise UserError(f"{pattern}: no file of predictions there; make them with eval.predict")
        found += names
    return list(dict.fromkeys(found))


# What an older result begins with, which a new one may replace.
_BEGINNINGS = {"table.md": "# Comparison", "table.tex": "% Made by eval.tables", "table.csv": ",".join(_CSV[:3]),
               "differences.csv": "data_set,model,minus"}


def _kind(path: pathlib.Path) -> Kind:
    return begins("a result of eval.tables", _BEGINNINGS.get(path.name, '{\n "file":'))


def _write(path: pathlib.Path, content: str | list[list[Any]]) -> None:
    with output_path(path, _kind(path)) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        if isinstance(content, str):
            file.write(content)
        else:
            csv.writer(file).writerows(content)


def metrics_name(model: str, seed: int, data_set: str) -> str:
    """The name that the figures of a run on a data set have in the folder metrics/."""
    slug = re.sub(r"[^A-Za-z0-9]+", "_", data_set).strip("_")
    return f"{model}_seed{seed}_{slug}.json"


def _known(path: pathlib.Path, made_from: str) -> dict[str, Any] | None:
    """Figures that `evaluate` made before, if they were made from the same."""
    try:
        figures = read_json(path, "")
        check_figures(figures)
        return figures if figures["made_from"] == made_from else None
    except (UserError, ValueError, KeyError, TypeError):
        return None


def main() -> None:
    arguments = parse(Arguments, "eval.tables")
    names, runs = find(arguments.predictions), []
    for name in _BEGINNINGS:
        check_output(arguments.out / name, _kind(arguments.out / name))
    code = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    with progress(len(names), "metrics", "files") as advance:
        for name in names:
            with Predictions(name) as predictions:
                about, made_from = predictions.about, f"{fingerprint(name, *code)} {arguments.boxes}"
                path = arguments.out / "metrics" / metrics_name(about.model, about.seed, about.data_set)
                figures = _known(path, made_from) or evaluate(predictions, arguments.boxes)
            runs.append(figures | {"file": name, "made_from": made_from})
            advance(1)
    data_sets = collect(runs, arguments.expected_models, arguments.expected_seeds)
    for figures in runs:
        name = metrics_name(figures["model"], figures["seed"], figures["data_set"])
        _write(arguments.out / "metrics" / name, json.dumps(figures, indent=1) + "\n")
    text = markdown(data_sets)
    _write(arguments.out / "table.md", text)
    _write(arguments.out / "table.tex", latex(data_sets))
    _write(arguments.out / "table.csv", csv_rows(data_sets))
    _write(arguments.out / "differences.csv", _difference_rows(data_sets))
    print(text)
    print(f"wrote {arguments.out}/table.md, table.tex, table.csv, differences.csv and metrics/")
