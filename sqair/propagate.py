"""Propagation of the previous frame's objects, and its prior (docs/spec/sqair.md)."""

from collections.abc import Mapping
from typing import NamedTuple

import sonnet as snt
import tensorflow as tf
import tensorflow_probability as tfp

from sqair.config import ModelConfig
from sqair.core import Latents, PropagationCore, Slots, masked_logit, sample_presence
from sqair.crops import Columns
from sqair.discover import LogProbs, stack_slots, unstack
from sqair.glimpses import GlimpseEncoder
from sqair.neural import CELLS, Linear, initial_state, positive
from sqair.noise import PhaseNoise

tfd = tfp.distributions


class PriorStatistics(NamedTuple):
    """Parameters of p(z_t | z_(t-1)): what [..., N, D], where [..., N, 4], presence logit [..., N, 1]."""

    what_loc: tf.Tensor
    what_scale: tf.Tensor
    where_loc: tf.Tensor
    where_scale: tf.Tensor
    presence_logit: tf.Tensor


class PropagationPrior(snt.Module):
    """The prior of propagated objects, with weights shared by all objects.

    p^P(z_t^P | gamma_t), equation 3 of the R-SQAIR paper; without gamma it is SQAIR's p^P(z_t^P | z_(t-1))
    (docs/spec/sqair.md, "Propagation prior")::

        s' = GRU([what_(t-1), where_(t-1), gamma], s)
        [a, loc, raw] = W s' + b,   scale = softplus(raw) + 0.01
        c = masked_logit(a + prop_prior_step_bias, presence_(t-1))

        prop_prior_type   loc of what and where       presence logit
        rnn               loc                         c
        rw                z_(t-1)                     logit_(t-1) + 0.1 c
        guided            z_(t-1) + 0.1 loc           logit_(t-1) + 0.1 c

    what and where are normal, presence is Bernoulli.
    """

    STEP = 0.1

    def __init__(self, config: ModelConfig, relation: Mapping[str, int], name: str | None = None):
        """Args: config: of the model. relation: {"gamma": width} or {}. name: module name."""
        super().__init__(name=name)
        self.kind, self.n_what = config.prop_prior_type, config.n_what
        self.presence_bias = config.prop_prior_step_bias
        self.rnn = CELLS[config.prior_transition](
            dict(objects=config.n_what + 4, **relation), config.n_hidden, name="rnn"
        )
        self.initial_state = initial_state(config.n_hidden, "initial_state")
        self.readout = Linear(config.n_hidden, 2 * (4 + config.n_what) + 1, name="readout")

    def presence_logit(self, logit: tf.Tensor, objects: Latents) -> tf.Tensor:
        """The prior's presence logit from the readout's, [P, N, 1] each; absent objects have one too."""
        logit = masked_logit(logit, objects.presence)
        return logit if self.kind == "rnn" else objects.presence_logit + self.STEP * logit

    def __call__(
        self, objects: Latents, state: tf.Tensor, gamma: tf.Tensor | None
    ) -> tuple[PriorStatistics, tf.Tensor]:
        """Args: objects at t-1; state [P, N, R]; gamma [P, N or 1, G]. Returns: `PriorStatistics` and the new state."""
        relation = {"gamma": gamma} if "gamma" in self.rnn.inputs.inputs else {}
        state = self.rnn(self.rnn.inputs(objects=tf.concat([objects.what, objects.where], -1), **relation), state)
        sizes = [1, 4, self.n_what, 4, self.n_what]
        logit, where_loc, what_loc, where_raw, what_raw = tf.split(self.readout(state), sizes, -1)
        if self.kind != "rnn":
            guide = self.STEP if self.kind == "guided" else 0.0
            where_loc = objects.where + guide * where_loc
            what_loc = objects.what + guide * what_loc
        logit = self.presence_logit(logit + self.presence_bias, objects)
        return PriorStatistics(what_loc, positive(what_raw), where_loc, positive(where_raw), logit), state


class Propagate(snt.Module):
    """Propagation: runs the core over the previous frame's objects and computes the log-probabilities of the outcome.

    The product over objects in equation 4 of the R-SQAIR paper, and p^P in equation 3
    (docs/spec/sqair.md, "Log-probabilities")::

        log q = sum_i present_(t-1) (log q(presence_t) + presence_t (log q(where_t) + log q(what_t)))

    and log p likewise, by `PropagationPrior`.
    """

    def __init__(
        self, config: ModelConfig, glimpse_encoder: GlimpseEncoder, gamma_size: int = 0, name: str | None = None
    ):
        """Args: config; glimpse_encoder: discovery's; gamma_size: G, 0 without a relation; name: of the module."""
        super().__init__(name=name)
        self.n_slots = config.n_steps_per_image

        def relation(place: str) -> dict[str, int]:
            return {"gamma": gamma_size} if gamma_size and place in config.relation_inputs else {}

        self.core = PropagationCore(config, glimpse_encoder, relation("rnn"), relation("where"), name="core")
        self.prior = PropagationPrior(config, relation("prior"), name="prior")
        self.temporal_initial_state = initial_state(config.n_hidden, "temporal_initial_state")

    def initial_states(self, n_particles: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The temporal and prior states of new objects, [P, N, R] each."""
        shape = [n_particles, self.n_slots, self.temporal_initial_state.shape[-1]]
        return tf.broadcast_to(self.temporal_initial_state, shape), tf.broadcast_to(self.prior.initial_state, shape)

    def __call__(
        self, columns: Columns, objects: Latents, temporal: tf.Tensor, gamma: tf.Tensor | None, noise: PhaseNoise
    ) -> tuple[Slots, tf.Tensor]:
        """Infers this frame's latents of the objects of the previous one.

        Args:
          columns: `Columns` of the frame, [B, ...].
          objects: latents at t-1, [P, N, d].
          temporal: [P, N, R] temporal states.
          gamma: [P, N, G] relations or None.
          noise: `PhaseNoise`, [N, P, d].

        Returns:
          `Slots` [P, N, d] and the new temporal states [P, N, R].
        """
        # Slots on the first axis: the tensors of one slot are then contiguous, and sliced without a copy.
        objects, temporal, gamma = tf.nest.map_structure(
            lambda x: None if x is None else tf.transpose(x, [1, 0, 2]), (objects, temporal, gamma)
        )
        prepared = self.core.prepare(columns, objects, temporal, gamma)
        previous, state = self.core.first_slot(temporal.shape[1])
        noise = noise._replace(where=self.core.where_posterior.correlate(noise.where))
        slots, temporal_new = [], []
        for (precomputed, latents, memory), slot_noise in unstack(((prepared, objects, temporal), noise)):
            slot, new, state = self.core(precomputed, columns, latents, memory, previous, state, slot_noise)
            previous = slot.summary
            slots.append(slot)
            temporal_new.append(new)
        return stack_slots(slots), tf.stack(temporal_new, 1)

    def generate(self, prior: PriorStatistics, objects: Latents, noise: PhaseNoise) -> Slots:
        """Samples this frame's latents from the prior instead of the posterior: prediction.

        Args: prior: statistics [P, N, d]. objects: latents at t-1. noise: `PhaseNoise`, [N, P, d].
        """
        where_noise, what_noise, uniform = (tf.transpose(x, [1, 0, 2]) for x in noise)
        presence = sample_presence(prior.presence_logit, objects.presence, uniform)
        return Slots(
            prior.what_loc + prior.what_scale * what_noise,
            prior.what_loc,
            prior.what_scale,
            prior.where_loc + prior.where_scale * where_noise,
            prior.where_loc,
            prior.where_scale,
            presence,
            prior.presence_logit,
        )

    def posterior_log_probs(self, slots: Slots, presence_prev: tf.Tensor) -> LogProbs:
        """log q [..., P] of propagated latents; presence_prev [..., P, N] says which objects there were."""
        presence = slots.presence[..., 0]
        both = presence_prev * presence
        bernoulli = tfd.Bernoulli(logits=slots.presence_logit[..., 0], dtype=tf.float32)
        return LogProbs(
            what=tf.reduce_sum(tfd.Normal(slots.what_loc, slots.what_scale).log_prob(slots.what), -1) * both,
            where=self.core.where_posterior.log_prob(slots.where, slots.where_loc, slots.where_scale) * both,
            discrete=tf.reduce_sum(bernoulli.log_prob(presence) * presence_prev, -1),
        )

    def prior_log_probs(self, slots: Slots, prior: PriorStatistics, presence_prev: tf.Tensor) -> LogProbs:
        """log p [..., P] of propagated latents."""
        presence = slots.presence[..., 0]
        both = presence_prev * presence
        bernoulli = tfd.Bernoulli(logits=prior.presence_logit[..., 0], dtype=tf.float32)
        return LogProbs(
            what=tf.reduce_sum(tfd.Normal(prior.what_loc, prior.what_scale).log_prob(slots.what), -1) * both,
            where=tf.reduce_sum(tfd.Normal(prior.where_loc, prior.where_scale).log_prob(slots.where), -1) * both,
            discrete=tf.reduce_sum(bernoulli.log_prob(presence) * presence_prev, -1),
        )
