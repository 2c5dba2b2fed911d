"""Warnings a user can act on: when they come, and when they do not."""

import pytest

from sqair import health
from sqair.model import Report


def report(**values):
    defaults = dict.fromkeys(Report._fields, 0.0) | dict(num_steps=2.0, num_step_accuracy=0.5, ess=2.0)
    return Report(**{**defaults, **values})


def warnings(reports, n_slots=4, k_particles=5):
    monitor = health.Monitor(n_slots, k_particles)
    return [line for values in reports for line in monitor.check(values)]


def test_a_healthy_run_is_left_alone():
    assert warnings([report()] * 50) == []


@pytest.mark.parametrize("trouble, word", [
    (dict(num_steps=0.01), "--disc_step_bias"),
    (dict(num_steps=4.0, num_step_accuracy=0.1), "all 4 slots"),
    (dict(num_steps=4.0, num_step_accuracy=float("nan")), "all 4 slots"),
    (dict(ess=1.0), "effective sample size is 1.00 of 5"),
])
def test_trouble_is_named_once_a_spell(trouble, word):
    spell = [report(**trouble)] * 20
    found = warnings(spell)
    assert len(found) == 1 and word in found[0] and found[0].startswith("warning:")
    assert warnings(spell[:health.PATIENCE - 1]) == []
    assert len(warnings(spell + [report()] + spell)) == 2


def test_all_slots_in_use_is_right_if_there_are_that_many():
    assert warnings([report(num_steps=4.0, num_step_accuracy=1.0)] * 20) == []


def test_one_particle_has_no_effective_sample_size():
    assert warnings([report(ess=1.0)] * 20, k_particles=1) == []


def test_validation_far_below_training():
    assert health.validation_gap(400.0, 395.0) == [] and health.validation_gap(400.0, 450.0) == []
    assert "100.0 nats" in health.validation_gap(400.0, 300.0)[0]
