"""One operation at a time, so that the same numbers come twice from graphs that are not training's too."""

import sqair  # noqa: F401  before TensorFlow, which it sets up

import tensorflow as tf  # isort: skip

tf.config.threading.set_inter_op_parallelism_threads(1)
