"""eval/summary.py against hand-computed cases and simulation."""

import numpy as np
import pytest

from eval import summary


def test_summary_by_hand():
    found = summary.summarise([[1.0, 3.0], [5.0, 7.0], [9.0, 11.0]])
    assert found.mean == 6
    assert found.std == pytest.approx(np.sqrt(70 / 5))
    assert found.std_samples == pytest.approx(np.sqrt(2))
    assert found.std_seeds == 4  # of 2, 6, 10
    assert found.standard_error == pytest.approx(4 / np.sqrt(3))
    assert (found.seeds, found.samples) == (3, 2)


def test_one_seed_or_one_sample_has_no_spread():
    one_seed = summary.summarise([[1.0, 3.0]])
    assert one_seed.std_samples == pytest.approx(np.sqrt(2))
    assert np.isnan(one_seed.std_seeds) and np.isnan(one_seed.standard_error)
    one_sample = summary.summarise([1.0, 3.0])
    assert (one_sample.seeds, one_sample.samples) == (2, 1)
    assert one_sample.std_seeds == pytest.approx(np.sqrt(2)) and np.isnan(one_sample.std_samples)


def test_difference_of_constant_models_is_exact():
    found = summary.bootstrap_difference([3.0] * 5, [1.0] * 4)
    assert (found.difference, found.low, found.high) == (2, 2, 2)


def test_interval_with_enough_seeds_is_the_textbook_one():
    rng = np.random.default_rng(1)
    first, second = rng.normal(5, 1, 200), rng.normal(3, 2, 300)
    found = summary.bootstrap_difference(first, second, confidence=0.9)
    error = np.sqrt(first.var(ddof=1) / 200 + second.var(ddof=1) / 300)
    assert found.difference == pytest.approx(first.mean() - second.mean())
    np.testing.assert_allclose([found.low, found.high], found.difference + np.array([-1.645, 1.645]) * error, atol=0.03)
    assert found.note == ""


def test_seeds_are_the_unit_not_samples():
    seeds = np.array([1.0, 2.0, 4.0, 7.0, 8.0])
    repeated = np.repeat(seeds[:, None], 50, axis=1)  # 50 equal samples add nothing
    assert summary.bootstrap_difference(repeated, repeated + 1) == summary.bootstrap_difference(seeds, seeds + 1)


def test_interval_is_reproducible_and_moves_with_the_seed():
    first, second = [1.0, 2.0, 4.5, 3.3, 0.2], [2.0, 3.1, 5.0, 1.7, 2.2]
    again = [summary.bootstrap_difference(first, second, resamples=200, seed=s) for s in (3, 3, 4)]
    assert again[0] == again[1] != again[2]
    assert again[0].low < again[0].difference < again[0].high
    assert "5 seeds" in again[0].note


@pytest.mark.parametrize("fewest, words", [(1, "1 seed,"), (2, "2 seeds,")])
def test_too_few_seeds_have_a_difference_but_no_interval(fewest, words):
    found = summary.bootstrap_difference(np.arange(5.0), np.arange(fewest) + 10.0)
    assert found.difference == pytest.approx(2 - 10 - (fewest - 1) / 2)
    assert np.isnan(found.low) and np.isnan(found.high) and words in found.note


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: summary.summarise([]), "not empty"),
        (lambda: summary.summarise(np.zeros((2, 2, 2))), r"\[seeds, samples\]"),
        (lambda: summary.summarise([1.0, np.nan]), "finite"),
        (lambda: summary.bootstrap_difference([1, 2, 3], [1, 2, 3], confidence=95), "confidence"),
    ],
)
def test_wrong_input_is_refused_with_its_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
