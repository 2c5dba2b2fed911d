"""One frame: relate, propagate, discover, choose what to keep (docs/spec/sqair.md, "One frame")."""

from typing import Any, NamedTuple

import sonnet as snt
import tensorflow as tf

from relational.relation import Relation, Relations, make_relation
from sqair.config import NO_RELATION, ModelConfig
from sqair.core import Latents, Slots
from sqair.crops import Columns
from sqair.discover import Discover
from sqair.glimpses import GlimpseEncoder
from sqair.neural import MLP
from sqair.noise import Noise
from sqair.propagate import PriorStatistics, Propagate


class State(NamedTuple):
    """The recurrent state, carried from frame to frame.

    objects: `Latents` [P, N, d]; temporal, prior: RNN states [P, N, R]; object_id: [P, N], -1 if absent;
    last_id: [P, 1] the highest id given so far; memory: the relation's, [P, N, M] (M = 0 without one).
    """

    objects: Latents
    temporal: tf.Tensor
    prior: tf.Tensor
    object_id: tf.Tensor
    last_id: tf.Tensor
    memory: tf.Tensor


class Frame(NamedTuple):
    """The record of one frame, from which log-probabilities, canvases and figures are computed.

    propagated, discovered: `Slots` [P, N, d]; prior: `PriorStatistics` [P, N, d]; presence_prev: [P, N];
    conditioning: [P, R]; expected: [P, 1]; selection: [P, N, 2N] one-hot rows that pick the kept slots from propagated
    and discovered; object_id: [P, N]; attention: the relation's weights, of its own shape.
    """

    propagated: Slots
    discovered: Slots
    prior: PriorStatistics
    presence_prev: tf.Tensor
    conditioning: tf.Tensor
    expected: tf.Tensor
    selection: tf.Tensor
    object_id: tf.Tensor
    attention: tf.Tensor


DISCRETE = ("presence", "presence_prev", "selection", "object_id", "last_id")  # discrete: they have no derivative


def stop_discrete_gradients(record: Any) -> Any:
    """A `State` or `Frame`, or a record in it, with gradients stopped at the fields named in `DISCRETE`.

    TensorFlow differentiates a compiled function from all of its outputs to all of its inputs unless they are stopped.
    """

    def stopped(name: str, x: Any) -> Any:
        if name in DISCRETE:
            return tf.stop_gradient(x)
        return stop_discrete_gradients(x) if isinstance(x, tuple) else x

    return type(record)(*map(stopped, record._fields, record))


def present_first(presence: tf.Tensor, n: int) -> tf.Tensor:
    """Rows of a stable sort that puts present slots first: [P, M] presence -> [P, n, M] one-hot.

    Ranks are counted instead of sorted, which XLA compiles to a few additions.
    """
    absent = 1.0 - presence
    n_present = tf.reduce_sum(presence, -1, keepdims=True)
    rank = tf.where(presence > 0, tf.cumsum(presence, -1), n_present + tf.cumsum(absent, -1)) - 1.0
    return tf.cast(tf.equal(rank[:, None, :], tf.range(n, dtype=rank.dtype)[:, None]), tf.float32)


def pick(selection: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The slots named by one-hot rows: [..., n, M], [..., M, d] -> [..., n, d], exact."""
    return tf.matmul(selection, x)


def configured_relation(config) -> Relation | None:
    """The relation that a `ModelConfig` asks for, with all its variables; None for SQAIR."""
    if config.relation == NO_RELATION:
        return None
    return make_relation(
        config.relation,
        n_slots=config.n_steps_per_image,
        state_size=config.n_what + 6,
        embedding=config.relation_embedding,
    )


class SQAIRTimestep(snt.Module):
    """Propagation and discovery of one frame.

    The factors of one t in equations 3 and 4 of the R-SQAIR paper (docs/spec/sqair.md, "One frame")::

        gamma_t = Gamma(z_(t-1))
        z^P ~ q^P(z^P | frame, z_(t-1), gamma_t)                        propagation; or ~ p^P(z^P | z_(t-1), gamma_t)
        z^D ~ q^D(z^D | frame, sum_i presence_i MLP(z_i^P))             discovery
        z_t = the present ones of [z^P, z^D], N at most
    """

    def __init__(self, config: ModelConfig, name: str | None = None):
        """Args: config: of the model. name: module name."""
        super().__init__(name=name)
        self.n_slots, self.n_what = config.n_steps_per_image, config.n_what
        height, width, channels = config.image_size
        self.relation = configured_relation(config)
        gamma_size = self.relation.gamma_size if self.relation else 0
        glimpse_encoder = GlimpseEncoder(
            (config.glimpse_size, config.glimpse_size, channels),
            config.n_what,
            config.n_hidden,
            config.masked_glimpse,
            name="glimpse_encoder",
        )
        self.discover = Discover(config, glimpse_encoder, name="discover")
        self.propagate = Propagate(config, glimpse_encoder, gamma_size, name="propagate")
        self.latent_encoder = MLP(config.n_what + 4, [config.n_hidden] * 2, name="latent_encoder")

    def initial_state(self, n_particles: int) -> State:
        """No objects yet: latents 0, ids -1, RNN states at their trainable start."""
        shape = [n_particles, self.n_slots]
        objects = Latents(*(tf.zeros(shape + [d]) for d in (self.n_what, 4, 1, 1)))
        temporal, prior = self.propagate.initial_states(n_particles)
        memory = self.relation.initial_memory(n_particles, self.n_slots) if self.relation else tf.zeros(shape + [0])
        return State(objects, temporal, prior, -tf.ones(shape), -tf.ones(shape[:1] + [1]), memory)

    def _relate(self, state: State) -> Relations:
        """The relations between the previous frame's objects (eq. 5); of width 0 without a relational module."""
        if self.relation is None:
            nothing = tf.zeros([state.memory.shape[0], 0])
            return Relations(None, state.memory, nothing)
        return self.relation(tf.concat(list(state.objects), -1), state.objects.presence[..., 0], state.memory)

    def _nothing_propagated(self, state: State) -> tuple[Slots, PriorStatistics]:
        """The result of propagation at a first frame, where there is nothing to propagate."""
        zero = state.objects
        one = tf.nest.map_structure(tf.ones_like, zero)
        # A walk's logit enters `expected` at the first frame too.
        logit = self.propagate.prior.presence_logit(zero.presence_logit, zero)
        prior = PriorStatistics(zero.what, one.what, zero.where, one.where, logit)
        slots = Slots(
            zero.what, zero.what, one.what, zero.where, zero.where, one.where, zero.presence, zero.presence_logit - 88.0
        )
        return slots, prior

    def __call__(
        self,
        state: State,
        frame_code: tf.Tensor,
        columns: Columns,
        noise: Noise,
        propagate: bool = True,
        generate: bool = False,
        all_slots: bool = False,
    ) -> tuple[State, Frame]:
        """Processes one frame.

        Args:
          state: `State` after the previous frame.
          frame_code: [P, R] the discovery RNN's share of the frame encoding.
          columns: `Columns` of the frame, [B, ...].
          noise: `Noise` of this frame, [N, P, d].
          propagate: False skips propagation at a first frame; it changes the stored values of absent slots only.
          generate: sample the propagated objects from the prior, and discover nothing: prediction of this frame.
          all_slots: compute what is discovered in all slots, whether they are absent or not.

        Returns:
          The new `State` and the `Frame`.
        """
        columns, noise = tf.nest.map_structure(tf.stop_gradient, (columns, noise))  # they are data
        state = stop_discrete_gradients(state)
        n_particles = frame_code.shape[0]
        objects, temporal, prior_state = state.objects, state.temporal, state.prior
        gamma, memory, attention = self._relate(state)
        if propagate or generate:
            prior, prior_state = self.propagate.prior(objects, prior_state, gamma)
        if generate:
            propagated = self.propagate.generate(prior, objects, noise.propagation)
        elif propagate:
            propagated, temporal = self.propagate(columns, objects, temporal, gamma, noise.propagation)
        else:
            propagated, prior = self._nothing_propagated(state)

        conditioning = tf.reduce_sum(propagated.presence * self.latent_encoder(propagated.summary[..., :-1]), 1)
        expected = tf.reduce_sum(tf.sigmoid(prior.presence_logit) - 0.5, 1) / self.n_slots
        if generate and not all_slots:
            discovered = self.discover.absent(n_particles, self.n_slots)
        else:  # at a first frame nearly all particles discover objects: all slots at once are quicker
            discovered = self.discover(frame_code, columns, conditioning, noise.discovery, all_slots or not propagate)
        if generate:
            discovered = discovered._replace(presence=tf.zeros_like(discovered.presence))

        state, selection = self.keep(state, propagated, discovered, temporal, prior_state, memory)
        record = Frame(
            propagated,
            discovered,
            prior,
            objects.presence[..., 0],
            conditioning,
            expected,
            selection,
            state.object_id,
            attention,
        )
        return state, record

    def keep(
        self,
        state: State,
        propagated: Slots,
        discovered: Slots,
        temporal: tf.Tensor,
        prior_state: tf.Tensor,
        memory: tf.Tensor,
    ) -> tuple[State, tf.Tensor]:
        """Keeps N of the propagated and discovered slots, present ones first, and gives them their ids.

        Args:
          state: `State` after the previous frame.
          propagated, discovered: [P, N, d].
          temporal, prior_state, memory: the state's, after propagation, [P, N, R] or [P, N, M].

        Returns:
          The new `State` and the selection, see `Frame`.
        """
        both = tf.nest.map_structure(lambda p, d: tf.concat([p, d], 1), propagated, discovered)
        selection = present_first(both.presence[..., 0], self.n_slots)
        latents = tf.concat([both.what, both.where, both.presence, both.presence_logit], -1)
        chosen = Latents(*tf.split(pick(selection, latents), [self.n_what, 4, 1, 1], -1))

        # Kept objects bring their recurrent states along, new ones start from the trainable initial states.
        kept = selection[..., : self.n_slots]
        new = tf.reduce_sum(selection[..., self.n_slots :], -1, keepdims=True)
        fresh_temporal, fresh_prior = self.propagate.initial_states(selection.shape[0])
        temporal = pick(kept, temporal) + new * fresh_temporal
        prior_state = pick(kept, prior_state) + new * fresh_prior
        if self.relation is not None and self.relation.memory_follows_objects:
            memory = pick(kept, memory) + new * self.relation.initial_memory(selection.shape[0], self.n_slots)

        found = discovered.presence[..., 0]
        kept_id = tf.where(propagated.presence[..., 0] > 0, state.object_id, -1.0)
        new_id = tf.where(found > 0, state.last_id + tf.cumsum(found, -1), -1.0)
        object_id = pick(selection, tf.concat([kept_id, new_id], -1)[..., None])[..., 0]
        last_id = state.last_id + tf.reduce_sum(found, -1, keepdims=True)

        return State(chosen, temporal, prior_state, object_id, last_id, memory), selection
