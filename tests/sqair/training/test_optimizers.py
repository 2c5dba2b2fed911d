"""Optimisers against TensorFlow 1.6's recorded trajectories; the schedule's boundaries."""

import numpy as np
import pytest
import tensorflow as tf

from data_gen.errors import UserError
from sqair.training.optimizers import Optimizer, Schedule
from sqair.training.rules import RULES
from tests.data_helpers import ROOT


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["rmsprop", "adam", "momentum", "sgd"])
def test_trajectories_of_tensorflow_1(kind, compiled):
    with np.load(ROOT / "tests" / "reference" / "optimizers.npz") as recorded:
        gradients, initial, expected = (recorded[name] for name in ("gradients", "initial", kind))
    first, second = tf.Variable(initial[:3]), tf.Variable(initial[3:])
    optimizer = Optimizer(kind, [first, second])
    tf.config.run_functions_eagerly(not compiled)
    try:
        apply = tf.function(optimizer.apply)
        for i in range(20):
            apply([tf.constant(gradients[i, :3]), tf.constant(gradients[i, 3:])], tf.constant(1e-2))
            np.testing.assert_allclose(np.concatenate([first, second]), expected[i], rtol=0, atol=1e-6)
    finally:
        tf.config.run_functions_eagerly(False)
    assert optimizer.updates == 20 and np.abs(expected[-1] - initial).max() > 1e-2


def test_slots_start_where_tensorflow_1_starts_them():
    optimizer = Optimizer("rmsprop", [tf.Variable([5.0, 6.0])])
    np.testing.assert_array_equal(optimizer.slots["rms"][0], [1, 1])
    np.testing.assert_array_equal(optimizer.slots["momentum"][0], [0, 0])
    assert all(start == 0 for kind in ("adam", "momentum") for start in RULES[kind].slots.values())
    assert not any(slot.trainable for slots in optimizer.slots.values() for slot in slots)


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="'lion'.*rmsprop, adam, sgd, momentum"):
        Optimizer("lion", [tf.Variable(1.0)])


def test_epsilon_of_rmsprop_stands_inside_the_root():
    """Tested with gradients so small that the mean square, once it has decayed, is below epsilon."""
    x = tf.Variable([0.0, 0.0])
    optimizer = Optimizer("rmsprop", [x])
    optimizer.slots["rms"][0].assign([0.0, 0.0])
    optimizer.apply([tf.constant([1e-5, 0.0])], tf.constant(1.0))
    np.testing.assert_allclose(x, [-1e-5 / np.sqrt(1e-11 + 1e-10), 0.0], rtol=1e-5)


def test_schedule_boundaries_by_hand():
    """4, 6, 10 of 2,000,000: boundaries after 400,000 and 1,000,000 updates; a boundary belongs to the rate before."""
    schedule = Schedule(9e-5, "4,6,10", 2_000_000)
    assert schedule.boundaries == [400_000, 1_000_000]
    for step, rate in (
        (0, 9e-5),
        (400_000, 9e-5),
        (400_001, 3e-5),
        (1_000_000, 3e-5),
        (1_000_001, 1e-5),
        (5_000_000, 1e-5),
    ):
        assert schedule(step) == pytest.approx(rate, rel=1e-12), step


def test_schedule_rounds_to_steps_and_may_be_empty():
    assert Schedule(1.0, "1,1,1", 10).boundaries == [3, 7]
    assert Schedule(1.0, "", 10)(10**9) == Schedule(1.0, "5", 10)(10**9) == 1.0


@pytest.mark.parametrize("schedule", ["4,-6,10", "0,1", "4,nan", "1,inf", "a,b"])
def test_bad_schedules_are_refused(schedule):
    with pytest.raises(UserError):
        Schedule(1.0, schedule, 100)


def test_the_rate_falls_along_half_a_cosine_wave():
    schedule = Schedule(1e-3, "4,6,10", 300, final_rate=1e-5, decay_itr=100)
    for step, rate in (
        (0, 1e-3),
        (100, 1e-3),
        (150, 1e-5 + 9.9e-4 * (0.5 + 0.5**1.5)),
        (200, 5.05e-4),
        (300, 1e-5),
        (400, 1e-5),
    ):
        assert schedule(step) == pytest.approx(rate, rel=1e-12), step


def test_a_fall_that_begins_after_the_end_is_refused():
    with pytest.raises(UserError, match="decay_itr 100"):
        Schedule(1e-3, "", 100, final_rate=1e-5, decay_itr=100)
