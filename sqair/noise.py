"""All random numbers of one forward pass, drawn before it.

The model is a deterministic function of (observations, noise). So the original's recorded noise can be replayed, a
killed run resumed bit for bit, and eager, graph and XLA execution compared.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.ops import random_ops_util


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


_PER_COUNT = 4  # numbers that Philox makes per count: its normals come in pairs of pairs


def draw(
    seed: tf.Tensor | Sequence[int], n_frames: int, n_slots: int, n_particles: int, n_what: int, first: int = 0
) -> Noise:
    """Draws the noise of one forward pass with stateless Philox, the same on every device, eagerly and in graphs.

    Call it outside of functions compiled by XLA, which rounds the normals differently.

    Args:
      seed: two integers, int32 [2]; (run seed, step) in training.
      n_frames, n_slots, n_particles, n_what: T, N, P and D.
      first: the first of these frames: the noise is that of frames first to first + T - 1 of a longer draw.

    Returns:
      `Noise`, float32.
    """
    shape = [n_frames, n_slots, n_particles]
    seed = tf.cast(seed, tf.int32)
    normal = _part(tf.raw_ops.StatelessRandomNormalV2, shape + [2 * (4 + n_what)], seed, first)
    uniform = _part(tf.raw_ops.StatelessRandomUniformV2, shape + [2], tf.bitwise.invert(seed), first)
    prop_where, prop_what, disc_where, disc_what = tf.split(normal, [4, n_what, 4, n_what], -1)
    return Noise(
        PhaseNoise(prop_where, prop_what, uniform[..., :1]), PhaseNoise(disc_where, disc_what, uniform[..., 1:])
    )


def _part(draw_numbers, shape: Sequence[int], seed: tf.Tensor, first: int) -> tf.Tensor:
    """The rows from `first` on of what `tf.random.stateless_normal` or `_uniform` draws for more rows: [T, ...].

    Philox is counter-based, so it can start at any row.
    """
    key, counter, algorithm = random_ops_util.get_key_counter_alg(seed, tf.random.Algorithm.PHILOX)
    if not first:
        return draw_numbers(shape=shape, key=key, counter=counter, alg=algorithm)
    counts, surplus = divmod(first * math.prod(shape[1:]), _PER_COUNT)
    numbers = draw_numbers(
        shape=[surplus + math.prod(shape)],
        key=key,
        counter=counter + tf.constant([counts, 0], tf.uint64),
        alg=algorithm,
    )
    return tf.reshape(numbers[surplus:], shape)
