"""Bounds and training objectives over importance weights (docs/spec/sqair.md, "Objective").

With w_k = p(x, z_k) / q(z_k | x) of K particles, d_k the discrete latents among z_k and sg a stopped gradient::

    IWAE = log 1/K sum_k w_k                                                        (Burda et al., arXiv:1509.00519)
    cv_k = log 1/K (sum_(j != k) w_j + exp(mean over j != k of log w_j))     (Mnih & Rezende, VIMCO, arXiv:1602.06725)
    loss = -IWAE - 1/K sum_k sg(signal_k) log q(d_k)
    signal_k = log w_k - cv_k in the original, IWAE - cv_k as published
"""

import math
from collections.abc import Sequence

import tensorflow as tf


def iwae(log_weights: tf.Tensor) -> tf.Tensor:
    """The importance-weighted bound log 1/K sum_k w_k (Burda et al., 2015) of log weights [..., K], [...]."""
    return tf.reduce_logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])


def vimco_control_variate(log_weights: tf.Tensor) -> tf.Tensor:
    """The bound with particle k's log weight replaced by the mean of the others', for every k (Mnih & Rezende, 2016).

    cv_k = log 1/K (sum_(j != k) w_j + exp(mean over j != k of log w_j)): the published control variate with the
    geometric mean.

    Args: log_weights: [..., K], K >= 2. Returns: [..., K].
    """
    k = log_weights.shape[-1]
    if k < 2:
        raise ValueError(f"VIMCO needs at least 2 particles to hold one out, got k_particles={k}; use --target iwae.")
    others = (tf.reduce_sum(log_weights, -1, keepdims=True) - log_weights) / (k - 1)
    held_out = log_weights[..., None, :] + tf.linalg.diag(others - log_weights)  # [..., K, K]
    return tf.reduce_logsumexp(held_out, -1) - math.log(k)


def vimco(log_weights: tf.Tensor, discrete_log_prob: tf.Tensor, textbook: bool = False) -> tf.Tensor:
    """The VIMCO loss: mean over sequences and particles of -IWAE - signal * log q(discrete latents).

    signal = stop_gradient(log w_k - cv_k) as the original has it; with `textbook`, stop_gradient(IWAE - cv_k), the
    published learning signal. The published estimator sums over particles where this, like the original, averages.

    Args:
      log_weights: [B, K].
      discrete_log_prob: [B, K] summed over frames.
      textbook: see above.

    Returns:
      scalar, nats.
    """
    bound = iwae(log_weights)[..., None]
    signal = (bound if textbook else log_weights) - vimco_control_variate(log_weights)
    return tf.reduce_mean(-bound - tf.stop_gradient(signal) * discrete_log_prob)


def effective_sample_size(weights: tf.Tensor) -> tf.Tensor:
    """(sum w)^2 / sum w^2 of normalised or unnormalised weights [..., K], [...]; between 1 and K."""
    return tf.square(tf.reduce_sum(weights, -1)) / tf.reduce_sum(tf.square(weights), -1)


def l2(weight: float, variables: Sequence[tf.Variable]) -> tf.Tensor:
    """weight * sum of half squared norms of all trainable variables, as TensorFlow's l2_loss."""
    if not weight:
        return tf.zeros([])
    return weight * tf.add_n([tf.nn.l2_loss(v) for v in variables])
