"""The interaction network: parity with R-NEM's cell, and what its outputs must and must not depend on."""

import numpy as np
import pytest
import tensorflow as tf

from relational.interaction_network import InteractionNetwork
from relational.relation import make_relation
from tests.data_helpers import ROOT
from tests.reference.relational_reference import (
    FIXTURE,
    assert_close,
    assign_recorded_weights,
    recorded,
    redraw,
    variables_by_original,
)

LAYERS = {
    "embed": "interaction_network/fully_connected",
    "embed_norm": "interaction_network/LayerNorm",
    "interact": "interaction_network/fully_connected_1",
    "interact_norm": "interaction_network/LayerNorm_1",
    "effect": "interaction_network/fully_connected_2",
    "effect_norm": "interaction_network/LayerNorm_2",
    "attention_hidden": "interaction_network/fully_connected_3",
    "attention_norm": "interaction_network/LayerNorm_3",
    "attention_out": "interaction_network/fully_connected_4",
    "update": "interaction_network/fully_connected_5",
}
SHARED = ROOT.parent / "shared" / "reference" / "relational"


def original_names(network):
    return variables_by_original(network, LAYERS, weights="weights", biases="biases")


def make_network(dtype=tf.float32):
    """A network with the recorded weights, so that every branch has an effect."""
    network = InteractionNetwork(dtype=dtype)
    assign_recorded_weights(original_names(network))
    return network


def draw_states(n_objects, n_particles=3, seed=0):
    return np.random.RandomState(seed).randn(n_particles, n_objects, 11).astype(np.float32)


def ones(states):
    return tf.ones(states.shape[:2])


@pytest.mark.skipif(not SHARED.exists(), reason="the original recording is not here")
def test_fixture_is_the_recording():
    with np.load(FIXTURE) as ours, np.load(SHARED / "relational.npz") as original:
        assert set(ours) == set(original)
        for key in ours:
            np.testing.assert_array_equal(ours[key], original[key])
    with np.load(SHARED / "relational_weights.npz") as weights:
        for key in weights:
            variable = key[key.index("_", len("rmc_")) + 1 :] if key.startswith("rmc_") else key.removeprefix("in_")
            redrawn = redraw(variable.replace("|", "/"), weights[key].shape).astype(np.float32)
            np.testing.assert_array_equal(redrawn, weights[key], err_msg=key)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_matches_the_original(dtype):
    network = make_network(dtype)
    variables = original_names(network)
    record = recorded("in")
    states = tf.constant(record["inputs"], dtype)
    with tf.GradientTape() as tape:
        interactions = network(states, ones(states))
        loss = tf.reduce_sum(tf.sin(interactions.update))
    assert_close(interactions.embedding, record["embedding"], "embedding")
    assert_close(interactions.effect, record["effect"], "effect")
    assert_close(interactions.update, record["output"], "output")
    assert_close(loss, record["loss"], "loss")
    for name, gradient in tape.gradient(loss, variables).items():
        assert_close(gradient, record[f"grad_{name}"], name)


def test_has_the_papers_parameter_count_from_construction():
    variables = InteractionNetwork().trainable_variables
    assert sum(v.shape.num_elements() for v in variables) == 1197


def test_gamma_is_update_beside_effect():
    network = make_network()
    states = draw_states(4)
    interactions = network(states, ones(states))
    assert interactions.gamma.shape == (3, 4, network.gamma_size) == (3, 4, 16)
    np.testing.assert_array_equal(interactions.gamma, tf.concat([interactions.update, interactions.effect], -1))


@pytest.mark.parametrize("n_objects", [4, 8])
def test_permuting_objects_permutes_relations(n_objects):
    network = make_network()
    states = draw_states(n_objects)
    presence = np.float32(np.random.RandomState(1).rand(3, n_objects) < 0.7)
    order = np.random.RandomState(2).permutation(n_objects)
    straight = network(states, presence)
    permuted = network(states[:, order], presence[:, order])
    np.testing.assert_allclose(permuted.gamma, straight.gamma.numpy()[:, order], atol=1e-5)
    np.testing.assert_allclose(permuted.attention, straight.attention.numpy()[:, order][:, :, order], atol=1e-6)


@pytest.mark.parametrize("junk", [7.0, np.nan])
def test_absent_object_changes_nothing_for_the_others(junk):
    network = make_network()
    states = draw_states(4)
    states[:, 2] = junk
    presence = tf.constant([[1.0, 1.0, 0.0, 1.0]] * 3)
    others = [0, 1, 3]
    expected = network(states[:, others], tf.ones([3, 3])).gamma
    interactions = network(states, presence)
    np.testing.assert_allclose(tf.gather(interactions.gamma, others, axis=1), expected, atol=1e-5)
    assert np.all(np.isfinite(interactions.gamma))


def test_attention_is_zero_on_the_diagonal_and_towards_absent_objects():
    states = draw_states(4)
    attention = make_network()(states, tf.constant([[1.0, 1.0, 0.0, 1.0]] * 3)).attention.numpy()
    assert np.all(attention[:, range(4), range(4)] == 0)
    assert np.all(attention[:, :, 2] == 0)
    assert np.all(attention[:, [0, 0, 1, 1, 3, 3], [1, 3, 0, 3, 0, 1]] > 0)


@pytest.mark.parametrize("n_slots", [1, 4])
def test_one_object_alone_feels_no_effect(n_slots):
    presence = np.eye(1, n_slots, dtype=np.float32).repeat(3, axis=0)
    effect = make_network()(draw_states(n_slots), presence).effect
    assert np.all(effect[:, 0] == 0)


def test_gradients_reach_every_variable_and_the_states():
    network = make_network()
    states = tf.constant(draw_states(8))
    with tf.GradientTape() as tape:
        tape.watch(states)
        loss = tf.reduce_sum(tf.sin(network(states, ones(states)).gamma))
    for gradient in tape.gradient(loss, [states, *network.trainable_variables]):
        assert np.all(np.isfinite(gradient)) and np.any(gradient)


def test_relation_in_has_gamma_of_the_network_and_no_memory():
    relation = make_relation("in", n_slots=4)
    states = draw_states(8)
    relations = relation(states, ones(states), relation.initial_memory(3, 8))
    assert relations.gamma.shape == (3, 8, relation.gamma_size) == (3, 8, 16)
    assert relations.memory.shape == (3, 8, relation.memory_size) == (3, 8, 0)
    assert relations.attention.shape == (3, 1, 8, 8)
    assert not relation.memory_follows_objects


@pytest.mark.parametrize("size", ["state_size", "embedding", "attention_units"])
def test_bad_sizes_are_refused(size):
    with pytest.raises(ValueError, match=size):
        InteractionNetwork(**{size: 0})


@pytest.mark.parametrize(
    "states_shape, presence_shape, match",
    [([3, 4, 10], [3, 4], "states"), ([4, 11], [4], "states"), ([3, 4, 11], [3, 5], "presence")],
)
def test_bad_shapes_are_refused(states_shape, presence_shape, match):
    with pytest.raises(ValueError, match=match):
        InteractionNetwork()(tf.zeros(states_shape), tf.zeros(presence_shape))
