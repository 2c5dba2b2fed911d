"""A batch computed in parts, side by side.

Products of 80 rows, one on each core, reach 90 GFLOP/s per core; products of 160 rows reach 125 on two cores together
(docs/performance.md). So two halves of a batch, each on a thread of its own, take less time than the whole batch on
both. TensorFlow computes side by side what does not depend on each other; losses, gradients and reports of the parts
are averaged. Only the rounding differs from a batch in one piece.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from data_gen.console import n_cores
from sqair.config import TrainConfig
from sqair.noise import Noise

LEAST_SEQUENCES = 8  # per shard, if there are more than two: smaller products have not been measured


def default_shards(cores: int, batch_size: int) -> int:
    """The number of parts that a batch is split into on a CPU: one per core, as long as the parts are equal and have at
    least `LEAST_SEQUENCES` sequences; two parts, the case that was measured, may be smaller. docs/performance.md, "More
    cores", has the reasons.

    Args: cores: that the process may use. batch_size: B.
    """
    equal = [parts for parts in range(1, cores + 1) if batch_size % parts == 0]
    return max(parts for parts in equal if parts <= 2 or batch_size // parts >= LEAST_SEQUENCES)


def n_shards(train: TrainConfig) -> int:
    """The number of parts that batches are split into: --shards, or else one with GPUs, --xla or --distribute, and
    `default_shards` without."""
    if train.shards:
        return train.shards
    one_piece = train.xla or train.distribute != "none" or bool(tf.config.list_physical_devices("GPU"))
    return 1 if one_piece else default_shards(n_cores(), train.batch_size)


def inline_frames(train: TrainConfig) -> bool:
    """Whether the frames' functions are inlined into the graph of a step, see `SQAIR`.

    In shards they are not, which starts sooner and costs at most 1 to 2 % of a step, as each shard has one thread. In
    one piece several threads have more to do side by side if they are. The rewriting to --bfloat16 reaches only what is
    inlined.
    """
    return n_shards(train) == 1 or train.bfloat16


def mean_of_shards(function: Callable[..., Any], obs: tf.Tensor, counts: tf.Tensor, noise: Noise, n_parts: int) -> Any:
    """The mean of a function's results for the parts of a batch.

    The parts do not depend on each other, so TensorFlow computes them side by side. In a graph they call one function,
    which is traced once for all of them.

    Args:
      function: (obs, counts, noise) -> a record of tensors, all of them means over the batch.
      obs, counts, noise: of the whole batch, with axes as in `train_step`.
      n_parts: equal parts.

    Returns:
      The record.
    """
    if n_parts == 1:
        return function(obs, counts, noise)
    if not tf.executing_eagerly():
        function = tf.function(function, autograph=False)
    noises = zip(*(tf.split(x, n_parts, 2) for x in tf.nest.flatten(noise)))
    results = [
        function(obs_part, counts_part, tf.nest.pack_sequence_as(noise, noise_part))
        for obs_part, counts_part, noise_part in zip(tf.split(obs, n_parts, 1), tf.split(counts, n_parts, 1), noises)
    ]
    return tf.nest.map_structure(lambda *xs: tf.add_n(xs) / n_parts, *results)
