"""Groups the figures of many runs by data set, model and seed."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from data_gen.errors import UserError
from eval.scores import PAPER_METRICS
from eval.summary import Difference, Summary, bootstrap_difference, summarise
from sqair.config import has_fixed_slots, model_name, model_titles, relation_kinds

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

# Flags that make two runs different models even if their relation is the same.
_SAME_IN_MODEL = (
    "n_units",
    "n_what",
    "glimpse_size",
    "prop_prior_type",
    "disc_prior_type",
    "rec_where_prior",
    "masked_glimpse",
    "transition",
    "time_transition",
    "prior_transition",
    "output_std",
    "mean_image",
    "relation_inputs",
    "relation_embedding",
    "image_shape",
)


@attrs.frozen
class DataSet:
    """All runs on one data set.

    Attributes:
      name: of the data set.
      runs: model -> figures of its runs (`evaluate`), by seed.
      failed: (model, seed, reason) of every run that is missing or whose figures are not finite.
      collapsed: (model, seed, how) of every run whose count has collapsed; it is in the means.
    """

    name: str
    runs: Mapping[str, Sequence[Mapping[str, Any]]]
    failed: Sequence[tuple[str, int, str]]
    collapsed: Sequence[tuple[str, int, str]]

    def seeds(self, model: str) -> str:
        """The number of runs in the means: 5, or 3 of 5 where 2 failed."""
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
        """Whether any run has the metric, even where its value is not defined. Args: where: metrics or by_horizon."""
        return any(metric in run[where] for runs in self.runs.values() for run in runs)

    def values(self, model: str, metric: str, horizon: int | None = None) -> np.ndarray:
        """[R, M] figures of a model's runs, without runs in which a figure is not defined."""
        values = [
            run["metrics"].get(metric)
            if horizon is None
            else [sample[horizon] for sample in run["by_horizon"].get(metric, [[None] * (horizon + 1)])]
            for run in self.runs[model]
        ]
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


def collect(
    runs: Sequence[Mapping[str, Any]], expected_models: Sequence[str] = (), expected_seeds: Sequence[int] = ()
) -> list[DataSet]:
    """Groups figures by data set, model and seed.

    Args:
      runs: from `evaluate`.
      expected_models, expected_seeds: runs to expect on every data set.

    Returns:
      The data sets, by name.

    Raises:
      UserError: two files of the same run and data, or files that are not comparable.
    """
    data_sets = []
    titles, bound = model_titles(), {model_name(kind) for kind in relation_kinds() if has_fixed_slots(kind)}
    unknown = [model for model in [*expected_models, *(run["model"] for run in runs)] if model not in titles]
    if unknown:
        raise UserError(f"{unknown[0]}: no such model; the models are {', '.join(titles)}")
    for name in sorted({run["data_set"] for run in runs}):
        here = sorted(
            (run for run in runs if run["data_set"] == name),
            key=lambda run: (list(titles).index(run["model"]), run["seed"]),
        )
        _check_comparable(name, here)
        finite = [run for run in here if None not in run["metrics"]["data_ll_inferred"] + run["metrics"]["iwae"]]
        failed = [
            (run["model"], run["seed"], f"its log-likelihoods are not finite ({run['file']})")
            for run in here
            if run not in finite
        ]
        seen = {(run["model"], run["seed"]) for run in here}
        other_slots = any(run["slots"] != run["trained_slots"] for run in here)
        for model, seed in itertools.product(expected_models, expected_seeds):
            # A model whose weights fix the number of slots cannot run with another: no run is missing then.
            if (model, seed) not in seen and not (model in bound and other_slots):
                failed.append((model, seed, "no predictions"))
        collapsed = [(run["model"], run["seed"], run["collapse"]) for run in finite if run["collapse"] != "none"]
        by_model = {
            model: [run for run in finite if run["model"] == model]
            for model in dict.fromkeys(run["model"] for run in finite)
        }
        if not by_model:
            raise UserError(f"{name}: none of the {len(here)} runs has finite log-likelihoods; look at their train.log")
        data_sets.append(DataSet(name, by_model, failed, collapsed))
    return data_sets


def run_title(model: str, seed: int) -> str:
    return f"{model_titles()[model]}, seed {seed}"


def _check_comparable(name: str, runs: Sequence[Mapping[str, Any]]) -> None:
    first = runs[0]
    for other in runs[1:]:
        pair = f"{first['file']} and {other['file']}"
        for key, value in first["comparable"].items():
            if other["comparable"][key] != value:
                raise UserError(
                    f"{pair} do not compare: {key} is {value} and {other['comparable'][key]}; make them "
                    "with the same options"
                )
        if other["data_check"] != first["data_check"]:
            raise UserError(
                f"{pair} show different sequences though both are called {name}; predict from one data "
                "file or give the two different names"
            )
    for one, two in itertools.combinations(runs, 2):
        if one["model"] != two["model"]:
            continue
        if one["seed"] == two["seed"]:
            title = run_title(one["model"], one["seed"])
            raise UserError(f"{one['file']} and {two['file']} are both {title} on {name}; keep one of them")
        for key in _SAME_IN_MODEL:
            if one["flags"].get(key) != two["flags"].get(key):
                raise UserError(
                    f"{one['file']} and {two['file']} are both {one['model']} but of other settings: {key} "
                    f"is {one['flags'].get(key)} and {two['flags'].get(key)}; make two tables"
                )
