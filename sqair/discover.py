"""Discovery of new objects in a frame, and its priors (docs/spec/sqair.md, "Discovery core", "Log-probabilities")."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import sonnet as snt
import tensorflow as tf
import tensorflow_probability as tfp

from sqair.config import ModelConfig
from sqair.core import ABSENT_LOGIT, DiscoveryCore, Slots
from sqair.crops import Columns
from sqair.glimpses import GlimpseEncoder
from sqair.neural import MLP, Linear, constant, glorot_limit, initial_state, positive, uniform
from sqair.noise import PhaseNoise

tfd = tfp.distributions


def stack_slots(slots: list[Slots]) -> Slots:
    """N records of [P, d] -> one of [P, N, d]."""
    return tf.nest.map_structure(lambda *xs: tf.stack(xs, 1), *slots)


def unstack(record: Any) -> list[Any]:
    """Splits a record of tensors along the first axis, into one per slot (or frame); None stays None.

    The gradient of tf.unstack is cheaper than that of slices.
    """
    parts = [itertools.repeat(None) if x is None else tf.unstack(x) for x in tf.nest.flatten(record)]
    return [tf.nest.pack_sequence_as(record, x) for x in zip(*parts)]


@tf.custom_gradient
def take(x: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The rows [M, 1] of x [P, d], each at most once: [M, d]. Its gradient is dense, unlike that of `tf.gather`."""
    return tf.gather_nd(x, rows), lambda upstream: (tf.scatter_nd(rows, upstream, tf.shape(x, rows.dtype)), None)


def number_of_steps(probs: tf.Tensor) -> tf.Tensor:
    """p(n) of the number of slots used, [..., N+1], from the probabilities p_k [..., N] of using slot k after k-1.

    p(n) = prod_(k<=n) p_k (1 - p_(n+1)), without the last factor for n = N; renormalised; in float64 as the original.
    """
    probs = tf.cast(probs, tf.float64)
    running, terms = tf.ones_like(probs[..., 0]), []
    for k in range(probs.shape[-1]):
        terms.append(running * (1.0 - probs[..., k]))
        running *= probs[..., k]  # not cumprod, whose gradient divides by zero probabilities
    joint = tf.stack(terms + [running], -1)
    return tf.cast(joint / tf.reduce_sum(joint, -1, keepdims=True), tf.float32)


def log_number_of_steps(joint: tf.Tensor, n: tf.Tensor) -> tf.Tensor:
    """log p(n) [...] from p [..., N+1] and n [...]; p clipped to [1e-16, 1] with its gradient preserved."""
    p = tf.reduce_sum(joint * tf.one_hot(tf.cast(n, tf.int32), joint.shape[-1]), -1)
    return tf.math.log(p + tf.stop_gradient(tf.clip_by_value(p, 1e-16, 1.0) - p))


class RecurrentNormal(snt.Module):
    """Autoregressive prior of `where` over slots, conditioned on what was propagated.

    Part of p^D(z_t^D | z_t^P), equation 3 of the R-SQAIR paper (docs/spec/sqair.md, "Log-probabilities")::

        e = ELU(W [s_0, conditioning])                                       s_0: trainable
        h_i = tanh(W_x where_(i-1) + b_x + W_e e + b_e)                      where_0: trainable
        p(where_i | where_<i) = N(loc_i, softplus(raw_i) + 0.01)             [loc_i, raw_i] = W_o h_i + b_o

    As in the original every slot takes its step from the same e, so that given the samples all slots are computed at
    once.
    """

    def __init__(
        self,
        size: int,
        conditioning_size: int,
        readout_bias: Sequence[float],
        n_hidden: int = 128,
        name: str | None = None,
    ):
        """Creates the variables.

        Args:
          size: numbers of `where`.
          conditioning_size: numbers of the conditioning.
          readout_bias: start of b_o, [2 * size].
          n_hidden: numbers of e.
          name: module name.
        """
        super().__init__(name=name)
        self.conditioning = Linear(dict(state=size, conditioning=conditioning_size), n_hidden, name="conditioning")
        self.initial_state = initial_state(size, "initial_state")
        self.initial_sample = tf.Variable(uniform(glorot_limit(1, size))([1, size]), name="initial_sample")
        # In Sonnet 1 an RNN of 4 units. Its state is e (128 numbers) at every slot, so W_e e is computed once.
        self.in_to_hidden = Linear(size, size, name="in_to_hidden")
        self.hidden_to_hidden = Linear(n_hidden, size, name="hidden_to_hidden")
        self.readout = Linear(size, 2 * size, b_init=constant(list(readout_bias)), name="readout")

    def __call__(self, where: tf.Tensor, conditioning: tf.Tensor) -> tfp.distributions.Normal:
        """Args: where [..., N, 4]; conditioning [..., c]. Returns: Normal over [..., N, 4]."""
        batch = tf.shape(where)[:-2]
        state = tf.nn.elu(
            self.conditioning(
                state=tf.broadcast_to(self.initial_state[0], tf.concat([batch, [4]], 0)), conditioning=conditioning
            )
        )
        first = tf.broadcast_to(self.initial_sample, tf.concat([batch, [1, 4]], 0))
        previous = tf.concat([first, where[..., :-1, :]], -2)
        hidden = tf.tanh(self.in_to_hidden(previous) + self.hidden_to_hidden(state)[..., None, :])
        loc, raw = tf.split(self.readout(hidden), 2, -1)
        return tfd.Normal(loc, positive(raw))


class LogProbs(NamedTuple):
    """Log-probabilities of one phase under q or p, in nats: what, where [..., P, N], number or presence [..., P]."""

    what: tf.Tensor
    where: tf.Tensor
    discrete: tf.Tensor

    @property
    def total(self) -> tf.Tensor:
        """[..., P]."""
        return tf.reduce_sum(self.what + self.where, -1) + self.discrete


class Discover(snt.Module):
    """Discovery: runs the core over the slots and computes the log-probabilities of what was found.

    q^D in equation 4 and p^D in equation 3 of the R-SQAIR paper; n is the number of objects found, p_k the probability
    of slot k after slot k - 1 (docs/spec/sqair.md, "Log-probabilities")::

        q = q(n) prod_(k<=n) q(where_k) q(what_k)
        q(n): proportional to prod_(k<=n) p_k (1 - p_(n+1)), without the last factor for n = N
        p = p(n) prod_(k<=n) p(where_k | where_<k) p(what_k),   p(what_k) = N(0, 1)
        p(where_k | where_<k): `RecurrentNormal`, or N(where_mean, 1)
        p(n): cat: softmax(ELU(b + [t > 0] b_t + MLP(expected)));   geom: success^n (1 - success), AIR's, not truncated
    """

    def __init__(self, config: ModelConfig, glimpse_encoder: GlimpseEncoder, name: str | None = None):
        """Args: config: of the model. glimpse_encoder: shared with propagation. name: module name."""
        super().__init__(name=name)
        self.n_slots = n_slots = config.n_steps_per_image
        self.n_what = config.n_what
        height, width, channels = config.image_size
        self.frame_encoder = MLP(height * width * channels, [config.n_hidden] * 2, name="frame_encoder")
        self.core = DiscoveryCore(config, glimpse_encoder, name="core")

        scale_prior = config.scale_prior_values
        self.where_mean = [scale_prior[0], scale_prior[-1], 0.0, 0.0]
        self.where_prior = None
        if config.rec_where_prior:
            self.where_prior = RecurrentNormal(4, config.n_hidden + 1, self.where_mean + [1.0] * 4, name="where_prior")

        self.step_success_prob = config.step_success_prob
        self.steps_mlp = None
        if config.disc_prior_type == "cat":
            self.step_bias = tf.Variable(tf.zeros([n_slots + 1]), name="step_prior_bias")
            self.timestep_bias = tf.Variable([10.0] + [0.0] * n_slots, name="step_prior_timestep_bias")
            self.steps_mlp = MLP(1, [10], n_slots + 1, name="step_prior_mlp")

    def encode_frames(self, obs: tf.Tensor) -> tf.Tensor:
        """The codes of frames as the RNN over slots takes them.

        Args:
          obs: [T, B, H, W] or [T, B, H, W, C].

        Returns:
          [T, B, R], its share of the RNN's inputs.
        """
        codes = self.frame_encoder(tf.reshape(obs, [*obs.shape[:2], -1]))
        return self.core.rnn.inputs(frame=codes)

    def __call__(
        self, frame: tf.Tensor, columns: Columns, conditioning: tf.Tensor, noise: PhaseNoise, all_slots: bool = False
    ) -> Slots:
        """Infers the slots of one frame.

        A slot after an absent one is absent, and what is stored for it is not used. So the slots after the first are
        computed only for the particles that found an object in the first slot; if none did, they are skipped.

        Args:
          frame: the core RNN's share of the frame encoding, [P, R].
          columns: `Columns` of the frame, [B, ...].
          conditioning: [P, R] summary of the propagated objects.
          noise: `PhaseNoise`, [N, P, d].
          all_slots: compute all slots of all particles, as the original does. XLA needs it: it compiles for a fixed
            number of particles, and TensorFlow cannot differentiate a conditional inside a compiled function.

        Returns:
          `Slots`, [P, N, d].
        """
        precomputed = self.core.rnn.inputs(precomputed=frame, conditioning=conditioning)
        n_particles = precomputed.shape[0]
        previous, state = self.core.first_slot(n_particles)
        first, *later = unstack(noise)
        slot, state = self.core(precomputed, columns, previous, state, first)
        if not later:
            return stack_slots([slot])
        inputs = precomputed, slot.summary, state, later
        if all_slots:
            rest = self._later_slots(columns, *inputs)
        else:
            rest = tf.cond(
                tf.reduce_any(slot.presence > 0),
                lambda: self._later_slots_where(slot.presence[:, 0] > 0, columns, *inputs),
                lambda: self.absent(n_particles, len(later)),
            )
        return tf.nest.map_structure(lambda x, xs: tf.concat([x[:, None], xs], 1), slot, rest)

    def _later_slots_where(
        self,
        wanted: tf.Tensor,
        columns: Columns,
        precomputed: tf.Tensor,
        previous: tf.Tensor,
        state: tf.Tensor,
        noise: list,
    ) -> Slots:
        """`_later_slots` of the particles where `wanted` [P] holds; absent slots for the others."""
        # TensorFlow differentiates a conditional with respect to all of its inputs; these are data and need none.
        columns, noise = tf.nest.map_structure(tf.stop_gradient, (columns, noise))
        n_particles, n_images = precomputed.shape[0], columns.values.shape[0]
        rows = tf.where(wanted)
        image = tf.cast(rows[:, 0], tf.int32) // (n_particles // n_images)
        precomputed, previous, state, noise = tf.nest.map_structure(
            lambda x: take(x, rows), (precomputed, previous, state, noise)
        )
        return tf.nest.map_structure(
            lambda x, y: tf.tensor_scatter_nd_update(x, rows, y),
            self.absent(n_particles, len(noise)),
            self._later_slots(columns, precomputed, previous, state, noise, image),
        )

    def _later_slots(
        self,
        columns: Columns,
        precomputed: tf.Tensor,
        previous: tf.Tensor,
        state: tf.Tensor,
        noise: list,
        image: tf.Tensor | None = None,
    ) -> Slots:
        """The slots after the first, [P, N-1, d], of any set of particles; the arguments are those of the core."""
        slots = []
        for slot_noise in noise:
            slot, state = self.core(precomputed, columns, previous, state, slot_noise, image)
            previous = slot.summary
            slots.append(slot)
        return stack_slots(slots)

    def absent(self, n_particles: int, n_slots: int) -> Slots:
        """Slots without an object, [P, n_slots, d]."""
        what, where, one = (tf.zeros([n_particles, n_slots, d]) for d in (self.n_what, 4, 1))
        return Slots(what, what, what + 1.0, where, where, where + 1.0, one, one - ABSENT_LOGIT)

    def posterior_log_probs(self, slots: Slots) -> LogProbs:
        """log q of what was found, [..., P]; what and where count for present slots only."""
        presence = slots.presence[..., 0]
        probs = number_of_steps(tf.sigmoid(slots.presence_logit[..., 0]))
        return LogProbs(
            what=tf.reduce_sum(tfd.Normal(slots.what_loc, slots.what_scale).log_prob(slots.what), -1) * presence,
            where=tf.reduce_sum(tfd.Normal(slots.where_loc, slots.where_scale).log_prob(slots.where), -1) * presence,
            discrete=log_number_of_steps(probs, tf.reduce_sum(presence, -1)),
        )

    def prior_log_probs(
        self, slots: Slots, conditioning: tf.Tensor, expected: tf.Tensor, later_frame: tf.Tensor
    ) -> LogProbs:
        """log p of what was found.

        Args:
          slots: [..., P, N, d].
          conditioning: [..., P, R] summary of the propagated objects.
          expected: [..., P, 1] how many objects the propagation prior expected to stay, minus N/2, over N.
          later_frame: broadcastable to [..., P, 1]; 0 at the first frame, 1 later.
        """
        presence = slots.presence[..., 0]
        if self.where_prior is None:
            where_prior = tfd.Normal(self.where_mean, 1.0)
        else:
            where_prior = self.where_prior(slots.where, tf.concat([conditioning, expected], -1))
        n = tf.reduce_sum(presence, -1)
        if self.steps_mlp is None:
            success = self.step_success_prob
            steps = n * math.log(success) + math.log1p(-success)
        else:
            logits = tf.nn.elu(self.step_bias + later_frame * self.timestep_bias + self.steps_mlp(expected))
            steps = tfd.Categorical(logits=logits).log_prob(tf.cast(n, tf.int32))
        return LogProbs(
            what=tf.reduce_sum(tfd.Normal(0.0, 1.0).log_prob(slots.what), -1) * presence,
            where=tf.reduce_sum(where_prior.log_prob(slots.where), -1) * presence,
            discrete=steps,
        )
