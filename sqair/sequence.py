"""All frames of a batch of sequences (the original's SequentialAIR)."""

import operator
from typing import Any

import sonnet as snt
import tensorflow as tf

from sqair import crops
from sqair.config import ModelConfig
from sqair.discover import unstack
from sqair.glimpses import Decoder
from sqair.noise import Noise
from sqair.timestep import Frame, SQAIRTimestep, State, stop_discrete_gradients


class SequentialAIR(snt.Module):
    """Unrolls the timestep over the frames; what needs no previous frame is computed for all frames at once.

    The timestep is a separate compiled function, one each for a first, an inferred and a predicted frame: a graph of
    ten frames then takes no longer to trace or to compile than one of three, and a longer sequence compiles nothing
    new. If it is not inlined, TensorFlow prepares its operations once, not once per frame and shard. More than
    `UNROLLED` frames are computed by a loop in the graph, whose size does not depend on their number.
    """

    UNROLLED = Decoder.UNROLLED

    def __init__(
        self,
        config: ModelConfig,
        xla: bool = False,
        all_slots: bool = False,
        inline: bool = True,
        name: str | None = None,
    ):
        """Args: config: `ModelConfig`. xla: compile frames by XLA. all_slots: compute absent slots too, as with xla.
        inline: see `SQAIR`. name: module name."""
        super().__init__(name=name)
        self.channels = config.image_size[2]
        self.n_particles = config.k_particles
        self.all_slots = all_slots or xla
        self.timestep = SQAIRTimestep(config, name="timestep")
        self._step = tf.function(
            lambda *args, **kinds: self.timestep(*args, **kinds),
            jit_compile=xla or None,
            autograph=False,
            experimental_attributes=None if inline else {"_noinline": True},
        )

    @property
    def is_compiled(self) -> bool:
        """Whether a frame has been computed before."""
        return self._step.experimental_get_tracing_count() > 0

    def __call__(
        self,
        obs: tf.Tensor,
        noise: Noise,
        generate_after: int | None = None,
        propagate_first: bool = False,
        state: State | None = None,
        first: int = 0,
    ) -> tuple[Frame, State]:
        """Infers all frames.

        Args:
          obs: [T, B, H, W] or [T, B, H, W, C].
          noise: `Noise`, [T, N, P, d].
          generate_after: frames with an index above it are sampled from the prior; None: none is.
          propagate_first: run propagation at the first frame too; it changes the stored values of absent slots only.
          state: after the frames before; None: there are none.
          first: the index of the first of these frames.

        Returns:
          `Frame`, every field with a leading axis T, and the `State` after the last frame.
        """
        n_frames = obs.shape[0]
        codes = tf.repeat(self.timestep.discover.encode_frames(obs), self.n_particles, 1)  # [T, P, R]
        columns = crops.image_to_columns(obs, self.channels)  # [T, B, ...]

        def kinds(t: int) -> dict[str, bool]:  # options of the timestep at frame t
            t += first
            return dict(
                propagate=t > 0 or propagate_first,
                generate=generate_after is not None and t > generate_after,
                all_slots=self.all_slots or propagate_first,
            )

        if state is None:
            state = self.timestep.initial_state(codes.shape[1])
        inputs = codes, columns, noise
        if n_frames <= self.UNROLLED or tf.executing_eagerly():
            frames = []
            for t, frame_inputs in enumerate(unstack(inputs)):
                state, frame = self._step(state, *frame_inputs, **kinds(t))
                frames.append(frame)
            return stop_discrete_gradients(tf.nest.map_structure(lambda *xs: tf.stack(xs), *frames)), state
        parts, start = [], 0
        while start < n_frames:
            end = next((t for t in range(start, n_frames) if kinds(t) != kinds(start)), n_frames)
            span = tf.nest.map_structure(operator.itemgetter(slice(start, end)), inputs)
            state, part = self._loop(state, span, kinds(start))
            parts.append(part)
            start = end
        return stop_discrete_gradients(tf.nest.map_structure(lambda *xs: tf.concat(xs, 0), *parts)), state

    def _loop(self, state: State, inputs: Any, kinds: dict[str, bool]) -> tuple[State, Frame]:
        """Frames of one kind, those after the first in a loop of the graph, whose size does not depend on their number.

        Args: state: before them. inputs: (codes, columns, noise), [T, ...]. kinds: options of the timestep.
        Returns: the state after them, and the `Frame`, [T, ...].
        """
        codes, *data = inputs
        n_frames = codes.shape[0]
        # The gradient of a read from a TensorArray has the size of one frame; that of a slice has the size of all.
        codes = tf.TensorArray(codes.dtype, n_frames, element_shape=codes.shape[1:]).unstack(codes)
        data = tf.nest.map_structure(tf.stop_gradient, data)

        def step(t, state):
            return self._step(state, codes.read(t), *tf.nest.map_structure(lambda x: x[t], data), **kinds)

        def body(t, state, arrays):
            state, frame = step(t, state)
            return t + 1, state, tf.nest.map_structure(lambda array, x: array.write(t, x), arrays, frame)

        state, frame = step(0, state)
        if n_frames == 1:
            return state, tf.nest.map_structure(lambda x: x[None], frame)
        arrays = tf.nest.map_structure(
            lambda x: tf.TensorArray(x.dtype, n_frames, element_shape=x.shape).write(0, x), frame
        )
        _, state, arrays = tf.while_loop(
            lambda t, *_: t < n_frames, body, (tf.constant(1), state, arrays), maximum_iterations=n_frames - 1
        )
        return state, tf.nest.map_structure(lambda array: array.stack(), arrays)
