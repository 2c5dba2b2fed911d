"""Sums of gradients that round alike every time.

TensorFlow's AddN writes its sum over the first of its terms that nothing else needs any more, and begins with that
one. Where operations run side by side it is a matter of timing which one that is, and with it how the sum is rounded.
A term that no one else ever needs, put first, is the one it always takes.
"""

import contextlib
from typing import Iterator

from tensorflow.python.ops import gen_math_ops


@contextlib.contextmanager
def in_fixed_order() -> Iterator[None]:
    """Makes sums of more than two tensors that are traced meanwhile, gradients' above all, begin with a sum of two.

    The terms keep their order: ((g_0 + g_1) + g_2) + ... There is no public way to say how gradients are summed when
    they are those of nested functions, so the operation's maker is exchanged; `tests/test_gradient_sums.py` looks at
    the graphs that come of it.
    """
    add_n = gen_math_ops.add_n

    def begin_with_a_sum(inputs, name=None):
        if len(inputs) > 2:
            inputs = [gen_math_ops.add_v2(inputs[0], inputs[1]), *inputs[2:]]
        return add_n(inputs, name=name)

    gen_math_ops.add_n = begin_with_a_sum
    try:
        yield
    finally:
        gen_math_ops.add_n = add_n
