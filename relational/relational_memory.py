"""The relational memory core (Santoro et al., 2018), R-SQAIR's second relational module, and a slot-wise variant."""

from typing import NamedTuple

import sonnet as snt
import tensorflow as tf

from relational.layers import check_positive, check_shape, layer_norm, linear, n_weights, zero_absent

_NORM_EPSILON = 1e-5


class MemoryStep(NamedTuple):
    """One step of a relational memory with N rows of M numbers.

    Attributes:
      output: the new memory, flattened to [P, N * M] (`RelationalMemory`) or as it is (`SlotRelationalMemory`).
      memory: [P, N, M], the new memory.
      attention: [P, heads, rows, rows], how much each of the rows [memory; input] (axis 2) attends to each of them
        (axis 3), in the last block.
    """

    output: tf.Tensor
    memory: tf.Tensor
    attention: tf.Tensor


class AttentionBlock(snt.Module):
    """Multi-head self-attention over rows, then an MLP for each row, both with residual and layer norm.

    Section 3 of Santoro et al. (2018), with the layer norm that Sonnet 1 puts on the projections::

        [Q | K | V] of each head = LN(W rows)
        A = softmax(Q K' / sqrt(key_size))
        rows' = LN(rows + [A V of all heads])
        rows'' = LN(rows' + MLP(rows'))
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        key_size: int,
        mlp_layers: int,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ):
        """Creates all variables.

        Args:
          num_heads: heads; a row has num_heads * head_size numbers.
          head_size: numbers of a value.
          key_size: numbers of a query and of a key.
          mlp_layers: layers of the MLP, all as wide as a row; ReLU between them, none after the last.
          dtype: of variables, inputs and outputs.
          name: of the module.
        """
        super().__init__(name=name)
        row_size = num_heads * head_size
        self._num_heads = num_heads
        self._sizes = [key_size, key_size, head_size]
        qkv_size = num_heads * sum(self._sizes)
        self._qkv = linear(row_size, qkv_size, dtype, "qkv")
        self._qkv_norm = layer_norm(qkv_size, 3, _NORM_EPSILON, dtype, "qkv_norm")
        self._attention_norm = layer_norm(row_size, 3, _NORM_EPSILON, dtype, "attention_norm")
        self._mlp = snt.nets.MLP([row_size] * mlp_layers, name="mlp")
        self._mlp(tf.zeros([1, row_size], dtype))  # creates its variables
        self._mlp_norm = layer_norm(row_size, 3, _NORM_EPSILON, dtype, "mlp_norm")

    def __call__(self, rows: tf.Tensor, key_mask: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Lets every row attend to all rows.

        Args:
          rows: [P, R, row_size].
          key_mask: bool [P, R], False for rows that no row may attend to; None if there are none.

        Returns:
          The new rows, [P, R, row_size], and the attention weights, [P, heads, R, R].
        """
        attended, attention = self._attend(rows, key_mask)
        rows = self._attention_norm(rows + attended)
        rows = self._mlp_norm(rows + self._mlp(rows))
        return rows, attention

    def multiply_adds(self, n_rows: int) -> int:
        """Multiplication-additions of the matrix products for R rows: every row, and every pair of them."""
        key_size, _, head_size = self._sizes
        return n_rows * n_weights(self._qkv, self._mlp) + n_rows**2 * self._num_heads * (key_size + head_size)

    def _attend(self, rows, key_mask):
        n_rows, row_size = rows.shape[1:]
        qkv = self._qkv_norm(self._qkv(rows))
        qkv = tf.reshape(qkv, [-1, n_rows, self._num_heads, sum(self._sizes)])
        query, key, value = tf.split(tf.transpose(qkv, [0, 2, 1, 3]), self._sizes, axis=-1)  # [P, heads, R, .]
        logits = tf.matmul(query * self._sizes[0] ** -0.5, key, transpose_b=True)  # [P, heads, R, R]
        if key_mask is not None:
            # The lowest finite number, not -inf: where all rows are masked the softmax is uniform instead of NaN.
            logits = tf.where(key_mask[:, tf.newaxis, tf.newaxis], logits, logits.dtype.min)
        attention = tf.nn.softmax(logits)
        attended = tf.transpose(tf.matmul(attention, value), [0, 2, 1, 3])  # [P, R, heads, head_size]
        return tf.reshape(attended, [-1, n_rows, row_size]), attention


class RelationalMemory(snt.RNNCore):
    """A recurrent core whose memory rows interact by self-attention: Sonnet 1's RelationalMemory.

    Section 3 of Santoro et al. (2018). With memory m [N, M], M = num_heads * head_size, and inputs x::

        e = W_e x                                          one or more input rows
        m~ = the memory rows of AttentionBlock([m; e])     num_blocks times
        [i | f] = W_m tanh(m) + W_x flatten(e)
        m' = sigmoid(i + input_bias) tanh(m~) + sigmoid(f + forget_bias) m
        output = flatten(m')

    Without gates m' = m~. Every input reaches all memory rows alike, and the initial rows differ (an identity), so
    the rows are not tied to objects; `SlotRelationalMemory` ties them.

    Attributes:
      mem_slots: N.
      memory_size: M.
    """

    def __init__(
        self,
        input_size: int,
        mem_slots: int = 4,
        head_size: int = 10,
        num_heads: int = 4,
        num_blocks: int = 1,
        forget_bias: float = 1.0,
        input_bias: float = 0.0,
        gate_style: str | None = "unit",
        attention_mlp_layers: int = 2,
        key_size: int | None = None,
        input_rows: int = 1,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ):
        """Creates all variables: 16,960 parameters at the default sizes with input_size 44.

        The defaults are the R-SQAIR paper's (section 3) and, where it is silent, Sonnet 1's.

        Args:
          input_size: numbers of one input row; 4 objects of 11 numbers in one row make 44.
          mem_slots: N, rows of the memory.
          head_size: numbers of one head's value.
          num_heads: attention heads; a memory row has M = num_heads * head_size numbers.
          num_blocks: attention blocks one after the other, each with its own weights.
          forget_bias: added to the forget gate, so that memory is kept at first.
          input_bias: added to the input gate.
          gate_style: "unit", a gate for every number; "memory", one for every row; None, no gates.
          attention_mlp_layers: layers of the MLP after the attention.
          key_size: numbers of one head's query and key; None for head_size.
          input_rows: rows of the input.
          dtype: of variables, inputs and outputs.
          name: of the module.

        Raises:
          ValueError: a size is below 1 or the gate style unknown.
        """
        super().__init__(name=name)
        key_size = head_size if key_size is None else key_size
        check_positive(
            input_size=input_size,
            mem_slots=mem_slots,
            head_size=head_size,
            num_heads=num_heads,
            num_blocks=num_blocks,
            attention_mlp_layers=attention_mlp_layers,
            key_size=key_size,
            input_rows=input_rows,
        )
        gate_sizes = {"unit": num_heads * head_size, "memory": 1, None: 0}
        if gate_style not in gate_sizes:
            raise ValueError(f"gate_style must be one of {list(gate_sizes)}, got {gate_style!r}")

        self._input_size = input_size
        self._input_rows = input_rows
        self.mem_slots = mem_slots
        self.memory_size = num_heads * head_size
        self._input_bias = input_bias
        self._forget_bias = forget_bias
        self._gated = gate_style is not None
        self._dtype = dtype
        self._embed = linear(input_size, self.memory_size, dtype, "embed")
        self._blocks = [
            AttentionBlock(num_heads, head_size, key_size, attention_mlp_layers, dtype, name=f"block_{i}")
            for i in range(num_blocks)
        ]
        if self._gated:
            gates_size = 2 * gate_sizes[gate_style]
            self._input_gates = linear(input_rows * self.memory_size, gates_size, dtype, "input_gates")
            self._memory_gates = linear(self.memory_size, gates_size, dtype, "memory_gates")

    def initial_state(self, batch_size: int | tf.Tensor) -> tf.Tensor:
        """An identity matrix for every particle, zero padded or cut to the memory's shape.

        Args:
          batch_size: P.

        Returns:
          [P, mem_slots, M].
        """
        return tf.eye(self.mem_slots, self.memory_size, [batch_size], self._dtype)

    def __call__(self, inputs: tf.Tensor, prev_state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One step as an RNN core: `step` without the attention.

        Args:
          inputs: as in `step`.
          prev_state: [P, mem_slots, M], the memory.

        Returns:
          The output [P, mem_slots * M] and the new memory [P, mem_slots, M].

        Raises:
          ValueError: a shape does not fit.
        """
        step = self.step(inputs, prev_state)
        return step.output, step.memory

    def step(self, inputs: tf.Tensor, memory: tf.Tensor) -> MemoryStep:
        """Writes the inputs into the memory.

        Args:
          inputs: [P, input_rows, input_size], or [P, input_size] for a single row.
          memory: [P, mem_slots, M].

        Returns:
          `MemoryStep`.

        Raises:
          ValueError: a shape does not fit.
        """
        if len(inputs.shape) == 2:
            inputs = inputs[:, tf.newaxis]
        check_shape("inputs", inputs, [None, self._input_rows, self._input_size])
        check_shape("memory", memory, [None, self.mem_slots, self.memory_size])
        rows = self._embed(inputs)  # [P, input_rows, M]
        flat_rows = tf.reshape(rows, [-1, 1, self._input_rows * self.memory_size])
        memory, attention = self._update(memory, rows, gate_inputs=flat_rows)
        output = tf.reshape(memory, [-1, self.mem_slots * self.memory_size])
        return MemoryStep(output, memory, attention)

    def multiply_adds(self) -> int:
        """Multiplication-additions of the matrix products of one step of one particle."""
        return self._multiply_adds(self.mem_slots, self._input_rows, gate_rows=1)

    def _multiply_adds(self, n_slots: int, input_rows: int, gate_rows: int) -> int:
        found = input_rows * n_weights(self._embed)
        found += sum(block.multiply_adds(n_slots + input_rows) for block in self._blocks)
        if self._gated:
            found += n_slots * n_weights(self._memory_gates) + gate_rows * n_weights(self._input_gates)
        return found

    def _update(self, memory, rows, gate_inputs, key_mask=None):
        """The new memory and the attention; gate_inputs is [P, N, .], or [P, 1, .] for the same in every row."""
        n_slots = memory.shape[1]
        candidate = tf.concat([memory, rows], axis=1)
        for block in self._blocks:
            candidate, attention = block(candidate, key_mask)
        candidate = candidate[:, :n_slots]
        if not self._gated:
            return candidate, attention
        gates = self._memory_gates(tf.tanh(memory)) + self._input_gates(gate_inputs)  # [P, N, 2M or 2]
        input_gate, forget_gate = tf.split(gates, 2, axis=-1)
        written = tf.sigmoid(input_gate + self._input_bias) * tf.tanh(candidate)
        kept = tf.sigmoid(forget_gate + self._forget_bias) * memory
        return written + kept, attention


class SlotRelationalMemory(RelationalMemory):
    """A relational memory whose row k belongs to object k; our variant.

    The R-SQAIR paper says of its RMC (section 2) that the rows of the memory represent objects and that their number
    can change without changing the parameters. Sonnet 1's core gates every memory row by all inputs, flattened, which
    fits one number of objects only and ties no row to an object. Here there is one input row per object, and the gates
    of a row depend on its own object only::

        [i_k | f_k] = W_m tanh(m_k) + W_x e_k,   output_k = m'_k

    Memory and input rows of absent objects are not attended to. All rows start as the first row of an identity, since
    initial rows that differed between slots would break the symmetry. So permuting
    the objects (states, presence and memory rows together) permutes the outputs.
    """

    def __init__(self, input_size: int, dtype: tf.DType = tf.float32, name: str | None = None, **options):
        """Creates all variables: 15,640 parameters at the default sizes with input_size 11.

        Args:
          input_size: S, numbers in an object's state.
          dtype: of variables, inputs and outputs.
          name: of the module.
          **options: those of `RelationalMemory`, except mem_slots and input_rows: the number of objects is free.

        Raises:
          ValueError: a size is below 1 or the gate style unknown.
        """
        super().__init__(input_size, mem_slots=1, input_rows=1, dtype=dtype, name=name, **options)

    def initial_state(self, batch_size: int | tf.Tensor, n_slots: int) -> tf.Tensor:  # type: ignore[override]
        """The initial row [1, 0, 0, ...] for every object of every particle.

        Args:
          batch_size: P.
          n_slots: N.

        Returns:
          [P, N, M].
        """
        return tf.repeat(super().initial_state(batch_size), n_slots, axis=1)

    def __call__(self, inputs: tuple[tf.Tensor, tf.Tensor], prev_state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One step as an RNN core: `step` without the attention.

        Args:
          inputs: (states, presence) as in `step`.
          prev_state: [P, N, M], the memory.

        Returns:
          The new memory, twice: as output and as state.

        Raises:
          ValueError: a shape does not fit.
        """
        states, presence = inputs
        step = self.step(states, presence, prev_state)
        return step.output, step.memory

    def multiply_adds(self, n_objects: int) -> int:  # type: ignore[override]  # any number of slots here
        """Multiplication-additions of the matrix products of one step of one particle with N objects."""
        return self._multiply_adds(n_objects, n_objects, gate_rows=n_objects)

    def step(  # type: ignore[override]  # the presence of any number of slots too
        self, states: tf.Tensor, presence: tf.Tensor, memory: tf.Tensor
    ) -> MemoryStep:
        """Writes the objects' states into their memory rows.

        Args:
          states: [P, N, S]; any N.
          presence: [P, N], 1 for an object, 0 for an empty slot, which changes nothing for the others and whose memory
            row is set to the initial row.
          memory: [P, N, M].

        Returns:
          `MemoryStep`.

        Raises:
          ValueError: a shape does not fit.
        """
        check_shape("states", states, [None, None, self._input_size])
        check_shape("memory", memory, [*states.shape[:2], self.memory_size])
        rows = self._embed(zero_absent(states, presence))  # [P, N, M]
        present = presence > 0
        key_mask = tf.concat([present, present], axis=1)  # [P, 2N]
        memory, attention = self._update(memory, rows, gate_inputs=rows, key_mask=key_mask)
        memory = tf.where(present[..., tf.newaxis], memory, super().initial_state(1))
        return MemoryStep(memory, memory, attention)
