"""All frames of a batch of sequences (the original's SequentialAIR)."""

from typing import Optional

import sonnet as snt
import tensorflow as tf

from sqair import spatial_transformer
from sqair.discover import unstack
from sqair.timestep import Frame, SQAIRTimestep, stop_choices


class SequentialAIR(snt.Module):
    """Unrolls the timestep over the frames; what needs no previous frame is computed for all frames at once.

    The timestep is a compiled function of its own, once for a first, an inferred and a predicted frame: a graph of
    ten frames then takes no longer to make or to compile than one of three, and a longer sequence compiles nothing
    anew.
    """

    def __init__(self, config, xla: bool = False, all_slots: bool = False, name=None):
        """Args: config: `ModelConfig`. xla: compile frames by XLA. all_slots: compute absent slots too, as with xla."""
        super().__init__(name=name)
        self.channels = config.image_size[2]
        self.n_particles = config.k_particles
        self.all_slots = all_slots or xla
        self.timestep = SQAIRTimestep(config, name="timestep")
        self._step = tf.function(lambda *args, **kinds: self.timestep(*args, **kinds), jit_compile=xla or None,
                                 autograph=False)

    def __call__(self, obs: tf.Tensor, noise, generate_after: Optional[int] = None,
                 propagate_first: bool = False) -> Frame:
        """Infers all frames.

        Args:
          obs: [T, B, H, W] or [T, B, H, W, C].
          noise: `Noise`, [T, N, P, d].
          generate_after: frames with an index above it are sampled from the prior; None: none is.
          propagate_first: run propagation at the first frame too; it changes the stored values of absent slots only.

        Returns:
          `Frame`, every field with a leading axis T.
        """
        n_frames, batch = obs.shape[0], obs.shape[1]
        discover = self.timestep.discover
        codes = discover.frame_encoder(tf.reshape(obs, [n_frames, batch, -1]))
        codes = tf.repeat(discover.core.rnn.inputs(frame=codes), self.n_particles, 1)     # [T, P, R]
        columns = spatial_transformer.image_to_columns(obs, self.channels)                # [T, B, ...]

        state = self.timestep.initial_state(codes.shape[1])
        frames = []
        for t, (code, image, frame_noise) in enumerate(unstack((codes, columns, noise))):
            state, frame = self._step(state, code, image, frame_noise, propagate=t > 0 or propagate_first,
                                      generate=generate_after is not None and t > generate_after,
                                      all_slots=self.all_slots or propagate_first)
            frames.append(frame)
        return stop_choices(tf.nest.map_structure(lambda *xs: tf.stack(xs), *frames))
