"""Building blocks with the original's variables and initialisers (docs/spec/sqair.md, "Building blocks").

Every layer takes *named* inputs and keeps one weight matrix per input: ``[x, y] W = x W_x + y W_y``. The product
is the same as with one matrix over the concatenation, but the share of inputs that are known before a loop can be
computed once, outside of it, and an input can be added to a trained layer without touching its weights.
All variables exist after construction.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import sonnet as snt
import tensorflow as tf

InputSizes = int | Mapping[str, int]
Initializer = Callable[[Sequence[int]], tf.Tensor]


def zeros(shape: Sequence[int]) -> tf.Tensor:
    """An initialiser that fills with zeros."""
    return tf.zeros(shape)


def constant(value: float | Sequence[float]) -> Initializer:
    """An initialiser that fills (or broadcasts) `value`."""
    return lambda shape: tf.broadcast_to(tf.constant(value, tf.float32), shape)


def uniform(limit: float) -> Initializer:
    """An initialiser that draws uniformly from [-limit, limit]."""
    return lambda shape: tf.random.uniform(shape, -limit, limit)


def glorot_limit(fan_in: int, fan_out: int) -> float:
    """Half-width of the Glorot-uniform distribution, sqrt(6 / (fan_in + fan_out))."""
    return math.sqrt(6.0 / (fan_in + fan_out))


def matmul(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """[..., m] times [m, n] as one matrix product; w's gradient of a batched one would sum a stack of matrices."""
    if x.shape.rank == 2:
        return tf.matmul(x, w)
    shape = tf.concat([tf.shape(x)[:-1], [w.shape[-1]]], 0) if None in x.shape[:-1] else x.shape[:-1] + w.shape[-1:]
    return tf.reshape(tf.matmul(tf.reshape(x, [-1, w.shape[0]]), w), shape)


class Linear(snt.Module):
    """y = sum_i x_i W_i + b.

    W starts as a truncated normal of standard deviation 1/sqrt(fan_in), fan_in counted over all inputs; b as zeros.
    """

    def __init__(
        self,
        inputs: InputSizes,
        output_size: int,
        b_init: Initializer = zeros,
        with_bias: bool = True,
        w_init: Initializer | None = None,
        name: str | None = None,
    ):
        """Creates the variables.

        Args:
          inputs: width of the only input, or a mapping from the name of each input to its width, in the order in
            which the original concatenates them.
          output_size: width of y.
          b_init, w_init: initialisers, functions of a shape.
          with_bias: whether b is added.
          name: module name.
        """
        super().__init__(name=name)
        self.inputs = {"x": inputs} if isinstance(inputs, int) else dict(inputs)
        self.output_size = output_size
        std = 1.0 / math.sqrt(sum(self.inputs.values()))
        w_init = w_init or (lambda shape: tf.random.truncated_normal(shape, stddev=std))
        self.w = {
            key: tf.Variable(w_init([size, output_size]), name="w" if isinstance(inputs, int) else f"w_{key}")
            for key, size in self.inputs.items()
        }
        self.b = tf.Variable(b_init([output_size]), name="b") if with_bias else None

    def __call__(
        self, x: tf.Tensor | None = None, precomputed: tf.Tensor | None = None, **parts: tf.Tensor
    ) -> tf.Tensor:
        """Applies the layer to some of its inputs.

        Args:
          x: [..., size] the input of a layer that has only one.
          precomputed: [..., output_size] what an earlier call computed for the other inputs, the bias included.
          **parts: the named inputs, [..., size] each.

        Returns:
          [..., output_size]; with `precomputed` the full pre-activation, else b plus the share of the given inputs.
        """
        if x is not None:
            parts["x"] = x
        y = precomputed
        for key, part in parts.items():
            product = matmul(part, self.w[key])
            y = product if y is None else y + product
        return y if precomputed is not None or self.b is None else tf.nn.bias_add(y, self.b)


class MLP(snt.Module):
    """Linear layers with an ELU after every one of them, then optionally one more linear layer without."""

    def __init__(
        self,
        inputs: InputSizes,
        hidden_sizes: Sequence[int],
        output_size: int | None = None,
        b_init: Initializer = zeros,
        name: str | None = None,
    ):
        """Creates the layers.

        Args:
          inputs: see `Linear`.
          hidden_sizes: widths of the layers followed by an ELU.
          output_size: width of the last, linear layer; None: there is none.
          b_init: initialiser of the last layer's bias.
          name: module name.
        """
        super().__init__(name=name)
        widths = list(hidden_sizes) + ([output_size] if output_size else [])
        self.n_hidden = len(hidden_sizes)
        self.layers = []
        for i, width in enumerate(widths):
            self.layers.append(
                Linear(
                    inputs if i == 0 else widths[i - 1],
                    width,
                    b_init=b_init if i >= self.n_hidden else zeros,
                    name=f"linear_{i}",
                )
            )

    def precompute(self, **parts: tf.Tensor) -> tf.Tensor:
        """The first layer's share of inputs that do not change, bias included; pass it to the call as `precomputed`."""
        return self.layers[0](**parts)

    def __call__(
        self, x: tf.Tensor | None = None, precomputed: tf.Tensor | None = None, **parts: tf.Tensor
    ) -> tf.Tensor:
        """Applies all layers; for the arguments see `Linear`. Returns: [..., output_size]."""
        y = self.layers[0](x, precomputed=precomputed, **parts)
        for i, layer in enumerate(self.layers):
            y = layer(y) if i else y
            y = tf.nn.elu(y) if i < self.n_hidden else y
        return y


class VanillaRNN(snt.Module):
    """s' = tanh(x W_in + b_in + s W_h + b_h), with two biases as in Sonnet 1; the output is the state."""

    def __init__(self, inputs: InputSizes, size: int, name: str | None = None):
        super().__init__(name=name)
        self.size = size
        self.inputs = Linear(inputs, size, name="in_to_hidden")
        self.recurrent = Linear(size, size, name="hidden_to_hidden")

    def __call__(self, x: tf.Tensor, state: tf.Tensor, recurrent: tf.Tensor | None = None) -> tf.Tensor:
        """One step.

        Args:
          x: [..., R] `self.inputs(...)`.
          state: [..., R].
          recurrent: [..., R] `self.recurrent(state)` if it was computed before.

        Returns:
          [..., R] the new state.
        """
        return tf.tanh(x + (self.recurrent(state) if recurrent is None else recurrent))


class GRU(snt.Module):
    """z = sig(x wz + s uz + bz); r = sig(x wr + s ur + br); c = tanh(x wh + (r s) uh + bh); s' = (1-z) s + z c.

    The three gates' weights stand side by side in one matrix. All start Glorot-uniform by the shape each has in
    Sonnet 1, the biases too.
    """

    def __init__(self, inputs: InputSizes, size: int, name: str | None = None):
        super().__init__(name=name)
        self.size = size
        fan_in = inputs if isinstance(inputs, int) else sum(inputs.values())
        square = uniform(glorot_limit(size, size))
        self.inputs = Linear(inputs, 3 * size, b_init=square, w_init=uniform(glorot_limit(fan_in, size)), name="inputs")
        self.recurrent = Linear(size, 2 * size, with_bias=False, w_init=square, name="recurrent")
        self.candidate = Linear(size, size, with_bias=False, w_init=square, name="candidate")

    def __call__(self, x: tf.Tensor, state: tf.Tensor, recurrent: tf.Tensor | None = None) -> tf.Tensor:
        """One step.

        Args:
          x: [..., 3R] `self.inputs(...)`.
          state: [..., R].
          recurrent: [..., 2R] `self.recurrent(state)` if it was computed before.

        Returns:
          [..., R] the new state.
        """
        recurrent = self.recurrent(state) if recurrent is None else recurrent
        gates, candidate = tf.split(x, [2 * self.size, self.size], -1)
        z, r = tf.split(tf.sigmoid(gates + recurrent), 2, -1)
        c = tf.tanh(candidate + self.candidate(r * state))
        return state + z * (c - state)


CELLS: dict[str, type[VanillaRNN | GRU]] = {"VanillaRNN": VanillaRNN, "GRU": GRU}


def initial_state(size: int, name: str) -> tf.Variable:
    """A trainable initial RNN state, [1, size], zeros."""
    return tf.Variable(tf.zeros([1, size]), name=name)


class GaussianHead(snt.Module):
    """(loc, scale) of a Gaussian: linear to 2d, split, scale = softplus(s) + 0.01.

    As in the original there is no linear layer if the input has 2d numbers already.
    """

    MIN_STD = 1e-2

    def __init__(self, input_size: int, size: int, name: str | None = None):
        super().__init__(name=name)
        self.linear = None if input_size == 2 * size else Linear(input_size, 2 * size, name="linear")

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Args: x [..., input_size]. Returns: loc, scale, [..., size] each."""
        loc, raw = tf.split(x if self.linear is None else self.linear(x), 2, -1)
        return loc, positive(raw)


def positive(raw: tf.Tensor) -> tf.Tensor:
    """softplus(raw) + 0.01: the standard deviation of all of the model's Gaussians."""
    return tf.nn.softplus(raw) + GaussianHead.MIN_STD
