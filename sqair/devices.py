"""Settings of TensorFlow that all commands make before it computes anything."""

import contextlib

import tensorflow as tf


def prepare_tensorflow(tf32: bool = False) -> None:
    """Lets TensorFlow allocate GPU memory as needed, not all at once, and run graphs as they are traced.

    Rewriting graphs (Grappler) takes longer than it saves (docs/performance.md). Call it before TensorFlow computes.

    Args:
      tf32: round the factors of float32 products to TF32; else they stay float32.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # in use already: the caller has decided
            tf.config.experimental.set_memory_growth(gpu, True)
