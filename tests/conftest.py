"""Tests compute as the training command does: one operation at a time, so that the same numbers come twice."""

import tensorflow as tf

tf.config.threading.set_inter_op_parallelism_threads(1)
