"""The benchmark's formula against the graph that it describes, and its table. Nothing is timed here."""

import contextlib
import functools
import json

import attrs
import numpy as np
import pytest
import tensorflow as tf

from data_gen import bouncing_balls
from eval import benchmark
from sqair.config import ModelConfig
from sqair.model import SQAIR
from tests.data_helpers import run_here
from tests.eval_helpers import save_run
from tests.model_helpers import eagerly
from tests.train_helpers import error_line, make_data


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


@pytest.mark.parametrize(
    "masked, relation",
    [
        (True, "none"),
        (False, "none"),
        pytest.param(True, "in", marks=pytest.mark.slow),
        pytest.param(True, "rmc", marks=pytest.mark.slow),
        (True, "rmc_slots"),
    ],
)
def test_the_formula_counts_the_graph(masked, relation):
    config = ModelConfig(
        n_units=2,
        n_what=6,
        n_steps_per_image=2,
        k_particles=3,
        glimpse_size=8,
        image_shape=(20, 20),
        masked_glimpse=masked,
        mean_image=False,
        relation=relation,
    )
    model = SQAIR(config, all_slots=True)

    def likelihood(obs):
        return model(obs, model.draw_noise([0, 0], 2, 4)).log_weights

    function = tf.function(likelihood, autograph=False).get_concrete_function(tf.TensorSpec([2, 4, 20, 20]))
    graphs = {name: f.graph for name, f in function.graph._functions.items()}
    counted = matmul_operations(function.graph, graphs)
    assert benchmark.flops(config, 2, 4) == pytest.approx(counted, rel=0.02)  # selection, heads of four


@pytest.mark.slow
@pytest.mark.parametrize("bias", [-30.0, 1.0, 30.0])
def test_the_formula_counts_what_discovery_computes(bias):
    """The rows of products with the discovery RNN's weights while a pass runs: one slot after the first takes one."""
    model = SQAIR(
        ModelConfig(
            n_units=1,
            n_what=2,
            n_steps_per_image=3,
            k_particles=3,
            glimpse_size=4,
            image_shape=(9, 9),
            mean_image=False,
        )
    )
    discover = model.sequence.timestep.discover
    discover.core.steps_predictor.layers[-1].b.assign([bias])
    obs = tf.random.stateless_uniform([3, 4, 9, 9], [0, 0])
    found = benchmark.discoveries(model, [obs])
    rows, recurrent = [], discover.core.rnn.recurrent

    def counting(state):
        rows.append(int(state.shape[0]))
        return recurrent(state)

    discover.core.rnn.recurrent = counting
    with eagerly():
        model(obs, model.draw_noise([0, 0], 3, 4))
    assert sum(rows) == 3 * 12 + 2 * found
    assert {-30.0: found == 12, 1.0: 12 < found < 36, 30.0: found == 36}[bias]
    ours, every = (benchmark.flops(model.config, 3, 4, n) for n in (found, None))
    assert benchmark.flops(model.config, 3, 4, 36) == every and (ours < every) == (found < 36)


def test_the_table_has_a_row_for_each_case():
    row = {"model": "sqair_balls", "length": 3, "mode": "xla", **{key: 0.5 for key in benchmark.COLUMNS}}
    lines = benchmark.table([row, row]).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1


@pytest.fixture
def small_limits(monkeypatch):
    """The limits of machine and pipeline are measured at small size; cases run in separate processes."""
    monkeypatch.setattr(benchmark, "machine_gflops", functools.partial(benchmark.machine_gflops, 256))
    monkeypatch.setattr(benchmark, "pipeline_rate", functools.partial(benchmark.pipeline_rate, n_batches=3))
    balls = bouncing_balls.PRESETS["balls4mass64"]
    monkeypatch.setitem(bouncing_balls.PRESETS, "balls4mass64", attrs.evolve(balls, n_frames=3))


@pytest.mark.slow
def test_the_command_times_cases_in_turns_and_writes_them_down(small_limits, tmp_path):
    small = (
        "--lengths",
        1,
        "--modes",
        "graph",
        "--batch_size",
        2,
        "--k_particles",
        2,
        "--n_steps_per_image",
        1,
        "--repeats",
        8,
    )
    done = run_here("eval.benchmark", "--models", "sqair_balls", "rsqair_in", *small, "--json", tmp_path / "b.json")
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads((tmp_path / "b.json").read_text())
    assert [case["model"] for case in written["cases"]] == ["sqair_balls", "rsqair_in"]
    for case in written["cases"]:
        assert all(np.isfinite(case[key]) for key in benchmark.COLUMNS) and case["train_s"] > 0
    assert written["cases"][0]["bound"] != written["cases"][1]["bound"]
    assert written["versions"]["tensorflow"] and written["pipeline_batches_per_s"]["1"] > 0
    assert "| rsqair_in | 1 | graph |" in done.stdout and "1 frames" in done.stdout


@pytest.mark.slow
def test_a_trained_model_is_timed_on_real_frames_in_turns_with_all_slots(small_limits, tmp_path, tmp_path_factory):
    run = save_run(tmp_path / "tiny")
    data = make_data(tmp_path_factory)
    small = ("--lengths", 2, "--modes", "graph", "--batch_size", 2, "--repeats", 8, "--json", tmp_path / "b.json")
    done = run_here("eval.benchmark", "--run", run, "--data", data, "--all_slots", *small)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, every = json.loads((tmp_path / "b.json").read_text())["cases"]
    assert (ours["model"], ours["all_slots"], every["all_slots"]) == ("tiny", False, True)
    assert ours["bound"] == pytest.approx(every["bound"], rel=1e-5) and ours["train_gflop"] < every["train_gflop"]
    assert "| tiny, all slots | 2 | graph |" in done.stdout
    assert "--run" in error_line(run_here("eval.benchmark", "--data", data))


def test_a_turn_is_compared_with_the_limit_just_before_it(monkeypatch):
    """On a machine that is half as fast in every other turn, the share of its limit is the same in all turns."""
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


@pytest.mark.slow
def test_a_case_that_fails_is_named():
    with pytest.raises(benchmark.UserError, match="no_such_model, length 1, graph failed: error: --models no_such"):
        benchmark.time_cases([(benchmark.Arguments(), "no_such_model", 1, "graph")])
