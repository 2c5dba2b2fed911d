"""Bounds and objectives on numbers computed by hand, and the expectation of their gradients."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from sqair import objectives

WEIGHTS = np.array([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
LOG_WEIGHTS = tf.constant(np.log(WEIGHTS), tf.float32)


def test_iwae_by_hand():
    np.testing.assert_allclose(objectives.iwae(LOG_WEIGHTS), np.log([3.0, 4.0]), rtol=1e-6)


def test_control_variate_by_hand():
    """Entry k is replaced by the geometric mean of the other weights."""
    expected = np.log([[(np.sqrt(12) + 2 + 6) / 3, (1 + np.sqrt(6) + 6) / 3, (1 + 2 + np.sqrt(2)) / 3], [4, 4, 4]])
    np.testing.assert_allclose(objectives.vimco_control_variate(LOG_WEIGHTS), expected, rtol=1e-6)


@pytest.mark.parametrize("textbook", [False, True])
def test_vimco_by_hand(textbook):
    discrete = tf.constant([[-1.0, -2.0, -3.0], [-0.5, -0.5, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch([LOG_WEIGHTS, discrete])
        loss = objectives.vimco(LOG_WEIGHTS, discrete, textbook)
    bound = np.log([[3.0], [4.0]])
    control = objectives.vimco_control_variate(LOG_WEIGHTS).numpy()
    signal = (bound if textbook else np.log(WEIGHTS)) - control
    np.testing.assert_allclose(loss, np.mean(-bound - signal * discrete.numpy()), rtol=1e-5)
    d_weights, d_discrete = tape.gradient(loss, [LOG_WEIGHTS, discrete])
    # The signal has no gradient; the weights' is that of the bound: normalised weights over B.
    np.testing.assert_allclose(d_weights, -WEIGHTS / WEIGHTS.sum(-1, keepdims=True) / 2, rtol=1e-5)
    np.testing.assert_allclose(d_discrete, -signal / 6, rtol=1e-4, atol=1e-7)


def test_vimco_needs_two_particles():
    with pytest.raises(ValueError, match="k_particles=1"):
        objectives.vimco(tf.zeros([2, 1]), tf.zeros([2, 1]))


def test_textbook_vimco_is_unbiased_after_weighing_by_particles():
    """One binary latent, q = sigmoid(a): the mean of the estimator over all outcomes is the bound's gradient.

    The loss is a mean over particles where the estimator is a sum: K times its score term is compared.
    """
    k, a = 3, tf.constant(0.3)
    log_joint = np.array([-1.0, -2.5])  # log p(x, b)

    def log_q(b, a):
        return -tf.nn.softplus(-a) if b else -tf.nn.softplus(a)

    with tf.GradientTape() as tape:
        tape.watch(a)
        bound = 0.0
        for outcome in itertools.product([0, 1], repeat=k):
            log_qs = [log_q(b, a) for b in outcome]
            log_w = tf.stack([log_joint[b] - q for b, q in zip(outcome, log_qs)])
            bound += tf.exp(tf.add_n(log_qs)) * objectives.iwae(log_w)
    exact = tape.gradient(bound, a)

    estimate = 0.0
    for outcome in itertools.product([0, 1], repeat=k):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(a)
            log_qs = tf.stack([log_q(b, a) for b in outcome])[None]
            log_w = tf.constant([[log_joint[b] for b in outcome]], tf.float32) - log_qs
            score = -k * objectives.vimco(tf.stop_gradient(log_w), log_qs, textbook=True)
            direct = objectives.iwae(log_w)[0]
        estimate += tf.exp(tf.reduce_sum(log_qs)) * (tape.gradient(score, a) + tape.gradient(direct, a))
    assert abs(exact) > 1e-2
    np.testing.assert_allclose(estimate, exact, rtol=1e-4)


def test_effective_sample_size_by_hand():
    weights = tf.constant([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
    np.testing.assert_allclose(objectives.effective_sample_size(weights), [1 / 0.375, 1.0, 3.0], rtol=1e-6)


def test_l2_by_hand():
    variables = [tf.Variable([[3.0, 4.0]]), tf.Variable(2.0)]
    np.testing.assert_allclose(objectives.l2(0.1, variables), 0.1 * (25 + 4) / 2, rtol=1e-6)
    assert objectives.l2(0.0, variables) == 0
