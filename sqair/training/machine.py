"""Settings of TensorFlow for this machine: threads per shard, and the precision of matrix products."""

import tensorflow as tf

from data_gen.console import n_cores
from sqair.config import TrainConfig
from sqair.devices import prepare_tensorflow
from sqair.training.shards import n_shards


def use_machine(train: TrainConfig) -> None:
    """Sets the threads per shard and the precision of matrix products; call it before TensorFlow computes anything.

    Args: train: `TrainConfig`.
    """
    prepare_tensorflow(train.tf32)
    shards = n_shards(train)
    if shards > 1:
        tf.config.threading.set_inter_op_parallelism_threads(shards)
        tf.config.threading.set_intra_op_parallelism_threads(max(n_cores() // shards, 1))
    if train.bfloat16:  # a rewriting of graphs; another one would change the order of sums (`training.gradient_sums`)
        tf.config.optimizer.set_experimental_options(
            {
                "disable_meta_optimizer": False,
                "arithmetic_optimization": False,
                "auto_mixed_precision_onednn_bfloat16": True,
            }
        )
