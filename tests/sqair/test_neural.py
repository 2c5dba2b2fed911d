"""Layers: initial distributions, formulas, and inputs that are known before others."""

import math

import numpy as np
import pytest
import tensorflow as tf

from sqair import neural


def draw(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


t = tf.constant


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def randomise(module, seed=1):
    """Gives every variable, biases too, random values."""
    for i, variable in enumerate(module.trainable_variables):
        variable.assign(0.5 * draw(*variable.shape, seed=seed + i))


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def test_linear_starts_as_a_truncated_normal_by_fan_in_over_all_inputs():
    layer = neural.Linear(dict(x=30, y=70), 400)
    for weights in layer.w.values():
        # TensorFlow cuts a normal at two of its standard deviations, which leaves 0.88 of it.
        assert np.std(weights) == pytest.approx(0.8796 / math.sqrt(100), rel=0.03)
        assert np.abs(weights).max() <= 2 / math.sqrt(100)
        assert np.abs(weights).max() > 1.9 / math.sqrt(100)
    np.testing.assert_array_equal(layer.b, np.zeros(400))


def test_gru_starts_glorot_uniform_by_gate():
    cell = neural.GRU(dict(x=20, y=30), 100)
    square = math.sqrt(6 / 200)
    limits = {
        "inputs/w_x": math.sqrt(6 / 150),
        "inputs/w_y": math.sqrt(6 / 150),
        "inputs/b": square,
        "recurrent/w": square,
        "candidate/w": square,
    }
    variables = {v.name.split(":")[0].split("/", 1)[1]: v.numpy() for v in cell.trainable_variables}
    assert set(variables) == set(limits)
    for name, limit in limits.items():
        assert 0.97 * limit < np.abs(variables[name]).max() <= limit, name
        assert np.std(variables[name]) == pytest.approx(limit / math.sqrt(3), rel=0.1), name


def test_initial_states_are_trainable_zeros():
    state = neural.initial_state(7, "state")
    assert state.trainable and state.shape == (1, 7) and not np.any(state)


def test_vanilla_rnn_formula():
    cell = neural.VanillaRNN(dict(x=3, y=2), 4)
    assert {v.shape.as_list()[0] for v in (cell.inputs.b, cell.recurrent.b)} == {4}  # two biases
    randomise(cell)
    x, y, s = draw(5, 3), draw(5, 2, seed=1), draw(5, 4, seed=2)
    weights = np.concatenate([cell.inputs.w["x"], cell.inputs.w["y"]])
    expected = np.tanh(
        np.concatenate([x, y], 1) @ weights + cell.inputs.b + s @ cell.recurrent.w["x"].numpy() + cell.recurrent.b
    )
    np.testing.assert_allclose(cell(cell.inputs(x=t(x), y=t(y)), t(s)), expected, rtol=1e-5)
    np.testing.assert_allclose(cell(cell.inputs(x=t(x), y=t(y)), t(s), cell.recurrent(t(s))), expected, rtol=1e-5)


def test_gru_formula():
    cell = neural.GRU(3, 4)
    randomise(cell)
    x, s = draw(5, 3), draw(5, 4, seed=2)
    wz, wr, wh = np.split(cell.inputs.w["x"].numpy(), 3, 1)
    bz, br, bh = np.split(cell.inputs.b.numpy(), 3)
    uz, ur = np.split(cell.recurrent.w["x"].numpy(), 2, 1)
    uh = cell.candidate.w["x"].numpy()
    z, r = sigmoid(x @ wz + s @ uz + bz), sigmoid(x @ wr + s @ ur + br)
    expected = (1 - z) * s + z * np.tanh(x @ wh + (r * s) @ uh + bh)
    np.testing.assert_allclose(cell(cell.inputs(t(x)), t(s)), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cell(cell.inputs(t(x)), t(s), cell.recurrent(t(s))), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("leading", [(5,), (5, 2)])
def test_known_inputs_can_be_added_up_in_any_order(leading):
    layer = neural.Linear(dict(x=3, y=2, z=4), 6)
    randomise(layer)
    x, y, z = (draw(*leading, size, seed=size) for size in (3, 2, 4))
    joint = np.concatenate([x, y, z], -1) @ np.concatenate([layer.w[key] for key in "xyz"]) + layer.b
    x, y, z = t(x), t(y), t(z)
    np.testing.assert_allclose(layer(x=x, y=y, z=z), joint, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer(precomputed=layer(z=z, x=x), y=y), joint, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer(y=y, precomputed=layer(x=x, precomputed=layer(z=z))), joint, rtol=1e-4, atol=1e-5)


def test_mlp_has_an_elu_after_hidden_layers_only():
    x = draw(5, 3)
    hidden = neural.MLP(3, [4, 6])
    closed = neural.MLP(3, [4], 6, b_init=neural.constant(2.0))
    assert [float(layer.b[0]) for layer in closed.layers] == [0.0, 2.0]
    for mlp in (hidden, closed):
        randomise(mlp)
        first, second = ((layer.w["x"].numpy(), layer.b.numpy()) for layer in mlp.layers)
        expected = elu(x @ first[0] + first[1]) @ second[0] + second[1]
        expected = elu(expected) if mlp is hidden else expected
        assert (expected < -1).any() or mlp is hidden
        np.testing.assert_allclose(mlp(t(x)), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mlp(precomputed=mlp.precompute(x=t(x))), expected, rtol=1e-4, atol=1e-5)


def test_gaussian_head():
    head = neural.GaussianHead(3, 2)
    randomise(head)
    x = draw(5, 3)
    y = x @ head.linear.w["x"].numpy() + head.linear.b
    loc, scale = head(t(x))
    np.testing.assert_allclose(loc, y[:, :2], rtol=1e-5)
    np.testing.assert_allclose(scale, np.log1p(np.exp(y[:, 2:])) + 0.01, rtol=1e-5)


def test_gaussian_head_of_an_input_of_its_own_width_has_no_weights():
    head = neural.GaussianHead(4, 2)
    assert head.linear is None
    x = draw(5, 4)
    loc, scale = head(t(x))
    np.testing.assert_array_equal(loc, x[:, :2])
    np.testing.assert_allclose(scale, np.log1p(np.exp(x[:, 2:])) + 0.01, rtol=1e-5)


@pytest.mark.parametrize("leading", [(5,), (2, 5), (2, 3, 5)])
def test_matmul_of_any_rank_in_a_graph_of_unknown_length(leading):
    x, w = draw(*leading, 3), draw(3, 2)
    compiled = tf.function(
        neural.matmul, input_signature=[tf.TensorSpec([None] * len(leading) + [3]), tf.TensorSpec([3, 2])]
    )
    np.testing.assert_allclose(neural.matmul(tf.constant(x), tf.constant(w)), x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(compiled(x, w), x @ w, rtol=1e-5, atol=1e-6)
