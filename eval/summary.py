"""Means, spreads and differences over seeds (trained models) and samples (rollouts of one model)."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

FEWEST_SEEDS = 3  # for an interval: one or two seeds say nothing about the spread over seeds


class Summary(NamedTuple):
    """A metric over R seeds with M samples each; standard deviations divide by the number less one.

    Attributes:
      mean: mean over seeds and samples.
      std: standard deviation over all R M values together: the error bars of the paper's figure 4.
      std_samples: standard deviation over the samples of one model, averaged (as variance) over models; NaN if M = 1.
      std_seeds: standard deviation of the models' means over samples; NaN if R = 1.
      standard_error: std_seeds / sqrt(R), the error of the mean with models as the unit; NaN if R = 1.
      seeds: R.
      samples: M.
    """

    mean: float
    std: float
    std_samples: float
    std_seeds: float
    standard_error: float
    seeds: int
    samples: int


def summarise(values: npt.ArrayLike) -> Summary:
    """Mean and spreads of a metric.

    The spread within models (other samples from the same model) and between models (other seeds) are different
    things; a claim about an architecture rests on the latter.

    Args:
      values: [R, M] or [R], one figure per seed and sample, in any unit; all of them finite.

    Returns:
      Summary, in the same unit.

    Raises:
      ValueError: if the shape is another one, empty, or a value is not finite.
    """
    values = _values(values)
    R, M = values.shape
    std_seeds = _std(values.mean(1))
    return Summary(
        mean=float(values.mean()),
        std=_std(values.ravel()),
        std_samples=float(np.sqrt(np.mean(values.var(axis=1, ddof=1)))) if M > 1 else float("nan"),
        std_seeds=std_seeds,
        standard_error=float(std_seeds / np.sqrt(R)),
        seeds=R,
        samples=M,
    )


class Difference(NamedTuple):
    """The difference of two models' means with its bootstrap interval, in the metric's unit.

    Attributes:
      difference: mean of the first less mean of the second.
      low, high: the interval; NaN where there are too few seeds.
      confidence: its nominal confidence.
      note: a caveat for the notes below a table; may be empty.
    """

    difference: float
    low: float
    high: float
    confidence: float
    note: str


def bootstrap_difference(
    first: npt.ArrayLike, second: npt.ArrayLike, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Difference:
    """Percentile bootstrap interval of the difference of means, with seeds as the unit.

    Samples are averaged within their seed first: they are not independent trainings. Seeds of the two models are
    drawn independently of each other, with replacement (scipy.stats.bootstrap). With fewer than 3 seeds on a side
    there is no interval: two values have three resamples, one has none. With few seeds the interval is too narrow:
    simulated on normal figures, a nominal 95 % holds the truth in 80 % of cases at 3 seeds a side, 87 % at 5,
    92 % at 10 (BCa and basic intervals are similar); the note warns of it.

    Args:
      first, second: [R, M] or [R], one figure per seed and sample; R and M may differ between the two.
      confidence: of the interval, in (0, 1).
      resamples: number of bootstrap resamples.
      seed: of the resampling; the same seed gives the same interval.

    Returns:
      Difference.

    Raises:
      ValueError: as ``summarise``, or if confidence is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    one, other = (np.asarray(_values(values).mean(1)) for values in (first, second))
    difference = float(one.mean() - other.mean())
    fewest = min(len(one), len(other))
    if fewest < FEWEST_SEEDS:
        note = f"no interval: {fewest} seed{'s' * (fewest > 1)}, at least {FEWEST_SEEDS} are needed"
        return Difference(difference, float("nan"), float("nan"), confidence, note)
    interval = stats.bootstrap(
        (one, other),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    note = f"{fewest} seeds: the interval is narrower than its confidence says" if fewest < 20 else ""
    return Difference(difference, float(interval.low), float(interval.high), confidence, note)


def _values(values: npt.ArrayLike) -> np.ndarray:
    """[R, M] float64 from [R, M] or [R]."""
    values = np.asarray(values, float)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"values must be [seeds] or [seeds, samples], not empty, got {values.shape}")
    if not np.all(np.isfinite(values)):
        raise ValueError("values must be finite: leave out or explain a failed run before averaging")
    return values.reshape(len(values), -1)


def _std(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
