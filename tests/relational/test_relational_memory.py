"""The relational memory cores: parity with Sonnet 1's, its options, and the symmetry of the slot-wise variant."""

import numpy as np
import pytest
import tensorflow as tf

from relational.registry import RELATIONS
from relational.relation import make_relation
from relational.relational_memory import AttentionBlock, RelationalMemory, SlotRelationalMemory
from tests.reference.relational_reference import assert_close, assign_recorded_weights, recorded, variables_by_original

LAYERS = {
    "embed": "relational_memory/linear",
    "block_0/qkv": "relational_memory/linear_1",
    "block_0/qkv_norm": "relational_memory/layer_norm",
    "block_0/attention_norm": "relational_memory/layer_norm_1",
    "block_0/mlp/linear_0": "relational_memory/mlp/linear_0",
    "block_0/mlp/linear_1": "relational_memory/mlp/linear_1",
    "block_0/mlp_norm": "relational_memory/layer_norm_2",
    "input_gates": "relational_memory/linear_2",
    "memory_gates": "relational_memory/linear_3",
}


def make_slot_core(dtype=tf.float32):
    """A slot-wise core with the weights recorded for the original one, so that every branch has an effect."""
    core = SlotRelationalMemory(11, dtype=dtype)
    assign_recorded_weights(variables_by_original(core, LAYERS))
    return core


def draw(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


def n_parameters(module):
    return sum(v.shape.num_elements() for v in module.trainable_variables)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("module, sizes", [("rmc_flat", (44, 1)), ("rmc_matrix", (11, 4))])
def test_matches_the_original_over_three_steps(module, sizes, dtype):
    input_size, input_rows = sizes
    core = RelationalMemory(input_size, input_rows=input_rows, dtype=dtype)
    variables = variables_by_original(core, LAYERS)
    assign_recorded_weights(variables)
    record = recorded(module)
    inputs = tf.reshape(tf.constant(record["inputs"], dtype), [3, 2, input_rows, input_size])
    memory = core.initial_state(2)
    np.testing.assert_array_equal(memory, record["memory"][0])
    with tf.GradientTape() as tape:
        loss = 0.0
        for t in range(3):
            output, memory = core(inputs[t], memory)
            assert_close(output, record["output"][t], f"output {t}")
            assert_close(memory, record["memory"][t + 1], f"memory {t}")
            loss += tf.reduce_sum(tf.sin(output))
    assert_close(loss, record["loss"], "loss")
    for name, gradient in tape.gradient(loss, variables).items():
        assert_close(gradient, record[f"grad_{name}"], name)


def test_parameter_counts_from_construction():
    assert n_parameters(RelationalMemory(44)) == 16_960  # the paper's, inside its 98,880
    assert n_parameters(make_relation("rmc", n_slots=4)) == 16_960
    assert n_parameters(make_relation("rmc_slots", n_slots=4)) == n_parameters(SlotRelationalMemory(11)) == 15_640


def test_one_input_row_may_come_flat():
    core = RelationalMemory(44)
    inputs, memory = draw(2, 44), core.initial_state(2)
    np.testing.assert_array_equal(core(inputs, memory)[0], core(inputs[:, np.newaxis], memory)[0])


@pytest.mark.parametrize("mem_slots, kept", [(3, 3), (8, 6)])
def test_initial_memory_is_an_identity_padded_or_cut(mem_slots, kept):
    memory = RelationalMemory(5, mem_slots=mem_slots, head_size=3, num_heads=2).initial_state(2).numpy()
    expected = np.zeros([2, mem_slots, 6])
    expected[:, range(kept), range(kept)] = 1
    np.testing.assert_array_equal(memory, expected)


@pytest.mark.parametrize("gate_style, gates", [("unit", 12), ("memory", 2), (None, 0)])
def test_gate_styles(gate_style, gates):
    """The gate parameters, and the gates' limits: a large forget bias keeps the memory, no gates replace it."""

    def make(**options):
        return RelationalMemory(5, mem_slots=3, head_size=3, num_heads=2, gate_style=gate_style, **options)

    ungated = n_parameters(RelationalMemory(5, mem_slots=3, head_size=3, num_heads=2, gate_style=None))
    assert n_parameters(make()) - ungated == 2 * (6 + 1) * gates
    inputs, memory = draw(2, 5), tf.constant(draw(2, 3, 6, seed=1))
    _, kept = make(forget_bias=100.0, input_bias=-100.0)(inputs, memory)
    if gate_style is None:
        np.testing.assert_allclose(tf.reduce_mean(kept, -1), np.zeros([2, 3]), atol=1e-6)  # layer norm's output
    else:
        np.testing.assert_allclose(kept, memory, atol=1e-6)


def test_memory_gate_is_one_number_a_row():
    core = RelationalMemory(5, mem_slots=3, head_size=3, num_heads=2, gate_style="memory", input_bias=-100.0)
    memory = tf.constant(draw(2, 3, 6, seed=1))
    forget = (core(draw(2, 5), memory)[1] / memory).numpy()  # nothing is written: what is left is the forget gate
    np.testing.assert_allclose(forget, forget[..., :1] * np.ones(6), rtol=1e-5)
    assert np.ptp(forget[..., 0]) > 1e-3


def test_blocks_mlp_layers_and_key_size_add_their_parameters():
    base = n_parameters(RelationalMemory(44))
    block = 40 * 120 + 120 + 2 * 120 + 2 * 2 * 40 + 2 * (40 * 40 + 40)
    assert n_parameters(RelationalMemory(44, num_blocks=2)) == base + block
    assert n_parameters(RelationalMemory(44, attention_mlp_layers=3)) == base + 40 * 40 + 40
    assert n_parameters(RelationalMemory(44, key_size=7)) == base - (40 + 1 + 2) * 4 * 2 * 3
    core = RelationalMemory(44, num_blocks=2, attention_mlp_layers=1, key_size=7)
    step = core.step(draw(2, 44), core.initial_state(2))
    assert step.output.shape == (2, 160) and np.all(np.isfinite(step.output))


def test_attention_rows_sum_to_one():
    core = RelationalMemory(11, input_rows=4)
    attention = core.step(draw(2, 4, 11), core.initial_state(2)).attention
    assert attention.shape == (2, 4, 8, 8)
    np.testing.assert_allclose(tf.reduce_sum(attention, -1), np.ones([2, 4, 8]), rtol=1e-5)


def test_attention_scales_by_the_key_size():
    block = AttentionBlock(num_heads=2, head_size=3, key_size=4, mlp_layers=1)
    rows = tf.constant(draw(2, 5, 6))
    qkv = block._qkv_norm(block._qkv(rows)).numpy().reshape(2, 5, 2, 4 + 4 + 3)
    logits = np.einsum("prhk,pshk->phrs", qkv[..., :4], qkv[..., 4:8]) / np.sqrt(4)
    np.testing.assert_allclose(block(rows)[1], tf.nn.softmax(logits), rtol=1e-5)


@pytest.mark.parametrize("n_objects", [4, 8])
def test_permuting_objects_permutes_slot_memories(n_objects):
    core = make_slot_core()
    states, presence = draw(3, n_objects, 11), np.float32(np.random.RandomState(1).rand(3, n_objects) < 0.7)
    order = np.random.RandomState(2).permutation(n_objects)
    straight = permuted = core.initial_state(3, n_objects)
    for _ in range(2):
        straight = core.step(states, presence, straight).memory
        permuted = core.step(states[:, order], presence[:, order], permuted).memory
    np.testing.assert_allclose(permuted, straight.numpy()[:, order], atol=1e-5)
    assert np.ptp(straight, axis=1).max() > 0.1  # the rows do differ


@pytest.mark.parametrize("junk", [7.0, np.nan])
def test_absent_object_changes_nothing_for_the_other_slots(junk):
    core = make_slot_core()
    states, memory = draw(3, 4, 11), draw(3, 4, 40, seed=1)
    states[:, 2] = junk
    presence, others = tf.constant([[1.0, 1.0, 0.0, 1.0]] * 3), [0, 1, 3]
    expected = core.step(states[:, others], tf.ones([3, 3]), memory[:, others])
    step = core.step(states, presence, memory)
    np.testing.assert_allclose(tf.gather(step.memory, others, axis=1), expected.memory, atol=1e-5)
    np.testing.assert_array_equal(step.memory[:, 2], core.initial_state(3, 4)[:, 2])
    assert np.all(step.attention.numpy()[..., [2, 6]] == 0)


def test_no_object_at_all_is_finite():
    relation = make_relation("rmc_slots", n_slots=4)
    states = tf.constant(draw(3, 4, 11))
    with tf.GradientTape() as tape:
        relations = relation(states, tf.zeros([3, 4]), relation.initial_memory(3, 4))
        loss = tf.reduce_sum(tf.sin(relations.gamma))
    assert np.all(np.isfinite(relations.attention)) and np.isfinite(loss)
    for gradient in tape.gradient(loss, relation.trainable_variables, unconnected_gradients="zero"):
        assert np.all(np.isfinite(gradient))


def test_gradients_reach_every_slot_variable_and_the_states():
    core = make_slot_core()
    states = tf.constant(draw(3, 8, 11))
    with tf.GradientTape() as tape:
        tape.watch(states)
        output, _ = core((states, tf.ones([3, 8])), core.initial_state(3, 8))
        loss = tf.reduce_sum(tf.sin(output))
    for gradient in tape.gradient(loss, [states, *core.trainable_variables]):
        assert np.all(np.isfinite(gradient)) and np.any(gradient)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("kind", ["in", "rmc", "rmc_slots"])
def test_compiled_relation_equals_eager(kind, jit_compile):
    relation = make_relation(kind, n_slots=4)
    states, presence = tf.constant(draw(3, 4, 11)), tf.constant([[1.0, 1.0, 0.0, 1.0]] * 3)
    memory = relation.initial_memory(3, 4)

    def relate_and_differentiate():
        with tf.GradientTape() as tape:
            relations = relation(states, presence, memory)
            loss = tf.reduce_sum(tf.sin(relations.gamma))
        return *relations, *tape.gradient(loss, relation.trainable_variables)

    compiled = tf.function(relate_and_differentiate, jit_compile=jit_compile)
    for ours, expected in zip(compiled(), relate_and_differentiate()):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_relation_rmc_gives_every_object_the_whole_output():
    core = RelationalMemory(44)
    relation = make_relation("rmc", n_slots=4)
    for ours, theirs in zip(relation.trainable_variables, core.trainable_variables):
        ours.assign(theirs)
    states, presence = draw(3, 4, 11), tf.constant([[1.0, 1.0, 0.0, 0.0]] * 3)
    memory = relation.initial_memory(3, 4)
    relations = relation(states, presence, memory)
    states[:, 2:] = 0  # absent objects enter as zeros
    expected = core.step(states.reshape([3, 44]), memory)
    assert relations.gamma.shape == (3, 1, relation.gamma_size) == (3, 1, 160)  # the same for all objects
    np.testing.assert_array_equal(relations.gamma[:, 0], expected.output)
    np.testing.assert_array_equal(relations.memory, expected.memory)
    assert relation.memory_size == 40 and not relation.memory_follows_objects


def test_relation_rmc_slots_takes_any_number_of_slots():
    relation = make_relation("rmc_slots", n_slots=4)
    relations = relation(draw(3, 8, 11), tf.ones([3, 8]), relation.initial_memory(3, 8))
    assert relations.gamma.shape == (3, 8, relation.gamma_size) == (3, 8, 40)
    assert relations.memory.shape == (3, 8, relation.memory_size) == (3, 8, 40)
    np.testing.assert_array_equal(relations.gamma, relations.memory)
    assert relation.memory_follows_objects


@pytest.mark.parametrize(
    "option",
    [
        {"input_size": 0},
        {"mem_slots": 0},
        {"head_size": 0},
        {"num_heads": 0},
        {"num_blocks": 0},
        {"attention_mlp_layers": 0},
        {"key_size": 0},
        {"input_rows": 0},
        {"gate_style": "row"},
    ],
)
def test_bad_options_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        RelationalMemory(**{"input_size": 44, **option})


def test_bad_shapes_are_refused():
    core, slots, rmc = RelationalMemory(44), SlotRelationalMemory(11), make_relation("rmc", n_slots=4)
    with pytest.raises(ValueError, match="inputs"):
        core(tf.zeros([2, 43]), core.initial_state(2))
    with pytest.raises(ValueError, match="memory"):
        core(tf.zeros([2, 44]), tf.zeros([2, 5, 40]))
    with pytest.raises(ValueError, match="memory"):
        slots.step(tf.zeros([2, 4, 11]), tf.ones([2, 4]), slots.initial_state(2, 5))
    with pytest.raises(ValueError, match="presence"):
        slots.step(tf.zeros([2, 4, 11]), tf.ones([2, 5]), slots.initial_state(2, 4))
    with pytest.raises(ValueError, match="4 slots"):
        rmc.initial_memory(2, 8)
    with pytest.raises(ValueError, match="states"):
        rmc(tf.zeros([2, 8, 11]), tf.ones([2, 8]), rmc.initial_memory(2, 4))


def test_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="'gru'.*choose from in, rmc, rmc_slots"):
        make_relation("gru", n_slots=4)


@pytest.mark.parametrize("kind", RELATIONS)
def test_a_relation_is_what_it_says(kind):
    """Rows of attention, whether they attend to themselves, gamma's rows, and the number of slots."""
    relation, said = make_relation(kind, n_slots=3), RELATIONS[kind]
    relations = relation(draw(2, 3, 11), tf.ones([2, 3]), relation.initial_memory(2, 3))
    attention = relations.attention.numpy()
    assert attention.shape[2:] == (len(said.attention_rows(3)),) * 2
    assert bool(np.diagonal(attention, axis1=2, axis2=3).any()) == said.attends_to_itself
    assert relations.gamma.shape == (2, 1 if relation.one_gamma else 3, relation.gamma_size)
    if said.fixed_slots:
        with pytest.raises(ValueError, match="3 slots"):
            relation.initial_memory(2, 5)
    else:
        assert relation(draw(2, 5, 11), tf.ones([2, 5]), relation.initial_memory(2, 5)).gamma.shape[1] == 5


def test_operations_of_more_blocks_keys_and_input_rows_by_hand():
    core = RelationalMemory(
        7,
        mem_slots=3,
        head_size=2,
        num_heads=2,
        num_blocks=2,
        attention_mlp_layers=1,
        key_size=5,
        input_rows=2,
        gate_style="memory",
    )
    block = 5 * (4 * 2 * (5 + 5 + 2) + 4 * 4) + 5 * 5 * 2 * (5 + 2)  # 5 rows of 4; queries, keys, values; products
    assert core.multiply_adds() == 2 * 7 * 4 + 2 * block + 3 * 4 * 2 + 8 * 2
