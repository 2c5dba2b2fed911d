"""Warnings a user can act on: when they are printed, and when not."""

import numpy as np
import pytest

from sqair.model import Report
from sqair.training import health


def report(**values):
    defaults = dict.fromkeys(Report._fields, 0.0) | dict(num_steps=2.0, num_step_accuracy=0.5, ess=2.0)
    return Report(**{**defaults, **values})


def warnings(reports, n_slots=4, k_particles=5):
    monitor = health.Monitor(n_slots, k_particles)
    return [line for values in reports for line in monitor.check(values)]


def test_a_healthy_run_is_left_alone():
    assert warnings([report()] * 50) == []


@pytest.mark.parametrize(
    "trouble, word",
    [
        (dict(num_steps=0.01), "--disc_step_bias"),
        (dict(num_steps=4.0, num_step_accuracy=0.1), "all 4 slots"),
        (dict(num_steps=4.0, num_step_accuracy=float("nan")), "all 4 slots"),
        (dict(ess=1.0), "effective sample size is 1.00 of 5"),
    ],
)
def test_trouble_is_named_once_a_spell(trouble, word):
    spell = [report(**trouble)] * 20
    found = warnings(spell)
    assert len(found) == 1 and word in found[0] and found[0].startswith("warning:")
    assert warnings(spell[: health.PATIENCE - 1]) == []
    assert len(warnings(spell + [report()] + spell)) == 2


def test_all_slots_in_use_is_right_if_there_are_that_many():
    assert warnings([report(num_steps=4.0, num_step_accuracy=1.0)] * 20) == []


def test_one_particle_has_no_effective_sample_size():
    assert warnings([report(ess=1.0)] * 20, k_particles=1) == []


def test_validation_far_below_training():
    assert health.validation_gap(400.0, 395.0) == [] and health.validation_gap(400.0, 450.0) == []
    assert "100.0 nats" in health.validation_gap(400.0, 300.0)[0]


def swings(bounds, clip_norm=0.0, length=3, clipped=None):
    """(index of the report, warning) of all warnings about the bound."""
    monitor = health.Monitor(4, 5, clip_norm)
    return [
        (i, line)
        for i, bound in enumerate(bounds)
        for line in monitor.check(report(iwae_per_frame=bound), length, 1000.0 + i, clipped)
    ]


# Reports of training batches, 25 steps apart, of SQAIR on 4 balls: at rate 1e-5, and at 3e-5 from a trained model on.
RISES = [-1192, -1009, -876, -660, -544, -427, -307, -235, -132, -24, -49, -23, 18, 5, 66, 116, 60, 113, 94, 110]
SWINGS = [229, 268, 50, -18, 106, 170]


def test_a_bound_that_rises_is_left_alone():
    assert swings(RISES) == []
    noise = np.random.default_rng(0).normal(0, 15, 1000)
    assert swings(436 + noise) == []  # trained
    assert swings(np.linspace(-1200, 400, 1000) + noise) == []
    assert swings([331.0] * 10 + [120.0] + [331.0] * 10) == []  # a single dip
    assert swings([400.0] * 10 + [299.0] * 30) and not swings([400.0] * 10 + [301.0] * 30)


def test_a_bound_that_swings_is_told_with_the_flags_to_look_at():
    ((index, line),) = swings(SWINGS)
    assert index == 5
    assert "3 of the last 6 reports lie 57 nats per frame or more below the 229 reached before" in line
    assert "lowest -18, median gradient norm 1002" in line and "--learning_rate" in line and "which is off" in line
    ((_, line),) = swings(SWINGS, clip_norm=500.0, clipped=0.84)
    assert "--clip_norm, now 500 (84% of the updates since the last report were clipped)" in line


def test_swings_are_told_once_a_spell_and_by_length():
    assert [i for i, _ in swings([300.0] * 5 + [300.0, -300.0] * 20)] == [10]
    assert len(swings(([300.0] * 8 + [-300.0] * 8) * 2)) == 2  # in between, a window without a low
    monitor = health.Monitor(4, 5)
    lines = [
        monitor.check(report(iwae_per_frame=bound), length) for length, bound in [(3, 400.0)] * 10 + [(4, 200.0)] * 10
    ]  # longer sequences have lower bounds
    assert not any(lines)
