"""One step of inference over one object slot: the original's DiscoveryCore and PropagationCore (docs/spec/sqair.md).

A core is run over the slots in order by `Discover` and `Propagate`. What does not depend on the previous slot is
computed for all slots at once, by `PropagationCore.prepare`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import sonnet as snt
import tensorflow as tf
import tensorflow_probability as tfp

from sqair.config import ModelConfig
from sqair.crops import Columns
from sqair.glimpses import GlimpseEncoder
from sqair.neural import (
    CELLS,
    MLP,
    GaussianHead,
    InputSizes,
    Linear,
    constant,
    glorot_limit,
    initial_state,
    matmul,
    positive,
    uniform,
)
from sqair.noise import PhaseNoise

ABSENT_LOGIT = 88.0  # sigmoid(-88) is the smallest positive float32


class Slots(NamedTuple):
    """The posterior of object slots and the latents drawn from it; a trailing axis each, [..., P, N, d] when stacked.

    what, what_loc, what_scale: d = D; where, where_loc, where_scale: d = 4; presence, presence_logit: d = 1.
    """

    what: tf.Tensor
    what_loc: tf.Tensor
    what_scale: tf.Tensor
    where: tf.Tensor
    where_loc: tf.Tensor
    where_scale: tf.Tensor
    presence: tf.Tensor
    presence_logit: tf.Tensor

    @property
    def summary(self) -> tf.Tensor:
        """[what, where, presence], [..., D+5]: the input of other slots and frames."""
        return tf.concat([self.what, self.where, self.presence], -1)


class Latents(NamedTuple):
    """The latents of N object slots of one frame: what [P, N, D], where [P, N, 4], presence and its logit [P, N, 1]."""

    what: tf.Tensor
    where: tf.Tensor
    presence: tf.Tensor
    presence_logit: tf.Tensor

    @property
    def summary(self) -> tf.Tensor:
        """[what, where, presence], [P, N, D+5]."""
        return tf.concat([self.what, self.where, self.presence], -1)


def masked_logit(logit: tf.Tensor, presence_prev: tf.Tensor) -> tf.Tensor:
    """presence_prev * logit + (presence_prev - 1) * 88: what was absent stays absent."""
    return presence_prev * logit + (presence_prev - 1.0) * ABSENT_LOGIT


def sample_presence(logit: tf.Tensor, presence_prev: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """[noise < sigmoid(logit)] * presence_prev, float32; no gradient flows through it."""
    return tf.stop_gradient(tf.cast(noise < tf.sigmoid(logit), tf.float32) * presence_prev)


class WhereHead(snt.Module):
    """Location and raw scale of `where`: MLP [R, R] -> 8, split in halves, scale_offset added to the second.

    The original's StochasticTransformParam (docs/spec/sqair.md, "Shared modules").
    """

    def __init__(self, inputs: InputSizes, n_hidden: int, scale_offset: float, name: str | None = None):
        """Args: inputs: see `Linear`. n_hidden: R. scale_offset: its starting value. name: module name."""
        super().__init__(name=name)
        self.mlp = MLP(inputs, [n_hidden, n_hidden], 8, name="mlp")
        self.scale_offset = tf.Variable(scale_offset, dtype=tf.float32, name="scale_offset")

    def __call__(self, precomputed: tf.Tensor | None = None, **parts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Args: see `Linear`. Returns: loc [..., 4] and the raw scale [..., 4]."""
        loc, raw = tf.split(self.mlp(precomputed=precomputed, **parts), 2, -1)
        return loc, raw + self.scale_offset


class AffineDiagNormal(snt.Module):
    """A normal distribution whose correlations are shared by all objects: the posterior of a propagated `where`.

    Part of q(z_t^i | ...), equation 4 of the R-SQAIR paper (docs/spec/sqair.md, "Propagation core")::

        x = loc + L noise,  L = diag(scale) (C + I)                                 C: a trainable lower triangle
        log q(x) = sum_i (log N(e_i; 0, 1) - log scale_i - log |(C + I)_ii|),  e = (C + I)^-1 ((x - loc) / scale)

    so that a density needs the inverse of one 4 x 4 matrix only.
    """

    def __init__(self, size: int = 4, name: str | None = None):
        super().__init__(name=name)
        n = size * (size + 1) // 2
        self.size = size
        self.cholesky_scale = tf.Variable(uniform(glorot_limit(n, n))([n]), name="cholesky_scale")

    def _matrix(self) -> tf.Tensor:
        return tfp.math.fill_triangular(self.cholesky_scale) + tf.eye(self.size)

    def correlate(self, noise: tf.Tensor) -> tf.Tensor:
        """(C + I) noise, [..., 4]: a sample is loc + scale times this."""
        return matmul(noise, tf.transpose(self._matrix()))

    def log_prob(self, x: tf.Tensor, loc: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """log density of x [..., 4] in nats, [...]."""
        matrix = self._matrix()
        inverse = tf.linalg.triangular_solve(matrix, tf.eye(self.size))
        noise = matmul((x - loc) / scale, tf.transpose(inverse))
        log_det = tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(matrix))))
        return tf.reduce_sum(tfp.distributions.Normal(0.0, 1.0).log_prob(noise) - tf.math.log(scale), -1) - log_det


class DiscoveryCore(snt.Module):
    """One slot of discovery: a step of AIR.

    One factor of equation 2 of the R-SQAIR paper (AIR's posterior), and so of q^D in its equation 4
    (docs/spec/sqair.md, "Discovery core")::

        h_k = RNN([frame code, conditioning, what_(k-1), where_(k-1), presence_(k-1)], h_(k-1))
        where_k ~ N(loc, softplus(raw) + 0.01)                                      [loc, raw] = where head(h_k)
        what_k ~ q(what | crop(frame, where_k))
        presence_k ~ Bernoulli(sigmoid(MLP([h_k, what_k]))) if presence_(k-1), else 0

    Objects found so far enter through the RNN alone, as in AIR; `conditioning` sums up the propagated objects.
    """

    def __init__(self, config: ModelConfig, glimpse_encoder: GlimpseEncoder, name: str | None = None):
        """Args: config: of the model. glimpse_encoder: shared with propagation. name: module name."""
        super().__init__(name=name)
        hidden, n_what = config.n_hidden, config.n_what
        self.glimpse_encoder = glimpse_encoder
        self.rnn = CELLS[config.transition](
            dict(frame=hidden, conditioning=hidden, slot=n_what + 5), hidden, name="rnn"
        )
        self.initial_state = initial_state(hidden, "initial_state")
        self.where_head = WhereHead(hidden, hidden, config.transform_var_bias, name="where_head")
        self.steps_predictor = MLP(
            dict(hidden=hidden, what=n_what),
            [hidden // 2],
            1,
            b_init=constant(config.disc_step_bias),
            name="steps_predictor",
        )

    def first_slot(self, n_particles: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The first slot's inputs: summary of a slot before it, [P, D+5]: zeros, presence one; RNN state [P, R]."""
        summary = tf.zeros([n_particles, self.rnn.inputs.inputs["slot"] - 1])
        return (tf.concat([summary, tf.ones([n_particles, 1])], -1), tf.repeat(self.initial_state, n_particles, 0))

    def __call__(
        self,
        precomputed: tf.Tensor,
        columns: Columns,
        previous: tf.Tensor,
        state: tf.Tensor,
        noise: PhaseNoise,
        image: tf.Tensor | None = None,
    ) -> tuple[Slots, tf.Tensor]:
        """Infers one slot.

        Args:
          precomputed: the RNN's share of frame and conditioning, [P, R].
          columns: `Columns` of the frame, [B, ...].
          previous: [P, D+5] what, where and presence of the previous slot.
          state: [P, R] RNN state.
          noise: `PhaseNoise` of this slot, [P, d] each.
          image: int32 [P] the image of each particle; None: those of one image are contiguous.

        Returns:
          `Slots` [P, d] and the new RNN state.
        """
        presence_prev = previous[:, -1:]
        hidden = self.rnn(self.rnn.inputs(precomputed=precomputed, slot=previous), state)
        where_loc, raw = self.where_head(x=hidden)
        where_scale = positive(raw)
        where = where_loc + where_scale * noise.where
        what_loc, what_scale = self.glimpse_encoder(columns, where, image=image)
        what = what_loc + what_scale * noise.what
        logit = masked_logit(self.steps_predictor(hidden=hidden, what=what), presence_prev)
        presence = sample_presence(logit, presence_prev, noise.presence)
        return Slots(what, what_loc, what_scale, where, where_loc, where_scale, presence, logit), hidden


class Prepared(NamedTuple):
    """What propagation computes of all objects before its loop over slots, [N, P, d]; `mask` is None without masks."""

    rnn: tf.Tensor
    where_head: tf.Tensor
    steps_predictor: tf.Tensor
    temporal_recurrent: tf.Tensor
    mask: tf.Tensor | None


class PropagationCore(snt.Module):
    """One slot of propagation: an object of the previous frame is found again, or not.

    q^P(z_t^i | gamma_t^i, h_t^i), a factor of equation 4 of the R-SQAIR paper; without gamma it is SQAIR's
    (docs/spec/sqair.md, "Propagation core"). s is the object's temporal state, k - 1 the slot before, at t::

        m = mean of q(what | mask(s) crop(frame, where_(t-1) + 0.1 MLP(s)))
        h_k = RNN([m, z_(k-1), z_(t-1), s, gamma], h_(k-1))
        where ~ MVN(where_(t-1) + loc, L)                       [loc, raw] = where head(h_k, where_(t-1), s, gamma)
                                                                L: `AffineDiagNormal`, scale softplus(raw - 1) + 0.01
        g = q(what | mask(s) crop(frame, where))
        s' = temporal RNN([h_k, where, g.loc, g.scale], s)
        n = Gaussian head(s');  [f, i, o] = 0.9999 sigmoid(W s')
        what ~ N(f what_(t-1) + (1 - i) g.loc + (1 - o) n.loc, (1 - i) g.scale + (1 - o) n.scale)
        presence ~ Bernoulli(sigmoid(MLP([h_k, s, what]))) if presence_(t-1), else 0
    """

    WHERE_UPDATE_SCALE = 1.0  # a constant stored as a variable in the original

    def __init__(
        self,
        config: ModelConfig,
        glimpse_encoder: GlimpseEncoder,
        rnn_relation: Mapping[str, int],
        where_relation: Mapping[str, int],
        name: str | None = None,
    ):
        """Creates the core.

        Args:
          config: of the model.
          glimpse_encoder: discovery's.
          rnn_relation, where_relation: {"gamma": width} where the relation is an input, {} where it is not.
          name: module name.
        """
        super().__init__(name=name)
        hidden, n_what = config.n_hidden, config.n_what
        slot = n_what + 5
        self.n_what = n_what
        self.glimpse_encoder = glimpse_encoder
        self.rnn_gamma, self.where_gamma = bool(rnn_relation), bool(where_relation)
        self.rnn = CELLS[config.transition](
            dict(glimpse=n_what, slot=slot, object=slot, temporal=hidden, **rnn_relation), hidden, name="rnn"
        )
        self.initial_state = initial_state(hidden, "initial_state")
        self.where_bias = MLP(hidden, [128], 4, name="where_bias")
        self.where_head = WhereHead(
            dict(hidden=hidden, where=4, temporal=hidden, **where_relation),
            hidden,
            config.transform_var_bias,
            name="where_head",
        )
        self.where_posterior = AffineDiagNormal(name="where_posterior")
        self.temporal = CELLS[config.time_transition](
            dict(hidden=hidden, where=4, what_loc=n_what, what_scale=n_what), hidden, name="temporal"
        )
        self.temporal_head = GaussianHead(hidden, n_what, name="temporal_what")
        self.gates = Linear(hidden, 3 * n_what, b_init=constant(1.0), name="gates")
        self.steps_predictor = MLP(
            dict(hidden=hidden, temporal=hidden, what=n_what),
            [hidden // 2],
            1,
            b_init=constant(config.prop_step_bias),
            name="steps_predictor",
        )

    def prepare(self, columns: Columns, objects: Latents, temporal: tf.Tensor, gamma: tf.Tensor | None) -> Prepared:
        """Computes for all objects at once what does not depend on the previous slot.

        Args:
          columns: `Columns` of the frame, [B, ...].
          objects: latents of the previous frame, [N, P, d].
          temporal: [N, P, R] temporal states.
          gamma: [N, P, G] relations (or [1, P, G]), None without.
        """
        mask = self.glimpse_encoder.mask(temporal)
        peek = objects.where + 0.1 * self.where_bias(temporal)
        glimpse, _ = self.glimpse_encoder(columns, peek, mask)
        return Prepared(
            rnn=self.rnn.inputs(
                glimpse=glimpse,
                object=objects.summary,
                temporal=temporal,
                **({"gamma": gamma} if self.rnn_gamma else {}),
            ),
            where_head=self.where_head.mlp.precompute(
                where=objects.where, temporal=temporal, **({"gamma": gamma} if self.where_gamma else {})
            ),
            steps_predictor=self.steps_predictor.precompute(temporal=temporal),
            temporal_recurrent=self.temporal.recurrent(temporal),
            mask=mask,
        )

    def first_slot(self, n_particles: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The first slot's inputs: summary of a slot before it, [P, D+5]: zeros; RNN state [P, R]."""
        return tf.zeros([n_particles, self.n_what + 5]), tf.repeat(self.initial_state, n_particles, 0)

    def __call__(
        self,
        prepared: Prepared,
        columns: Columns,
        objects: Latents,
        temporal: tf.Tensor,
        previous: tf.Tensor,
        state: tf.Tensor,
        noise: PhaseNoise,
    ) -> tuple[Slots, tf.Tensor, tf.Tensor]:
        """Infers one slot.

        Args:
          prepared: this slot of what `prepare` returned, [P, d].
          columns: `Columns` of the frame, [B, ...].
          objects: this object's latents at the previous frame, [P, d].
          temporal: [P, R] its temporal state.
          previous: [P, D+5] what, where and presence of the previous slot of this frame.
          state: [P, R] RNN state.
          noise: `PhaseNoise` of this slot, [P, d] each, that of `where` correlated (`AffineDiagNormal.correlate`).

        Returns:
          `Slots` [P, d], the object's new temporal state and the new RNN state, [P, R].
        """
        hidden = self.rnn(self.rnn.inputs(precomputed=prepared.rnn, slot=previous), state)
        update, raw = self.where_head(hidden=hidden, precomputed=prepared.where_head)
        where_loc = objects.where + self.WHERE_UPDATE_SCALE * update
        where_scale = positive(raw - 1.0)
        where = where_loc + where_scale * noise.where

        glimpse_loc, glimpse_scale = self.glimpse_encoder(columns, where, prepared.mask)
        temporal_new = self.temporal(
            self.temporal.inputs(hidden=hidden, where=where, what_loc=glimpse_loc, what_scale=glimpse_scale),
            temporal,
            prepared.temporal_recurrent,
        )
        temporal_loc, temporal_scale = self.temporal_head(temporal_new)
        forget, keep_out, temporal_out = tf.split(0.9999 * tf.sigmoid(self.gates(temporal_new)), 3, -1)
        what_loc = forget * objects.what + (1.0 - keep_out) * glimpse_loc + (1.0 - temporal_out) * temporal_loc
        what_scale = (1.0 - keep_out) * glimpse_scale + (1.0 - temporal_out) * temporal_scale
        what = what_loc + what_scale * noise.what

        logit = masked_logit(
            self.steps_predictor(hidden=hidden, what=what, precomputed=prepared.steps_predictor), objects.presence
        )
        presence = sample_presence(logit, objects.presence, noise.presence)
        slot = Slots(what, what_loc, what_scale, where, where_loc, where_scale, presence, logit)
        return slot, temporal_new, hidden
