"""Sums of gradients in a fixed order, so that they are rounded in the same way every time.

TensorFlow's AddN writes its sum over the first of its terms that nothing else uses any more, and begins with that term.
Where operations run side by side, timing decides which term that is, and so how the sum is rounded. If the first term
is a tensor that nothing else uses, AddN always begins with that one.
"""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.ops import gen_math_ops


@contextlib.contextmanager
def in_fixed_order() -> Iterator[None]:
    """Makes sums of more than two tensors that are traced in this context, such as gradients', begin with a sum of two.

    The terms keep their order: ((g_0 + g_1) + g_2) + ... TensorFlow has no public way to choose how the gradients of
    nested functions are summed, so the function that adds the operation is replaced;
    `tests/sqair/training/test_gradient_sums.py` checks the graphs that result.
    """
    add_n = gen_math_ops.add_n

    def begin_with_a_sum(inputs: list[tf.Tensor], name: str | None = None) -> tf.Tensor:
        if len(inputs) > 2:
            inputs = [gen_math_ops.add_v2(inputs[0], inputs[1]), *inputs[2:]]
        return add_n(inputs, name=name)

    gen_math_ops.add_n = begin_with_a_sum
    try:
        yield
    finally:
        gen_math_ops.add_n = add_n
