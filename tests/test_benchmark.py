"""The benchmark's formula against the graph it speaks of, and its table. Nothing is timed here."""

import contextlib
import json

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import run_command

from eval import benchmark
from sqair.config import ModelConfig
from sqair.model import SQAIR


def matmul_operations(graph, definitions):
    """2 m k n over the matrix products of a graph and the functions it calls."""
    total = 0
    for operation in graph.get_operations():
        if operation.type in ("MatMul", "BatchMatMulV2"):
            a, out = operation.inputs[0].shape, operation.outputs[0].shape
            transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
            total += 2 * np.prod(out) * (a[-2] if transposed else a[-1])
        elif operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
            total += matmul_operations(definitions[operation.get_attr("f").name], definitions)
    return total


@pytest.mark.parametrize("masked, relation", [(True, "none"), (False, "none"), (True, "in"), (True, "rmc"),
                                              (True, "rmc_slots")])
def test_the_formula_counts_the_graph(masked, relation):
    config = ModelConfig(n_units=2, n_what=6, n_steps_per_image=2, k_particles=3, glimpse_size=8, image_shape=(20, 20),
                         masked_glimpse=masked, mean_image=False, relation=relation)
    model = SQAIR(config)

    def likelihood(obs):
        return model(obs, model.draw_noise([0, 0], 2, 4)).log_weights

    function = tf.function(likelihood, autograph=False).get_concrete_function(tf.TensorSpec([2, 4, 20, 20]))
    graphs = {name: f.graph for name, f in function.graph._functions.items()}
    counted = matmul_operations(function.graph, graphs)
    assert benchmark.flops(config, 2, 4) == pytest.approx(counted, rel=0.02)      # selection, heads of four


def test_the_table_has_a_row_for_each_case():
    row = {"model": "sqair_balls", "length": 3, "mode": "xla", **{key: 0.5 for key in benchmark.COLUMNS}}
    lines = benchmark.table([row, row]).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1


def test_the_command_times_cases_in_turns_and_writes_them_down(tmp_path):
    small = ("--lengths", 1, "--modes", "graph", "--batch_size", 2, "--k_particles", 2, "--n_steps_per_image", 1,
             "--repeats", 8)
    done = run_command("eval.benchmark", "--models", "sqair_balls", "rsqair_in", *small, "--json", tmp_path / "b.json")
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads((tmp_path / "b.json").read_text())
    assert [case["model"] for case in written["cases"]] == ["sqair_balls", "rsqair_in"]
    for case in written["cases"]:
        assert all(np.isfinite(case[key]) for key in benchmark.COLUMNS) and case["train_s"] > 0
    assert written["cases"][0]["bound"] != written["cases"][1]["bound"]
    assert written["versions"]["tensorflow"] and written["pipeline_batches_per_s"]["1"] > 0
    assert "| rsqair_in | 1 | graph |" in done.stdout and "1 frames" in done.stdout


def test_a_turn_is_compared_with_the_limit_just_before_it(monkeypatch):
    """On a machine that is half as fast in every other turn, the share of its limit is the same in all of them."""
    slowness = [1 + turn % 2 for turn in range(benchmark.TURNS)]

    @contextlib.contextmanager
    def worker(_, model, *__):
        times = [{"train": [0.5 * slow * model] * 3, "eval": [0.2 * slow] * 3} for slow in slowness]
        yield iter([{"train_gflop": 60.0}, *times])

    limits = iter([200.0 / slow for slow in slowness for _ in range(2)])
    monkeypatch.setattr(benchmark, "_worker", worker)
    monkeypatch.setattr(benchmark, "machine_gflops", lambda: next(limits))
    rows = benchmark.time_cases([(benchmark.Arguments(), model, 3, "graph") for model in (1, 2)])
    assert [row["share_of_limit"] for row in rows] == pytest.approx([0.6, 0.3])
    assert [row["machine_gflops"] for row in rows] == [150.0, 150.0]
    assert [row["train_s"] for row in rows] == pytest.approx([0.75, 1.5])


def test_a_case_that_fails_is_named():
    with pytest.raises(benchmark.UserError, match="no_such_model, length 1, graph failed: error: --models no_such_model"):
        benchmark.time_cases([(benchmark.Arguments(), "no_such_model", 1, "graph")])
