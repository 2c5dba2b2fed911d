"""The interaction network of R-NEM (van Steenkiste et al., 2018), R-SQAIR's first relational module."""

from typing import NamedTuple

import sonnet as snt
import tensorflow as tf

from relational.layers import check_positive, check_shape, layer_norm, linear, n_weights, zero_absent

_NORM_EPSILON = 1e-12


class Interactions(NamedTuple):
    """What the interaction network computes for P particles of N objects.

    Attributes:
      gamma: [P, N, S + E], the relations [update; effect] of every object.
      update: [P, N, S], the new object states u_k.
      effect: [P, N, E], the summed effects E_k of all other objects on object k.
      embedding: [P, N, E], the object embeddings f_k.
      attention: [P, N, N], how much object k (axis 1, the focus) attends to object i (axis 2); 0 for i = k and for
        absent i.
    """

    gamma: tf.Tensor
    update: tf.Tensor
    effect: tf.Tensor
    embedding: tf.Tensor
    attention: tf.Tensor


class InteractionNetwork(snt.Module):
    """Computes the effect of every object on every other one, all pairs in parallel.

    Equation 5 of the R-SQAIR paper, with R-NEM's layers (LN is a layer norm over the last axis)::

        f_k  = ReLU(LN(W_f o_k))                                       embedding
        xi_ki = ReLU(LN(W_xi [f_k; f_i]))                              interaction, directed: i acts on k
        E_k  = sum over present i != k of a(xi_ki) e(xi_ki)            effect
        e(xi) = ReLU(LN(W_e xi)),  a(xi) = sigmoid(W_o tanh(LN(W_a xi)))
        u_k  = W_u [f_k; E_k]                                          update
        gamma_k = [u_k; E_k]

    Two points differ from equation 5 as printed. Its gamma_k has the object's state beside the effect; here R-NEM's
    learned update takes its place, as the paper's parameter count (1,197) requires. And the sum runs over the objects
    present, as in equation 4.

    No weight depends on the number of objects, and permuting the objects permutes the outputs.

    Attributes:
      gamma_size: G, the width of gamma_k: S + E, 16 at the default sizes.
      dtype: of variables, inputs and outputs.
    """

    def __init__(
        self,
        state_size: int = 11,
        embedding: int = 5,
        attention_units: int = 100,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ):
        """Creates all variables: 1,197 parameters at the default sizes.

        Args:
          state_size: S, numbers in an object's state; 11 = what 5, where 4, presence 1, presence logit 1.
          embedding: E, width of embeddings, interactions and effects; 5 in the paper.
          attention_units: hidden units of the attention coefficient; 100 in R-NEM.
          dtype: of variables, inputs and outputs.
          name: of the module.

        Raises:
          ValueError: a size is below 1.
        """
        super().__init__(name=name)
        check_positive(state_size=state_size, embedding=embedding, attention_units=attention_units)
        self.gamma_size = state_size + embedding
        self.dtype = dtype
        self._state_size = state_size

        def norm(size, rank, norm_name):
            return layer_norm(size, rank, _NORM_EPSILON, dtype, norm_name)

        self._embed = linear(state_size, embedding, dtype, "embed")
        self._embed_norm = norm(embedding, 3, "embed_norm")
        self._interact = linear(2 * embedding, embedding, dtype, "interact")
        self._interact_norm = norm(embedding, 4, "interact_norm")
        self._effect = linear(embedding, embedding, dtype, "effect")
        self._effect_norm = norm(embedding, 4, "effect_norm")
        self._attention_hidden = linear(embedding, attention_units, dtype, "attention_hidden")
        self._attention_norm = norm(attention_units, 4, "attention_norm")
        self._attention_out = linear(attention_units, 1, dtype, "attention_out")
        self._update = linear(2 * embedding, state_size, dtype, "update")

    def __call__(self, states: tf.Tensor, presence: tf.Tensor) -> Interactions:
        """Computes the relations between the objects of one frame.

        Args:
          states: [P, N, S], object states; any N.
          presence: [P, N], 1 for an object, 0 for an empty slot, whose state enters as zeros and sends no effect.

        Returns:
          `Interactions`.

        Raises:
          ValueError: a shape does not fit.
        """
        check_shape("states", states, [None, None, self._state_size])
        states = zero_absent(states, presence)
        embedding = tf.nn.relu(self._embed_norm(self._embed(states)))  # [P, N, E]
        interaction = self._interaction(embedding)  # [P, N, N, E]
        effects = tf.nn.relu(self._effect_norm(self._effect(interaction)))  # [P, N, N, E]
        attention = self._attention(interaction, presence)  # [P, N, N]
        effect = tf.reduce_sum(attention[..., tf.newaxis] * effects, axis=2)  # [P, N, E]
        update = self._update(tf.concat([embedding, effect], axis=-1))  # [P, N, S]
        gamma = tf.concat([update, effect], axis=-1)
        return Interactions(gamma, update, effect, embedding, attention)

    def multiply_adds(self, n_objects: int) -> int:
        """Multiplication-additions of the matrix products for N objects: every object, and every pair of them."""
        objects = n_weights(self._embed, self._interact, self._update)
        pairs = n_weights(self._effect, self._attention_hidden, self._attention_out)
        return n_objects * objects + n_objects**2 * pairs

    def _interaction(self, embedding: tf.Tensor) -> tf.Tensor:
        # W [f_k; f_i] is the sum of a term of k and a term of i: N small products instead of N*N.
        w_focus, w_other = tf.split(self._interact.w, 2)
        focus = tf.matmul(embedding, w_focus) + self._interact.b
        other = tf.matmul(embedding, w_other)
        return tf.nn.relu(self._interact_norm(focus[:, :, tf.newaxis] + other[:, tf.newaxis]))

    def _attention(self, interaction: tf.Tensor, presence: tf.Tensor) -> tf.Tensor:
        hidden = tf.tanh(self._attention_norm(self._attention_hidden(interaction)))
        attention = tf.sigmoid(tf.squeeze(self._attention_out(hidden), axis=-1))
        sends = tf.cast(presence > 0, attention.dtype)[:, tf.newaxis]  # [P, 1, N]
        is_other = 1 - tf.eye(tf.shape(presence)[1], dtype=attention.dtype)  # [N, N]
        return attention * sends * is_other
