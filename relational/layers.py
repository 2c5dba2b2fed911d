"""Linear layers and layer norms whose variables exist from construction, and the checks shared by the modules.

Sonnet 2 creates variables at a layer's first call. The relational modules are told every input size, so each layer is
called once on zeros: parameters can be counted, and checkpoints restored, before the first frame.
"""

from collections.abc import Sequence

import sonnet as snt
import tensorflow as tf


def linear(input_size: int, output_size: int, dtype: tf.DType, name: str) -> snt.Linear:
    """A linear layer with variables `w` (truncated normal, std 1/sqrt(input_size)) and `b` (zeros)."""
    layer = snt.Linear(output_size, name=name)
    layer(tf.zeros([1, input_size], dtype))
    return layer


def n_weights(*modules: snt.Module) -> int:
    """The numbers in all matrices of linear layers and MLPs: their multiplication-additions for one row of inputs."""
    return sum(v.shape.num_elements() for module in modules for v in module.trainable_variables if v.shape.rank == 2)


def layer_norm(size: int, rank: int, epsilon: float, dtype: tf.DType, name: str) -> snt.LayerNorm:
    """A layer norm over the last axis of tensors of the given rank, `scale` starting at 1 and `offset` at 0."""
    layer = snt.LayerNorm(axis=-1, create_scale=True, create_offset=True, eps=epsilon, name=name)
    layer(tf.zeros([1] * (rank - 1) + [size], dtype))
    return layer


def check_positive(**sizes: int) -> None:
    """Raises ValueError, naming it, for any size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_shape(name: str, tensor: tf.Tensor, shape: Sequence[int | None]) -> None:
    """Raises ValueError if the static shape of `tensor` cannot be `shape` (None fits any size)."""
    if not tf.TensorShape(tensor.shape).is_compatible_with(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")


def zero_absent(states: tf.Tensor, presence: tf.Tensor) -> tf.Tensor:
    """The states with those of absent objects replaced by zeros.

    Args:
      states: [P, N, S].
      presence: [P, N], 1 for an object, 0 for an empty slot.

    Returns:
      [P, N, S]. By selection, not by a product, which would turn infinities in empty slots into NaN.

    Raises:
      ValueError: the shapes do not fit each other.
    """
    check_shape("states", states, [None, None, None])
    check_shape("presence", presence, states.shape[:2])
    return tf.where(presence[..., tf.newaxis] > 0, states, tf.zeros_like(states))
