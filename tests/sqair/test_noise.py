"""Noise: shapes, distributions, and the same numbers from the same seed in every mode."""

import numpy as np
import pytest
import tensorflow as tf

from sqair import noise


def arrays(seed, *sizes):
    return [x.numpy() for x in tf.nest.flatten(noise.draw(seed, *sizes))]


def test_shapes():
    drawn = noise.draw([0, 1], n_frames=2, n_slots=3, n_particles=4, n_what=5)
    for phase in drawn:
        assert phase.where.shape == (2, 3, 4, 4)
        assert phase.what.shape == (2, 3, 4, 5)
        assert phase.presence.shape == (2, 3, 4, 1)


def test_distributions_and_independence():
    drawn = noise.draw([3, 4], 10, 4, 500, 5)
    numbers = 10 * 4 * 500
    uniforms, normals = [], []
    for phase in drawn:
        uniforms.append(phase.presence.numpy().reshape(numbers))
        normals += [*phase.where.numpy().reshape(numbers, 4).T, *phase.what.numpy().reshape(numbers, 5).T]
    for x in uniforms:
        assert 0 <= x.min() and x.max() < 1
        assert np.allclose(np.histogram(x, 10, (0, 1))[0] / numbers, 0.1, atol=0.01)
    for x in normals:
        assert abs(x.mean()) < 0.03 and abs(x.std() - 1) < 0.03 and abs((x**3).mean()) < 0.1
    correlation = np.corrcoef(uniforms + normals) - np.eye(20)
    assert np.abs(correlation).max() < 0.04


def test_seeds():
    first = arrays([7, 8], 2, 2, 3, 4)
    for ours, expected in zip(arrays(tf.constant([7, 8], tf.int64), 2, 2, 3, 4), first):
        np.testing.assert_array_equal(ours, expected)
    for other in ([7, 9], [8, 8], [8, 7], [7, -8]):
        for ours, expected in zip(arrays(other, 2, 2, 3, 4), first):
            assert not np.any(ours == expected)


def test_graph_draws_the_same():
    compiled = tf.function(lambda seed: noise.draw(seed, 2, 2, 3, 4))
    for ours, expected in zip(tf.nest.flatten(compiled(tf.constant([7, 8]))), arrays([7, 8], 2, 2, 3, 4)):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("sizes", [(1, 1, 2), (3, 7, 5), (2, 5, 50)])
def test_a_part_of_a_draw_is_that_part_of_the_whole(sizes):
    whole = arrays([7, 8], 9, *sizes)
    for first, n_frames in ((0, 4), (1, 3), (4, 4), (8, 1)):
        part = [x.numpy() for x in tf.nest.flatten(noise.draw([7, 8], n_frames, *sizes, first=first))]
        for ours, expected in zip(part, whole):
            np.testing.assert_array_equal(ours, expected[first : first + n_frames])


def test_numbers_are_those_of_tensorflows_own_functions():
    drawn = noise.draw([7, 8], 3, 2, 5, 4)
    seed, options = tf.constant([7, 8]), dict(alg=tf.random.Algorithm.PHILOX)
    np.testing.assert_array_equal(
        tf.concat([drawn.propagation.where, drawn.propagation.what, drawn.discovery.where, drawn.discovery.what], -1),
        tf.random.stateless_normal([3, 2, 5, 16], seed, **options),
    )
    np.testing.assert_array_equal(
        tf.concat([drawn.propagation.presence, drawn.discovery.presence], -1),
        tf.random.stateless_uniform([3, 2, 5, 2], ~seed, **options),
    )


@pytest.mark.parametrize("step", [0, 2**31 - 1])
def test_any_step_of_a_run_may_be_drawn(step):
    assert all(np.all(np.isfinite(x)) for x in arrays([2**31 - 1, step], 1, 1, 1, 1))
