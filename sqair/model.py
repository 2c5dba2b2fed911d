"""SQAIR and R-SQAIR: one forward pass, a deterministic function of observations and noise, as a typed record."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import sonnet as snt
import tensorflow as tf

from sqair import gaussian, objectives, spatial_transformer
from sqair import noise as noise_lib
from sqair.config import ModelConfig
from sqair.core import Slots
from sqair.discover import LogProbs
from sqair.glimpses import Decoder
from sqair.sequence import SequentialAIR
from sqair.timestep import Frame, State, pick


class FrameLogProbs(NamedTuple):
    """`LogProbs` [T, P] of both phases under q and p."""

    q_discovery: LogProbs
    p_discovery: LogProbs
    q_propagation: LogProbs
    p_propagation: LogProbs


class Forward(NamedTuple):
    """The record of one forward pass. T frames, P = B*K particles (p = b*K + k), N slots; log-probs in nats.

    frame: the record of inference (`Frame`, [T, P, ...]). latents: the kept `Slots`, [T, P, N, d].
    canvas: [T, P, H, C*W] rows; glimpse: [T, P, N, h*w*C].
    q_discovery, p_discovery, q_propagation, p_propagation: `LogProbs`, [T, P].
    data_ll, log_q, log_p, log_weights_per_frame, discrete_log_prob, mse: [T, P]. log_weights: [B, K].
    state: what is carried to the frame after the last (`State`).
    """

    frame: Frame
    latents: Slots
    canvas: tf.Tensor
    glimpse: tf.Tensor
    q_discovery: LogProbs
    p_discovery: LogProbs
    q_propagation: LogProbs
    p_propagation: LogProbs
    data_ll: tf.Tensor
    log_q: tf.Tensor
    log_p: tf.Tensor
    log_weights_per_frame: tf.Tensor
    discrete_log_prob: tf.Tensor
    mse: tf.Tensor
    log_weights: tf.Tensor
    state: State | None

    @property
    def presence(self) -> tf.Tensor:
        """[T, P, N]."""
        return self.latents.presence[..., 0]

    @property
    def num_steps(self) -> tf.Tensor:
        """The number of objects, [T, P]."""
        return tf.reduce_sum(self.presence, -1)

    @property
    def importance_weights(self) -> tf.Tensor:
        """[B, K], normalised, without gradient."""
        return tf.stop_gradient(tf.nn.softmax(self.log_weights, -1))

    def weighted_mean(self, x: tf.Tensor) -> tf.Tensor:
        """The importance-weighted mean of a quantity [T, P] or [P], over frames and sequences."""
        batch, k = self.log_weights.shape
        x = tf.reduce_mean(tf.reshape(x, [-1, batch, k]), 0)
        return tf.reduce_mean(tf.reduce_sum(self.importance_weights * x, -1))


class SQAIR(snt.Module):
    """The model: SQAIR without a relation, R-SQAIR with one."""

    def __init__(
        self,
        config: ModelConfig,
        xla: bool = False,
        all_slots: bool = False,
        inline: bool = True,
        name: str = "sqair",
    ):
        """Creates all variables; set TensorFlow's seed before it.

        Args:
          config: of the model.
          xla: compile the frames by XLA: quicker steps after a slower start.
          all_slots: compute absent slots too, which only takes longer.
          inline: make the frames' operations part of the graph that calls the model; without, it starts sooner, but
            leaves several threads less to do side by side (see `training.shards.inline_frames`).
          name: module name.
        """
        super().__init__(name=name)
        self.config = config
        height, width, channels = config.image_size
        self.sequence = SequentialAIR(config, xla, all_slots, inline, name="sequence")
        self.decoder = Decoder(
            (height, width, channels),
            (config.glimpse_size, config.glimpse_size, channels),
            config.n_what,
            config.n_hidden,
            config.output_scale,
            config.output_std,
            config.mean_image,
            name="decoder",
        )

    def draw_noise(
        self, seed: tf.Tensor | Sequence[int], n_frames: int, batch_size: int, first: int = 0
    ) -> noise_lib.Noise:
        """The noise of one forward pass, see `sqair.noise.draw`."""
        config = self.config
        return noise_lib.draw(
            seed, n_frames, config.n_steps_per_image, batch_size * config.k_particles, config.n_what, first
        )

    def __call__(
        self,
        obs: tf.Tensor,
        noise: noise_lib.Noise,
        generate_after: int | None = None,
        propagate_first: bool = False,
        state: State | None = None,
        first: int = 0,
    ) -> Forward:
        """One forward pass.

        Args:
          obs: [T, B, H, W] or [T, B, H, W, C], float32.
          noise: `Noise`, [T, N, P, d].
          generate_after: frames with an index above it are predicted: propagated objects are sampled from the prior
            and nothing is discovered. Their log q is their log p, so that only their likelihood enters the weights.
          propagate_first: also fill in the absent slots of propagation at the first frame, as the original does.
          state: `Forward.state` of the frames before these, to continue a sequence in parts; None: there are none.
          first: the index of the first of these frames in the sequence.

        Returns:
          `Forward` of these frames. Observations and noise are data: no gradient flows to them.

        Raises:
          ValueError: obs is not of the configured image size.
        """
        obs = tf.stop_gradient(tf.convert_to_tensor(obs, tf.float32))
        height, width, channels = self.config.image_size
        expected = (height, width) if channels == 1 else (height, width, channels)
        if tuple(obs.shape[2:]) not in {expected, (height, width, channels)}:
            raise ValueError(
                f"observations have frames of shape {tuple(obs.shape[2:])}, the model was made for "
                f"{expected}: set --image_shape to match the data, or crop the data."
            )
        if generate_after is None and self.config.sample_from_prior and self.config.generate_after > 0:
            generate_after = self.config.generate_after
        frame, state = self.sequence(obs, noise, generate_after, propagate_first, state, first)
        inferred = obs.shape[0] if generate_after is None else max(generate_after + 1 - first, 0)
        return self.weigh(obs, frame, self.log_probs(frame, first), inferred, state)

    def log_probs(self, frame: Frame, first: int = 0) -> FrameLogProbs:
        """Log-probabilities of all frames, [T, P, ...], of what was found and propagated in them; first: see above."""
        discovered, propagated, present = frame.discovered, frame.propagated, frame.presence_prev
        discover, propagate = self.sequence.timestep.discover, self.sequence.timestep.propagate
        later = tf.cast(tf.range(first, first + present.shape[0]) > 0, tf.float32)[:, None, None]
        return FrameLogProbs(
            q_discovery=discover.posterior_log_probs(discovered),
            p_discovery=discover.prior_log_probs(discovered, frame.conditioning, frame.expected, later),
            q_propagation=propagate.posterior_log_probs(propagated, present),
            p_propagation=propagate.prior_log_probs(propagated, frame.prior, present),
        )

    def weigh(
        self, obs: tf.Tensor, frame: Frame, probs: FrameLogProbs, inferred: int, state: State | None = None
    ) -> Forward:
        """Decodes the frames and weighs the particles.

        Args:
          obs: [T, B, H, W] or [T, B, H, W, C].
          frame: [T, P, ...].
          probs: its log-probabilities.
          inferred: this many frames count with them; only the likelihood of later ones enters the weights.
          state: after the last frame, if it is needed.

        Returns:
          `Forward`.
        """
        height, width, channels = self.config.image_size
        n_frames, batch, k = obs.shape[0], obs.shape[1], self.config.k_particles
        both = tf.nest.map_structure(lambda p, d: tf.concat([p, d], 2), frame.propagated, frame.discovered)
        latents = tf.nest.map_structure(lambda x: pick(frame.selection, x), both)

        log_q = probs.q_discovery.total + probs.q_propagation.total
        log_p = probs.p_discovery.total + probs.p_propagation.total
        discrete = probs.q_discovery.discrete + probs.q_propagation.discrete
        if inferred < n_frames:
            counted = tf.cast(tf.range(n_frames) < inferred, tf.float32)[:, None]
            log_p, log_q, discrete = log_p * counted, log_q * counted, discrete * counted

        decoded = self.decoder(latents.what, latents.where, latents.presence[..., 0])
        rows = spatial_transformer.image_to_rows(obs, channels)  # [T, B, H, C*W]
        canvas = tf.reshape(decoded.canvas, [n_frames, batch, k] + rows.shape[2:].as_list())
        squares = tf.reduce_sum(tf.math.squared_difference(rows[:, :, None], canvas), [-2, -1])
        squares = tf.reshape(squares, [n_frames, batch * k])
        pixels, std = height * width * channels, self.config.output_std
        data_ll = gaussian.log_likelihood(squares, pixels, std)

        log_weights_per_frame = data_ll - (log_q - log_p)
        return Forward(
            frame=frame,
            latents=latents,
            canvas=decoded.canvas,
            glimpse=decoded.glimpse,
            **probs._asdict(),
            data_ll=data_ll,
            log_q=log_q,
            log_p=log_p,
            log_weights_per_frame=log_weights_per_frame,
            discrete_log_prob=discrete,
            mse=squares / pixels,
            log_weights=tf.reshape(tf.reduce_sum(log_weights_per_frame, 0), [batch, k]),
            state=state,
        )

    def loss(self, forward: Forward, target: str = "vimco", l2: float = 0.0) -> tf.Tensor:
        """The quantity to minimise: the target divided by T, plus weight decay.

        Args:
          forward: a forward pass.
          target: vimco (the original), vimco_textbook (the published control variate) or iwae (no score function).
          l2: weight of the l2 penalty.

        Returns:
          scalar, nats per frame.
        """
        n_frames, particles = forward.data_ll.shape
        discrete = tf.reshape(tf.reduce_sum(forward.discrete_log_prob, 0), forward.log_weights.shape)
        if target == "iwae":
            loss = -tf.reduce_mean(objectives.iwae(forward.log_weights))
        else:
            loss = objectives.vimco(forward.log_weights, discrete, textbook=target == "vimco_textbook")
        return loss / n_frames + objectives.l2(l2, self.trainable_variables)


class Report(NamedTuple):
    """Scalars of a forward pass, as the original reports them. Bounds and log-probs in nats, summed over frames for
    iwae and vae; `_per_frame` ones, data_ll, kl, log_p, log_q per frame; counts in objects."""

    iwae: tf.Tensor
    vae: tf.Tensor
    iwae_per_frame: tf.Tensor
    vae_per_frame: tf.Tensor
    data_ll: tf.Tensor
    kl: tf.Tensor
    log_p: tf.Tensor
    log_q: tf.Tensor
    mse: tf.Tensor
    raw_mse: tf.Tensor
    num_steps: tf.Tensor
    num_disc_steps: tf.Tensor
    num_prop_steps: tf.Tensor
    num_step_accuracy: tf.Tensor
    raw_num_step_accuracy: tf.Tensor
    ess: tf.Tensor


def report(forward: Forward, counts: tf.Tensor) -> Report:
    """Summarises a forward pass.

    Args:
      forward: `Forward`.
      counts: true number of objects, int32 [T, B]; -1 where it is not known.

    Returns:
      `Report` of scalars; the accuracies are NaN if any count is not known.
    """
    n_frames = forward.data_ll.shape[0]
    mean = forward.weighted_mean
    k = forward.log_weights.shape[1]
    iwae, vae = tf.reduce_mean(objectives.iwae(forward.log_weights)), tf.reduce_mean(forward.log_weights)
    truth = tf.repeat(tf.cast(counts, tf.float32), k, 1)  # [T, P]
    correct = tf.where(truth < 0, float("nan"), tf.cast(tf.equal(truth, forward.num_steps), tf.float32))
    return Report(
        iwae=iwae,
        vae=vae,
        iwae_per_frame=iwae / n_frames,
        vae_per_frame=vae / n_frames,
        data_ll=mean(forward.data_ll),
        kl=mean(forward.log_q - forward.log_p),
        log_p=mean(forward.log_p),
        log_q=mean(forward.log_q),
        mse=mean(forward.mse),
        raw_mse=tf.reduce_mean(forward.mse),
        num_steps=mean(forward.num_steps),
        num_disc_steps=mean(tf.reduce_sum(forward.frame.discovered.presence[..., 0], -1)),
        num_prop_steps=mean(tf.reduce_sum(forward.frame.propagated.presence[..., 0], -1)),
        num_step_accuracy=mean(correct),
        raw_num_step_accuracy=tf.reduce_mean(correct),
        ess=tf.reduce_mean(objectives.effective_sample_size(forward.importance_weights)),
    )


def resample(forward: Forward, x: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """One particle per sequence, drawn by importance weight, as figures show it.

    Args:
      forward: `Forward`.
      x: [T, P, ...].
      uniform: [B] uniform noise.

    Returns:
      [T, B, ...].
    """
    batch, k = forward.log_weights.shape
    index = tf.reduce_sum(tf.cast(tf.cumsum(forward.importance_weights, -1)[:, :-1] < uniform[:, None], tf.int32), -1)
    return tf.gather(x, index + k * tf.range(batch), axis=1)


def parameter_table(model: SQAIR) -> str:
    """The number of trainable parameters by module, as text."""
    modules: dict = {}
    for variable in model.trainable_variables:
        parts = variable.name.split(":")[0].split("/")[1:]
        key = "/".join(parts[: 4 if parts[0] == "sequence" else 2][: len(parts) - 1]) or parts[0]
        modules[key] = modules.get(key, 0) + int(np.prod(variable.shape))
    width = max(len(key) for key in modules)
    lines = [f"{key:{width}}  {count:12,}" for key, count in modules.items()]
    return "\n".join(lines + [f"{'total':{width}}  {sum(modules.values()):12,}"])
