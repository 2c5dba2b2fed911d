"""One operation at a time, so that graphs other than training's give the same numbers twice too; graphs as the commands
run them."""

import sqair  # noqa: F401  before TensorFlow, which it sets up

import tensorflow as tf  # isort: skip

from sqair.devices import prepare_tensorflow

tf.config.threading.set_inter_op_parallelism_threads(1)
prepare_tensorflow()
