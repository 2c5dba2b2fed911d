"""One operation at a time, so that graphs other than training's give the same numbers twice too."""

import sqair  # noqa: F401  before TensorFlow, which it sets up

import tensorflow as tf  # isort: skip

tf.config.threading.set_inter_op_parallelism_threads(1)
