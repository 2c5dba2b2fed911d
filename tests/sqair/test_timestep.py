"""One frame: which slots are kept, whose states and ids they carry, and that absent slots do not matter."""

import operator

import numpy as np
import pytest
import tensorflow as tf

from sqair import crops
from sqair.timestep import pick, present_first
from tests.model_helpers import busy_model, draw, make_inputs

N = 3


def stable_order(presence, n=N):
    """Slot numbers, present before absent, the first n."""
    return sorted(range(len(presence)), key=lambda i: presence[i] == 0)[:n]


@pytest.mark.parametrize("m, n", [(6, 3), (8, 4), (2, 1), (5, 5)])
def test_present_first_is_a_stable_sort(m, n):
    presence = np.float32(np.random.RandomState(0).rand(200, m) < 0.5)
    presence[0], presence[1] = 0, 1
    order = present_first(tf.constant(presence), n).numpy()
    assert order.shape == (200, n, m)
    np.testing.assert_array_equal(order.sum(-1), 1)
    np.testing.assert_array_equal(order.argmax(-1), [stable_order(row, n) for row in presence])
    x = draw(200, m, 5)
    np.testing.assert_array_equal(
        pick(tf.constant(order), tf.constant(x)), [row[stable_order(p, n)] for row, p in zip(x, presence)]
    )


class Steps:
    """A busy model's timesteps, frame by frame, with the inputs and outputs of each."""

    def __init__(self, **flags):
        self.model = busy_model(**flags)
        self.timestep = self.model.sequence.timestep
        self.obs, self.noise = make_inputs(self.model, n_frames=4, batch=4)
        self.columns = crops.image_to_columns(self.obs, 1)
        state = self.timestep.initial_state(8)
        self.before, self.after, self.records = [], [], []
        for t in range(4):
            self.before.append(state)
            state, record = self.run(state, t)
            self.after.append(state)
            self.records.append(record)

    def frame(self, t):
        return tf.nest.map_structure(lambda x: x[t], self.columns)

    def run(self, state, t, **options):
        discover = self.timestep.discover
        code = discover.core.rnn.inputs(frame=discover.frame_encoder(tf.reshape(self.obs[t], [4, -1])))
        return self.timestep(
            state, tf.repeat(code, 2, 0), self.frame(t), tf.nest.map_structure(lambda x: x[t], self.noise), **options
        )


@pytest.fixture(scope="module")
def steps():
    return Steps()


def presences(record):
    return np.concatenate([record.propagated.presence, record.discovered.presence], 1)[..., 0]


def test_busy_enough(steps):
    """The tests below have objects that stay, vanish and appear, and more of them than slots."""
    presence = np.stack([presences(record) for record in steps.records])
    assert (presence.sum(-1) > N).any() and (presence.sum(-1) < N).any()
    assert ((presence[1:, :, 0] == 0) & (presence[1:, :, 1] == 1)).any()  # the second one moves to the first slot
    assert (presence[1:, :, N:].sum(-1) > 0).any()


def test_ids(steps):
    for p in range(8):
        ids, last = [-1] * N, -1
        for t, record in enumerate(steps.records):
            presence = presences(record)[p]
            kept = [i if presence[k] else -1 for k, i in enumerate(ids)]
            new = []
            for k in range(N):
                last += int(presence[N + k])
                new.append(last if presence[N + k] else -1)
            ids = [(kept + new)[i] for i in stable_order(presence)]
            np.testing.assert_array_equal(record.object_id[p], ids)
            np.testing.assert_array_equal(steps.after[t].object_id[p], ids)
            assert steps.after[t].last_id[p, 0] == last
            alive = [i for i in ids if i >= 0]
            assert len(alive) == len(set(alive))
    np.testing.assert_array_equal(steps.before[0].object_id, -np.ones([8, N]))


def test_latents_are_those_of_the_kept_slots(steps):
    for t, record in enumerate(steps.records):
        for field in ("what", "where", "presence", "presence_logit"):
            both = np.concatenate([getattr(record.propagated, field), getattr(record.discovered, field)], 1)
            expected = [row[stable_order(p)] for row, p in zip(both, presences(record))]
            np.testing.assert_array_equal(getattr(steps.after[t].objects, field), expected)
        np.testing.assert_array_equal(record.presence_prev, steps.before[t].objects.presence[..., 0])


def test_recurrent_states_follow_their_objects(steps):
    propagate = steps.timestep.propagate
    temporal_start, prior_start = (x.numpy() for x in propagate.initial_states(8))
    assert np.abs(temporal_start).max() > 0.1 and np.abs(prior_start).max() > 0.1
    np.testing.assert_array_equal(steps.before[0].temporal, temporal_start)
    for t in (1, 2, 3):
        before, after = steps.before[t], steps.after[t]
        noise = tf.nest.map_structure(operator.itemgetter(t), steps.noise.propagation)
        _, temporal = propagate(steps.frame(t), before.objects, before.temporal, None, noise)
        _, prior = propagate.prior(before.objects, before.prior, None)
        for ours, moved, start in ((after.temporal, temporal, temporal_start), (after.prior, prior, prior_start)):
            both = np.concatenate([moved, start], 1)
            expected = [row[stable_order(p)] for row, p in zip(both, presences(steps.records[t]))]
            np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_conditioning_of_discovery(steps):
    for record in steps.records:
        latents = tf.concat([record.propagated.what, record.propagated.where], -1)
        code = steps.timestep.latent_encoder(latents).numpy() * record.propagated.presence
        np.testing.assert_allclose(record.conditioning, code.numpy().sum(1), rtol=1e-4, atol=1e-5)
        chance = 1 / (1 + np.exp(-record.prior.presence_logit.numpy()[..., 0].astype(np.float64)))
        np.testing.assert_allclose(record.expected[:, 0], ((chance - 0.5) / N).sum(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("relation", ["rmc", "rmc_slots"])
def test_memory_rows(relation):
    """Rows of rmc_slots move with their objects and start anew for new ones; those of rmc do not move."""
    steps = Steps(relation=relation)
    module = steps.timestep.relation
    start = module.initial_memory(8, N).numpy()
    moved = 0
    for t in range(4):
        before, presence = steps.before[t], presences(steps.records[t])
        states = tf.concat(list(before.objects), -1)
        relations = module(states, before.objects.presence[..., 0], before.memory)
        if relation == "rmc":
            expected = relations.memory.numpy()
        else:
            both = np.concatenate([relations.memory, start], 1)
            expected = np.array([row[stable_order(p)] for row, p in zip(both, presence)])
            moved += np.abs(expected - relations.memory).max() > 0.1
        np.testing.assert_allclose(steps.after[t].memory, expected, rtol=1e-5, atol=1e-6)
    assert moved or relation == "rmc"


@pytest.mark.parametrize(
    "kind, relation", [("rnn", "none"), ("guided", "none"), ("rnn", "in"), ("rnn", "rmc"), ("rnn", "rmc_slots")]
)
def test_absent_slots_do_not_matter(kind, relation):
    """Random values stored for absent slots change neither present slots nor any log-probability."""
    steps = Steps(prop_prior_type=kind, relation=relation)
    timestep, t = steps.timestep, 2
    state = steps.before[t]
    absent = 1.0 - state.objects.presence
    assert 0 < tf.reduce_mean(absent) < 1

    def junk(x, seed):
        return x + 3.0 * absent * draw(*x.shape, seed=seed)

    objects = state.objects._replace(what=junk(state.objects.what, 1), where=junk(state.objects.where, 2))
    if kind == "rnn":  # a walk's prior continues from the logit, and all of them count as expected
        objects = objects._replace(presence_logit=junk(objects.presence_logit, 3))
    spoilt = state._replace(objects=objects, temporal=junk(state.temporal, 4), prior=junk(state.prior, 5))
    if relation == "rmc_slots":
        spoilt = spoilt._replace(memory=junk(state.memory, 6))
    results = []
    for start in (state, spoilt):
        after, record = steps.run(start, t)
        present = after.objects.presence
        presence_prev = record.presence_prev
        terms = (
            timestep.propagate.posterior_log_probs(record.propagated, presence_prev),
            timestep.propagate.prior_log_probs(record.propagated, record.prior, presence_prev),
            timestep.discover.posterior_log_probs(record.discovered),
            timestep.discover.prior_log_probs(
                record.discovered, record.conditioning, record.expected, tf.constant(1.0)
            ),
        )
        results.append(
            [
                after.objects.presence,
                after.object_id,
                present * after.objects.what,
                present * after.objects.where,
                present * after.temporal,
                present * after.prior,
                record.conditioning,
                record.expected,
                record.discovered.presence,
                *tf.nest.flatten(terms),
            ]
            + [present * after.memory] * (relation == "rmc_slots")
        )
    for ours, expected in zip(*results):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(steps.run(spoilt, t)[0].objects.where - steps.run(state, t)[0].objects.where).max() > 0.1
