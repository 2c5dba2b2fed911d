"""GPUs, set up by the commands before TensorFlow computes anything."""

import contextlib

import tensorflow as tf


def prepare_gpus(tf32: bool = False) -> None:
    """Lets GPU memory be taken when it is needed, not all of it at once; call it before TensorFlow computes.

    Args:
      tf32: let products of float32 be rounded to TF32; else float32 is what it says.
    """
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # in use already: its user has decided
            tf.config.experimental.set_memory_growth(gpu, True)
