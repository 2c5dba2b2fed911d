"""Exports to the original's checkpoints: what TensorFlow 1's saver and optimisers do with them, and reading them."""

import json
import shutil

import attrs
import numpy as np
import pytest
import tensorflow as tf

from sqair.config import PRESETS, Config, TrainConfig, load_flags
from sqair.model import SQAIR
from sqair.runs import loading, original
from sqair.runs.values import read_values
from sqair.training.optimizers import Optimizer
from tests.data_helpers import run_here
from tests.reference.redraw import RECORDED, variable_shapes
from tests.run_helpers import assert_same, command, make_run, make_state, values_of

CONSTANTS = set(original.original_constants(SQAIR(attrs.evolve(Config().model, n_units=1))))


def recorded_layout():
    """Name -> (shape, type) of the recorded checkpoint mnist_default: every trainable variable has two slots."""
    layout = {"global_step": ([], np.dtype(np.int64))}
    for name, shape in variable_shapes("mnist_default").items():
        for suffix in ("",) if name in CONSTANTS else ("", "/RMSProp", "/RMSProp_1"):
            layout[name + suffix] = (shape, np.dtype(np.float32))
    return layout


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of two checkpoints, of which the first is the best."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    make_run(folder, steps=(20, 100), train={"learning_rate": 3e-4, "seq_len": 3, "stage_itr": 100})
    return folder


def layout_of(prefix):
    return {name: (list(value.shape), value.dtype) for name, value in read_values(str(prefix)).items()}


@pytest.mark.skipif(not RECORDED.exists(), reason="the whole recordings are not here")
def test_recorded_layout_is_that_of_the_recorded_checkpoint():
    assert recorded_layout() == layout_of(RECORDED / "mnist_default" / "model.ckpt-0")


def test_export_of_a_default_model_has_the_originals_names_shapes_and_types(tmp_path):
    config = PRESETS["sqair_mnist"]
    model = SQAIR(config.model)
    values = original.original_values(model, Optimizer("rmsprop", model.trainable_variables), 0)
    original.write_original(str(tmp_path / "model.ckpt-0"), values)
    assert layout_of(tmp_path / "model.ckpt-0") == recorded_layout()


class TensorFlow1:
    """The graph that the original would make of a checkpoint's trainable variables, with TensorFlow 1's optimiser."""

    OPTIMIZERS = {
        "rmsprop": lambda rate: tf.compat.v1.train.RMSPropOptimizer(rate, momentum=0.9),
        "adam": tf.compat.v1.train.AdamOptimizer,
        "momentum": lambda rate: tf.compat.v1.train.MomentumOptimizer(rate, momentum=0.9),
    }

    def update(self, opt, prefix, gradients, rate):
        """Restores everything there is and makes one update: name -> value of everything."""
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            variables = {
                name: tf.compat.v1.get_variable(name, gradient.shape, use_resource=False)
                for name, gradient in gradients.items()
            }
            for name in CONSTANTS:
                tf.compat.v1.get_variable(name, [], trainable=False, use_resource=False)
            step = tf.compat.v1.train.get_or_create_global_step()
            train = self.OPTIMIZERS[opt](rate).apply_gradients(
                [(tf.constant(gradients[name]), v) for name, v in variables.items()], global_step=step
            )
            saver = tf.compat.v1.train.Saver()
            saver.restore(session, prefix)
            session.run(train)
            everything = tf.compat.v1.global_variables()
            return dict(zip((v.op.name for v in everything), session.run(everything)))


@pytest.mark.parametrize(
    "opt", ["rmsprop", pytest.param("adam", marks=pytest.mark.slow), pytest.param("momentum", marks=pytest.mark.slow)]
)
def test_tensorflow_1_restores_and_goes_on_as_we_do(opt, tmp_path):
    state = make_state(opt, step=7)
    model, optimizer = state.model, state.optimizer
    prefix = str(tmp_path / "model.ckpt-7")
    original.write_original(prefix, original.original_values(model, optimizer, 7))

    rng = np.random.default_rng(1)
    ours = {id(v): rng.normal(size=v.shape).astype(np.float32) for v in model.trainable_variables}
    theirs = {
        name: original.gather_original(columns, [ours[id(c.variable)] for c in columns])
        for name, columns in original.original_names(model).items()
    }
    expected = TensorFlow1().update(opt, prefix, theirs, 0.01)

    optimizer.apply([ours[id(v)] for v in optimizer.variables_to_train], tf.constant(0.01))
    found = original.original_values(model, optimizer, 8)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("opt", ["rmsprop", "adam", "momentum"])
def test_import_of_an_export_is_identical(opt, tmp_path, monkeypatch, capsys):
    state = make_run(tmp_path / "run", opt, steps=(70_000,))
    code, out, err = command(monkeypatch, capsys, "original", tmp_path / "run", tmp_path / "out")
    assert code == 0, err
    assert "model.ckpt-70000" in out
    back = loading.load_run(tmp_path / "out")
    assert back.step == 70_000
    assert_same(values_of(back.model), values_of(state.model))
    optimizer = loading.load_optimizer(back)
    assert list(optimizer.slots) == list(state.optimizer.slots)
    for slot, variables in state.optimizer.slots.items():
        assert_same(
            dict(enumerate(v.numpy() for v in variables)), dict(enumerate(v.numpy() for v in optimizer.slots[slot]))
        )
    assert int(optimizer.updates) == 70_000


def test_flags_are_the_originals_and_of_its_types(run_folder, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, capsys, "original", run_folder, tmp_path / "out")[0] == 0
    flags = json.loads((tmp_path / "out" / "flags.json").read_text())
    types = {
        "n_units": int,
        "scale_prior": str,
        "masked_glimpse": bool,
        "output_std": float,
        "schedule": str,
        "batch_size": int,
        "learning_rate": float,
        "debug": bool,
        "stage_itr": int,
    }
    assert {name: type(flags[name]) for name in types} == types
    assert (flags["n_units"], flags["learning_rate"], flags["seq_len"]) == (1, 3e-4, 3)
    # All flags of the original except paths, names, devices and how often it saves; none of ours.
    assert set(flags) == set(original.ORIGINAL_FLAGS) | {"debug"}
    assert not {"relation", "crop", "seed", "mean_image", "patience", "save_itr"} & set(flags)
    assert load_flags(tmp_path / "out" / "flags.json")[0].train == TrainConfig(
        learning_rate=3e-4, seq_len=3, stage_itr=100
    )


def test_several_iterations_share_a_folder_and_its_state_file(run_folder, tmp_path, monkeypatch, capsys):
    for which in ("newest", "best"):
        assert command(monkeypatch, capsys, "original", run_folder, tmp_path / "out", "--which", which)[0] == 0
    assert list(original.original_checkpoints(str(tmp_path / "out"))) == [20, 100]
    assert loading.load_run(tmp_path / "out", "20").step == 20
    assert loading.load_run(tmp_path / "out").step == 100
    state = tf.train.get_checkpoint_state(str(tmp_path / "out"))
    assert [p.rsplit("-")[-1] for p in state.all_model_checkpoint_paths] == ["20", "100"]
    assert state.model_checkpoint_path == str(tmp_path / "out" / "model.ckpt-100")


def test_a_checkpoint_that_is_there_is_replaced_only_on_request(run_folder, tmp_path, monkeypatch, capsys):
    export, index = ("original", run_folder, tmp_path / "out"), tmp_path / "out" / "model.ckpt-100.index"
    assert command(monkeypatch, capsys, *export)[0] == 0
    before = index.stat().st_mtime_ns
    code, _, err = command(monkeypatch, capsys, *export)
    assert code == 1 and "model.ckpt-100 exists already; --overwrite" in err and err.count("\n") == 1
    assert index.stat().st_mtime_ns == before
    assert command(monkeypatch, capsys, *export, "--overwrite")[0] == 0
    assert index.stat().st_mtime_ns > before


def test_folders_of_other_runs_are_left_alone(run_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "flags.json").write_text(json.dumps({"n_what": 4, "n_units": 1}))
    for folder, line in ((tmp_path, "belongs to another run"), (run_folder, "is a run folder of sqair.train")):
        before = sorted(folder.iterdir())
        code, _, err = command(monkeypatch, capsys, "original", run_folder, folder, "--overwrite")
        assert code == 1 and line in err and err.count("\n") == 1
        assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("relation", ["in", "rmc"])
def test_relational_variables_are_left_out_only_on_request(relation, tmp_path, monkeypatch, capsys):
    state = make_run(tmp_path / "run", relation=relation)
    export = ("original", tmp_path / "run", tmp_path / "out")
    code, _, err = command(monkeypatch, capsys, *export)
    assert code == 1 and f"relation {relation}" in err and "--without_relation" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    code, out, _ = command(monkeypatch, capsys, *export, "--without_relation")
    assert code == 0 and f"variables of relation {relation}" in out
    back = loading.load_run(tmp_path / "out")
    assert back.config.model.relation == "none"
    shared, kept = values_of(state.model), values_of(back.model)
    # A layer of several inputs keeps its name; only what the relation added is gone.
    assert_same({name: shared[name] for name in kept}, kept)
    related = {v.name for v in state.model.sequence.timestep.relation.trainable_variables}
    gone = set(shared) - set(kept)
    assert related and gone - related and all(name.endswith("w_gamma:0") for name in gone - related), gone


def test_a_run_without_mean_image_gets_a_zero_one(tmp_path, monkeypatch, capsys):
    state = make_run(tmp_path / "run", mean_image=False)
    code, out, _ = command(monkeypatch, capsys, "original", tmp_path / "run", tmp_path / "out")
    assert code == 0 and "mean image" in out
    back = loading.load_run(tmp_path / "out").model
    assert not back.decoder.mean_image.numpy().any()
    obs = tf.random.stateless_uniform([1, 1, 10, 12], [1, 2])
    noise = state.model.draw_noise([3, 4], 1, 1)
    np.testing.assert_array_equal(back(obs, noise).log_weights, state.model(obs, noise).log_weights)


def test_settings_the_original_lacks_are_named(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run", train={"target": "iwae", "clip_norm": 5.0})
    _, out, _ = command(monkeypatch, capsys, "original", tmp_path / "run", tmp_path / "out")
    assert "target iwae is unknown to the original" in out and "clip_norm 5 is unknown" in out


def test_the_export_of_a_finished_run_says_so_and_lets_the_original_go_on(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run", steps=(20,), train={"train_itr": 20})
    export = ("original", tmp_path / "run", tmp_path / "out")
    code, out, _ = command(monkeypatch, capsys, *export)
    assert code == 0 and "the original stops at once" in out and "--train_itr N" in out
    shutil.rmtree(tmp_path / "out")
    code, out, _ = command(monkeypatch, capsys, *export, "--train_itr", 50)
    assert code == 0 and "stops at once" not in out
    assert json.loads((tmp_path / "out" / "flags.json").read_text())["train_itr"] == 50
    assert loading.load_run(tmp_path / "out").step == 20


@pytest.mark.parametrize(
    "flags, name",
    [
        (dict(n_what=1), "n_what 1"),
        (dict(n_steps_per_image=1), "n_steps_per_image 1"),
        (dict(image_shape=(10, 12, 3)), "image_shape 10 x 12 x 3"),
    ],
)
def test_models_that_the_original_cannot_build_are_refused_by_flag(flags, name, tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run", **flags)
    code, _, err = command(monkeypatch, capsys, "original", tmp_path / "run", tmp_path / "out")
    assert code == 1 and f"{name}: the original program cannot build" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_particle_is_warned_of(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run", k_particles=1)
    code, out, _ = command(monkeypatch, capsys, "original", tmp_path / "run", tmp_path / "out")
    assert code == 0 and "warning: with k_particles 1" in out


def test_nothing_half_written_is_left_when_the_disc_is_full(run_folder, tmp_path):
    result = run_here("sqair.export", "original", run_folder, tmp_path / "out", file_limit=10_000)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 1 and len(lines) == 1 and "cannot be written" in lines[0]
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()


def test_a_failure_between_the_files_leaves_what_was_there(run_folder, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, capsys, "original", run_folder, tmp_path / "out", "--which", "20")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write = original.write_original

    def fail(prefix, values):
        write(prefix, values)
        raise KeyboardInterrupt

    monkeypatch.setattr(original, "write_original", fail)
    assert command(monkeypatch, capsys, "original", run_folder, tmp_path / "out")[0] == 130
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_damaged_runs_are_one_line(run_folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(run_folder, tmp_path / "run")
    data = next((tmp_path / "run" / "checkpoints").glob("step-100.data*"))
    data.write_bytes(data.read_bytes()[:1000])
    for source, name in (("run", "step-100"), ("nowhere", "no such run folder")):
        code, _, err = command(monkeypatch, capsys, "original", tmp_path / source, tmp_path / "out")
        assert code == 1 and name in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
