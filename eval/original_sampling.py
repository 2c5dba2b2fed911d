"""The original's rule for `sample_from_prior`, only for comparisons with the original's recorded passes.

Every frame, a predicted one too, is inferred: propagation's posterior sees it, and its presence logit and temporal
state are passed to the next frame. Also, propagation's prior is sampled with the same noise. A predicted frame keeps
the sample's what, where and presence, and discards what was discovered. In all frames, predicted or not,
- log q of propagation is that of the sample under the posterior, counted where the posterior's presence is one;
- log p of propagation is that of the kept what and where, counted likewise, and of the posterior's presence;
- discovery's log-probabilities of the number of objects are those of what was discovered before it was discarded;
- all of them enter the weights, and the reported numbers of propagated and discovered objects are the posterior's.

`sqair.model.SQAIR` differs: it does not see a predicted frame, of which only the likelihood enters the weights.
"""

from typing import NamedTuple

import tensorflow as tf

from sqair import crops
from sqair.core import Slots
from sqair.discover import unstack
from sqair.model import SQAIR, Forward
from sqair.noise import Noise
from sqair.timestep import Frame, SQAIRTimestep, State, stop_discrete_gradients


class Sampled(NamedTuple):
    """What a frame kept (`Frame`), and what it drew: the `Slots` [P, N, d] that propagation inferred, those that it
    sampled from its prior, those that were discovered."""

    frame: Frame
    inferred: Slots
    sampled: Slots
    discovered: Slots


def nothing_sampled(frame: Frame) -> Sampled:
    """Without `sample_from_prior` a frame keeps what it infers and discovers."""
    return Sampled(frame, frame.propagated, frame.propagated, frame.discovered)


def _step(
    timestep: SQAIRTimestep, state: State, code: tf.Tensor, columns, noise: Noise, predict: tf.Tensor
) -> tuple[State, Sampled]:
    """One frame; for the arguments see `SQAIRTimestep`; predict, boolean: keep the prior's sample."""
    columns, noise = tf.nest.map_structure(tf.stop_gradient, (columns, noise))
    state = stop_discrete_gradients(state)
    objects, propagate = state.objects, timestep.propagate
    prior, prior_state = propagate.prior(objects, state.prior, None)
    inferred, temporal = propagate(columns, objects, state.temporal, None, noise.propagation)
    sampled = propagate.generate(prior, objects, noise.propagation)
    kept = inferred._replace(
        **{x: tf.where(predict, getattr(sampled, x), getattr(inferred, x)) for x in ("what", "where", "presence")}
    )
    conditioning = tf.reduce_sum(kept.presence * timestep.latent_encoder(kept.summary[..., :-1]), 1)
    expected = tf.reduce_sum(tf.sigmoid(prior.presence_logit) - 0.5, 1) / timestep.n_slots
    discovered = timestep.discover(code, columns, conditioning, noise.discovery, all_slots=True)
    found = discovered._replace(presence=tf.where(predict, 0.0, discovered.presence))
    new_state, selection = timestep.keep(state, kept, found, temporal, prior_state, state.memory)
    frame = Frame(
        kept,
        found,
        prior,
        objects.presence[..., 0],
        conditioning,
        expected,
        selection,
        new_state.object_id,
        tf.zeros([code.shape[0], 0]),
    )
    return new_state, stop_discrete_gradients(Sampled(frame, inferred, sampled, discovered))


class OriginalSampling:
    """Forward passes of a model by the original's rule."""

    def __init__(self, model: SQAIR):
        """Args: model: without relations, `sample_from_prior` set in its configuration."""
        self.model = model
        self._step = tf.function(lambda *args: _step(model.sequence.timestep, *args), autograph=False)

    def __call__(self, obs: tf.Tensor, noise: Noise) -> tuple[Forward, Sampled]:
        """One forward pass.

        Args:
          obs: [T, B, H, W].
          noise: `Noise`, [T, N, P, d]; the prior is sampled with that of propagation.

        Returns:
          `Forward`, and the slots that were drawn, [T, P, ...].
        """
        drawn = self._infer(obs, noise)
        frame, inferred, sampled, discovered = drawn
        propagate, present = self.model.sequence.timestep.propagate, frame.presence_prev
        probs = self.model.log_probs(frame)
        before = self.model.log_probs(frame._replace(discovered=discovered))
        q_presence = propagate.posterior_log_probs(inferred._replace(presence=sampled.presence), present).discrete
        q_sample = propagate.posterior_log_probs(inferred._replace(what=sampled.what, where=sampled.where), present)
        p_kept = propagate.prior_log_probs(frame.propagated._replace(presence=inferred.presence), frame.prior, present)
        probs = probs._replace(
            q_discovery=probs.q_discovery._replace(discrete=before.q_discovery.discrete),
            p_discovery=probs.p_discovery._replace(discrete=before.p_discovery.discrete),
            q_propagation=q_sample._replace(discrete=q_presence),
            p_propagation=p_kept,
        )
        return self.model.weigh(obs, frame, probs, inferred=obs.shape[0]), drawn

    def _infer(self, obs: tf.Tensor, noise: Noise) -> Sampled:
        """All frames, [T, P, ...]."""
        sequence, config = self.model.sequence, self.model.config
        codes = tf.repeat(sequence.timestep.discover.encode_frames(obs), config.k_particles, 1)
        columns = crops.image_to_columns(obs, sequence.channels)
        state, frames = sequence.timestep.initial_state(codes.shape[1]), []
        for t, (code, image, frame_noise) in enumerate(unstack((codes, columns, noise))):
            state, frame = self._step(state, code, image, frame_noise, tf.constant(0 < config.generate_after < t))
            frames.append(frame)
        return tf.nest.map_structure(lambda *xs: tf.stack(xs), *frames)
