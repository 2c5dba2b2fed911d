"""Discovery: the number of slots used, its priors, the recurrent prior of where, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from sqair.discover import Discover, RecurrentNormal, log_number_of_steps, number_of_steps
from sqair.glimpses import GlimpseEncoder
from tests.model_helpers import draw, make_busy, make_slots, small_config
from tests.reference.numpy_sqair import elu, normal, softplus


def make_discover(**flags):
    config = small_config(**flags)
    discover = Discover(config, GlimpseEncoder((4, 4, 1), config.n_what, config.n_hidden, True))
    make_busy(discover)
    return discover


@pytest.mark.parametrize(
    "probs, expected",
    [
        ([0.5, 0.8, 0.25], [0.5, 0.1, 0.3, 0.1]),
        ([1.0, 1.0, 1.0], [0, 0, 0, 1]),
        ([0.0, 0.7, 0.7], [1, 0, 0, 0]),
        ([1.0, 0.0, 0.5], [0, 1, 0, 0]),
        ([0.3], [0.7, 0.3]),
    ],
)
def test_number_of_steps_by_hand(probs, expected):
    probs = tf.constant([probs, probs])
    with tf.GradientTape() as tape:
        tape.watch(probs)
        joint = number_of_steps(probs)
        loss = tf.reduce_sum(joint * np.arange(1.0, len(expected) + 1))
    np.testing.assert_allclose(joint, [expected, expected], atol=1e-7)
    assert np.all(np.isfinite(tape.gradient(loss, probs)))


def test_number_of_steps_gradient_by_hand():
    probs = tf.constant([0.0, 0.7])
    with tf.GradientTape() as tape:
        tape.watch(probs)
        p_two = number_of_steps(probs)[2]  # p1 p2
    np.testing.assert_allclose(tape.gradient(p_two, probs), [0.7, 0.0], atol=1e-7)


def test_log_number_of_steps_is_clipped_with_its_gradient():
    joint = tf.constant([[0.25, 0.75, 0.0], [0.5, 1e-20, 0.5]])
    with tf.GradientTape() as tape:
        tape.watch(joint)
        log_p = log_number_of_steps(joint, tf.constant([1.0, 1.0]))
    np.testing.assert_allclose(log_p, np.log([0.75, 1e-16]), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(log_p, joint), [[0, 1 / 0.75, 0], [0, 1e16, 0]], rtol=1e-5)


def test_posterior_counts_present_slots_only():
    discover = make_discover()
    slots = make_slots([[1, 1, 0], [0, 0, 0]])
    log_probs = discover.posterior_log_probs(slots)
    s = tf.nest.map_structure(lambda x: x.numpy().astype(np.float64), slots)
    presence = np.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(log_probs.what, normal(s.what, s.what_loc, s.what_scale).sum(-1) * presence, rtol=1e-4)
    np.testing.assert_allclose(
        log_probs.where, normal(s.where, s.where_loc, s.where_scale).sum(-1) * presence, rtol=1e-4
    )
    p = 1 / (1 + np.exp(-s.presence_logit[..., 0]))
    discrete = np.log([p[0, 0] * p[0, 1] * (1 - p[0, 2]), 1 - p[1, 0]])
    np.testing.assert_allclose(log_probs.discrete, discrete, rtol=1e-4)
    np.testing.assert_allclose(log_probs.total[1], discrete[1], rtol=1e-4)


@pytest.mark.parametrize("later", [0.0, 1.0])
def test_categorical_prior_by_hand(later):
    discover = make_discover()
    presence = [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    expected = draw(3, 1, seed=5)
    steps = discover.prior_log_probs(
        make_slots(presence), tf.zeros([3, 32]), tf.constant(expected), tf.constant(later)
    ).discrete
    first, second = discover.steps_mlp.layers
    hidden = elu(expected @ first.w["x"].numpy() + first.b)
    bias = discover.step_bias + later * discover.timestep_bias.numpy()
    logits = elu(bias + hidden @ second.w["x"].numpy() + second.b)
    log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    np.testing.assert_allclose(steps, log_p[range(3), [3, 1, 0]], rtol=1e-4, atol=1e-5)


def test_categorical_prior_starts_with_no_discovery_after_the_first_frame():
    discover = Discover(small_config(), GlimpseEncoder((4, 4, 1), 3, 32, True))
    np.testing.assert_array_equal(discover.timestep_bias, [10, 0, 0, 0])
    np.testing.assert_array_equal(discover.step_bias, [0, 0, 0, 0])


def test_geometric_prior_by_hand():
    discover = make_discover(disc_prior_type="geom", step_success_prob=0.6)
    steps = discover.prior_log_probs(
        make_slots([[1, 1, 1], [1, 0, 0], [0, 0, 0]]), tf.zeros([3, 32]), tf.zeros([3, 1]), tf.constant(1.0)
    ).discrete
    np.testing.assert_allclose(steps, np.log([0.6**3 * 0.4, 0.6 * 0.4, 0.4]), rtol=1e-5)
    assert discover.steps_mlp is None


@pytest.mark.parametrize("scale_prior, mean", [("-1.5", [-1.5, -1.5, 0, 0]), ("-1,2", [-1, 2, 0, 0])])
def test_prior_of_where_without_recurrence(scale_prior, mean):
    discover = make_discover(rec_where_prior=False, scale_prior=scale_prior)
    presence = np.array([[1, 1, 0], [0, 0, 0]])
    slots = make_slots(presence)
    log_probs = discover.prior_log_probs(slots, tf.zeros([2, 32]), tf.zeros([2, 1]), tf.constant(1.0))
    np.testing.assert_allclose(
        log_probs.where, normal(slots.where.numpy(), np.array(mean), 1).sum(-1) * presence, rtol=1e-5
    )
    np.testing.assert_allclose(log_probs.what, normal(slots.what.numpy(), 0, 1).sum(-1) * presence, rtol=1e-5)
    assert discover.where_prior is None


@pytest.mark.parametrize("scale_prior, start", [("-1.5", [-1.5, -1.5]), ("-1,2", [-1, 2])])
def test_recurrent_prior_starts_at_the_scale_prior(scale_prior, start):
    discover = Discover(small_config(scale_prior=scale_prior), GlimpseEncoder((4, 4, 1), 3, 32, True))
    np.testing.assert_array_equal(discover.where_prior.readout.b, start + [0, 0, 1, 1, 1, 1])


def test_recurrent_prior_is_a_loop_from_one_state():
    prior = RecurrentNormal(4, 6, [0.0] * 8)
    make_busy(prior)
    where, conditioning = draw(2, 5, 3, 4), draw(2, 5, 6, seed=1)  # [T, P, N, 4], [T, P, c]
    distribution = prior(tf.constant(where), tf.constant(conditioning))
    weights = np.concatenate([prior.conditioning.w["state"], prior.conditioning.w["conditioning"]])
    start = np.broadcast_to(prior.initial_state, [2, 5, 4])
    state = elu(np.concatenate([start, conditioning], -1) @ weights + prior.conditioning.b)
    recurrent = state @ prior.hidden_to_hidden.w["x"].numpy() + prior.hidden_to_hidden.b
    previous = np.broadcast_to(prior.initial_sample, [2, 5, 4])
    for k in range(3):
        hidden = np.tanh(previous @ prior.in_to_hidden.w["x"].numpy() + prior.in_to_hidden.b + recurrent)
        y = hidden @ prior.readout.w["x"].numpy() + prior.readout.b
        np.testing.assert_allclose(distribution.loc[:, :, k], y[..., :4], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(distribution.scale[:, :, k], softplus(y[..., 4:]) + 0.01, rtol=1e-4)
        previous = where[:, :, k]
