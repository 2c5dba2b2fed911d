"""All randomness of one forward pass, drawn up front.

The model is a deterministic function of (observations, noise). That is what lets the original's recorded noise be
replayed, a killed run be resumed bit for bit, and eager, graph and XLA execution be compared.
"""

from typing import NamedTuple

import tensorflow as tf


class PhaseNoise(NamedTuple):
    """Noise of one phase: where [T, N, P, 4] and what [T, N, P, D] standard normal, presence [T, N, P, 1] uniform.

    sample = loc + scale * noise for Gaussians; presence = [noise < probability].
    """

    where: tf.Tensor
    what: tf.Tensor
    presence: tf.Tensor


class Noise(NamedTuple):
    """Noise of propagation and discovery."""

    propagation: PhaseNoise
    discovery: PhaseNoise


def draw(seed, n_frames: int, n_slots: int, n_particles: int, n_what: int) -> Noise:
    """Draws the noise of one forward pass with stateless Philox, the same on every device and in every mode but XLA.

    Call it outside of XLA-compiled functions: there the generator's normals are rounded differently.

    Args:
      seed: two integers, int32 [2]; (run seed, step) in training.
      n_frames, n_slots, n_particles, n_what: T, N, P and D.

    Returns:
      `Noise`, float32.
    """
    shape = [n_frames, n_slots, n_particles]
    seed = tf.cast(seed, tf.int32)
    philox = tf.random.Algorithm.PHILOX
    normal = tf.random.stateless_normal(shape + [2 * (4 + n_what)], seed, alg=philox)
    uniform = tf.random.stateless_uniform(shape + [2], tf.bitwise.invert(seed), alg=philox)
    prop_where, prop_what, disc_where, disc_what = tf.split(normal, [4, n_what, 4, n_what], -1)
    return Noise(PhaseNoise(prop_where, prop_what, uniform[..., :1]),
                 PhaseNoise(disc_where, disc_what, uniform[..., 1:]))
