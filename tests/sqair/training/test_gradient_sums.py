"""Sums of gradients have one order, independent of what is computed beside them."""

import pytest
import tensorflow as tf

from data_gen import pipeline
from sqair.model import SQAIR
from sqair.training import step as training_step
from sqair.training.optimizers import Optimizer
from sqair.training.replicas import compiled
from tests.train_helpers import config, make_data


@pytest.fixture
def sums_as_written():
    """TensorFlow does not rewrite sums, as in training."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True, **before})


def test_a_sum_does_not_depend_on_what_else_its_terms_are_needed_for(sums_as_written):
    def total(needed):
        def function(*xs):
            doubled = [x + x for x in xs]
            return tf.add_n(doubled), doubled[:needed]

        return function

    terms = [tf.fill([5], x) for x in (2.0**23, 0.5, 0.5)]  # 2^24 + 1 + 1, whose order matters in float32
    plain = [float(tf.function(total(needed))(*terms)[0][0]) for needed in (0, 2)]
    assert plain == [2.0**24, 2.0**24 + 2], "TensorFlow does not choose the first term any more"
    assert [float(compiled(total(needed))(*terms)[0][0]) for needed in (0, 1, 2, 3)] == [2.0**24] * 4


@pytest.mark.parametrize(
    "relation", ["none", pytest.param("in", marks=pytest.mark.slow), pytest.param("rmc", marks=pytest.mark.slow)]
)
def test_every_sum_of_a_training_step_begins_with_a_term_of_its_own(relation, tmp_path_factory):
    settings = config(make_data(tmp_path_factory), dict(n_steps_per_image=3, relation=relation))
    model = SQAIR(settings.model)
    step = training_step.compile_train_step(model, Optimizer("rmsprop", model.trainable_variables), settings.train)
    batch = next(iter(pipeline.batches(settings.train.train_data, "training", 8, 3, crop=20)))
    traced = step.get_concrete_function(*batch, tf.constant(0, tf.int64), tf.constant(1e-3)).graph.as_graph_def()
    sums = 0
    for nodes, results in [(traced.node, [])] + [(f.node_def, f.ret.values()) for f in traced.library.function]:
        by_name = {node.name: node for node in nodes}
        used = [name.lstrip("^").split(":")[0] for node in nodes for name in node.input]
        used += [name.split(":")[0] for name in results]
        for node in nodes:
            if node.op == "AddN" and node.attr["N"].i > 2:
                first = by_name[node.input[0].split(":")[0]]
                assert first.op == "AddV2" and used.count(first.name) == 1, node
                sums += 1
    assert sums > 20
