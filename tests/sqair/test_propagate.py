"""Propagation: its priors by hand, the distribution of where, and absent objects."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from sqair.core import AffineDiagNormal, masked_logit, sample_presence
from sqair.glimpses import GlimpseEncoder
from sqair.propagate import Latents, Propagate, PropagationPrior
from tests.model_helpers import draw, make_busy, make_slots, small_config
from tests.reference.numpy_sqair import softplus

P, N, D, R = 2, 3, 3, 32
PRESENCE = np.float32([[1, 1, 0], [1, 0, 0]])


def make_objects():
    return Latents(
        tf.constant(draw(P, N, D)),
        tf.constant(draw(P, N, 4, seed=1)),
        tf.constant(PRESENCE[..., None]),
        tf.constant(draw(P, N, 1, seed=2)),
    )


@pytest.mark.parametrize("kind", ["rnn", "rw", "guided"])
def test_prior_statistics_by_hand(kind):
    prior = PropagationPrior(small_config(prop_prior_type=kind, prop_prior_step_bias=2.5), {})
    make_busy(prior)
    objects, state = make_objects(), tf.constant(draw(P, N, R, seed=3))
    statistics, new_state = prior(objects, state, None)
    inputs = prior.rnn.inputs(objects=tf.concat([objects.what, objects.where], -1))
    np.testing.assert_allclose(new_state, prior.rnn(inputs, state), rtol=1e-6)

    y = new_state.numpy() @ prior.readout.w["x"].numpy() + prior.readout.b
    logit, where_loc, what_loc = y[..., :1], y[..., 1:5], y[..., 5:8]
    where_scale, what_scale = softplus(y[..., 8:12]) + 0.01, softplus(y[..., 12:]) + 0.01
    presence = PRESENCE[..., None]
    logit = np.where(presence > 0, logit + 2.5, -88.0)
    if kind != "rnn":
        guide = {"rw": 0.0, "guided": 0.1}[kind]
        where_loc, what_loc = objects.where + guide * where_loc, objects.what + guide * what_loc
        logit = objects.presence_logit + 0.1 * logit
    for ours, expected in zip(statistics, (what_loc, what_scale, where_loc, where_scale, logit)):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_where_has_the_covariance_of_the_spec():
    posterior = AffineDiagNormal()
    c = draw(10, seed=4)
    posterior.cholesky_scale.assign(c)
    loc, scale, noise = draw(2, 3, 4), np.exp(draw(2, 3, 4, seed=1)), draw(2, 3, 4, seed=2)
    tril = scale[..., None] * tfp.math.fill_triangular(c).numpy() + np.apply_along_axis(np.diag, -1, scale)
    assert np.diag(tfp.math.fill_triangular(c).numpy() + np.eye(4)).min() < 0  # the determinant's sign matters too
    x = loc + scale * posterior.correlate(tf.constant(noise))
    np.testing.assert_allclose(x, loc + np.einsum("...ij,...j->...i", tril, noise), rtol=1e-4, atol=1e-5)
    covariance = tril @ np.swapaxes(tril, -1, -2)
    theirs = tfp.distributions.MultivariateNormalFullCovariance(loc, covariance).log_prob(x)
    np.testing.assert_allclose(posterior.log_prob(x, tf.constant(loc), tf.constant(scale)), theirs, rtol=1e-3)


def test_where_starts_glorot_uniform():
    starts = np.concatenate([AffineDiagNormal().cholesky_scale.numpy() for _ in range(40)])
    assert 0.95 * np.sqrt(0.3) < np.abs(starts).max() <= np.sqrt(0.3)


def test_presence_needs_presence_before():
    logit = masked_logit(tf.constant([[3.0], [3.0]]), tf.constant([[1.0], [0.0]]))
    np.testing.assert_array_equal(logit, [[3.0], [-88.0]])
    for uniform, expected in ((0.0, [[1.0], [0.0]]), (0.94, [[1.0], [0.0]]), (0.96, [[0.0], [0.0]])):
        alive = sample_presence(logit, tf.constant([[1.0], [0.0]]), tf.fill([2, 1], uniform))
        np.testing.assert_array_equal(alive, expected)  # sigmoid(3) = 0.953


def make_propagate(**flags):
    propagate = Propagate(small_config(**flags), GlimpseEncoder((4, 4, 1), D, R, True))
    make_busy(propagate)
    return propagate


def test_log_probabilities_of_present_objects_only():
    propagate = make_propagate()
    now = np.float32([[1, 0, 0], [0, 0, 0]])
    slots, before = make_slots(now), tf.constant(PRESENCE)
    prior, _ = propagate.prior(make_objects(), tf.constant(draw(P, N, R)), None)
    q, p = propagate.posterior_log_probs(slots, before), propagate.prior_log_probs(slots, prior, before)
    for log_probs, logits in ((q, slots.presence_logit), (p, prior.presence_logit)):
        assert np.array_equal(log_probs.what != 0, now > 0) and np.array_equal(log_probs.where != 0, now > 0)
        alive = 1 / (1 + np.exp(-logits.numpy()[..., 0].astype(np.float64)))
        expected = [np.log(alive[0, 0]) + np.log(1 - alive[0, 1]), np.log(1 - alive[1, 0])]
        np.testing.assert_allclose(log_probs.discrete, expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(log_probs.total[1], expected[1], rtol=1e-3)


@pytest.mark.parametrize("kind", ["rnn", "guided"])
def test_prior_is_a_sample_when_generating(kind):
    propagate = make_propagate(prop_prior_type=kind)
    objects = make_objects()
    prior, _ = propagate.prior(objects, tf.constant(draw(P, N, R)), None)
    noise = [tf.constant(draw(N, P, 4)), tf.constant(draw(N, P, D, seed=1)), tf.fill([N, P, 1], 1e-6)]
    slots = propagate.generate(prior, objects, noise)
    for k in range(N):
        where = prior.where_loc[:, k] + prior.where_scale[:, k] * noise[0][k]
        what = prior.what_loc[:, k] + prior.what_scale[:, k] * noise[1][k]
        np.testing.assert_allclose(slots.where[:, k], where, rtol=1e-5)
        np.testing.assert_allclose(slots.what[:, k], what, rtol=1e-5)
    np.testing.assert_array_equal(slots.presence[..., 0], PRESENCE)
    if kind == "guided":  # a walk's logit alone would let absent objects come back
        assert np.any(tf.sigmoid(prior.presence_logit).numpy()[PRESENCE == 0] > 1e-6)
