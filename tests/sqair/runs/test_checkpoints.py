"""Run folders as others read them: ours, the original's and safetensors; what training takes from them."""

import csv
import json
import os
import shutil
import stat
import struct

import numpy as np
import pytest
import safetensors.numpy

from data_gen import moving_mnist
from data_gen.errors import UserError
from sqair import export
from sqair.config import load_flags, to_flags
from sqair.runs import loading, original
from sqair.training.optimizers import Optimizer
from tests.data_helpers import run_command, run_here
from tests.run_helpers import assert_same, command, draw, make_run, make_state, values_of


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with relations; its first checkpoint is its best."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    make_run(folder, steps=(20, 100), relation="in")
    return folder


@pytest.fixture(scope="module")
def shared(run_folder, tmp_path_factory):
    """The run's best checkpoint as a safetensors folder."""
    folder = tmp_path_factory.mktemp("shared") / "model"
    export.save_safetensors(loading.load_run(run_folder), folder)
    return folder


@pytest.mark.slow
def test_best_newest_and_iterations_of_our_run(run_folder):
    steps = {which: loading.load_run(run_folder, which).step for which in ("best", "newest", "20", "100")}
    assert steps == {"best": 20, "newest": 100, "20": 20, "100": 100}
    assert loading.load_run(run_folder / "checkpoints" / "step-100").step == 100
    with pytest.raises(UserError, match="no checkpoint 7; choose best, newest, or one of the iterations 100, 20"):
        loading.load_run(run_folder, "7")


@pytest.mark.slow
def test_every_checkpoint_of_an_original_run(tmp_path):
    states = {step: make_state(step=step, seed=step) for step in (10, 9, 100)}
    for step, state in states.items():
        values = original.original_values(state.model, state.optimizer, step)
        original.write_original(str(tmp_path / f"model.ckpt-{step}"), values)
    # As the released run's flags.json has them: whole numbers as fractions, and flags of another version.
    flags = {
        "n_units": 1.0,
        "n_what": 3.0,
        "glimpse_size": 4.0,
        "n_steps_per_image": 2.0,
        "k_particles": 2.0,
        "scale_prior": -2.0,
        "constant_prop_prior": 0.0,
        "data_config": "configs/seq_mnist_data.py",
    }
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    assert list(original.original_checkpoints(str(tmp_path))) == [9, 10, 100]
    for which, step in (("best", 100), ("newest", 100), ("9", 9), ("10", 10)):
        loaded = loading.load_run(tmp_path, which)
        assert loaded.step == step and loaded.config.model.image_shape == (10, 12)
        assert_same(values_of(loaded.model), values_of(states[step].model))


def test_slots_come_along_for_what_both_models_have(run_folder):
    source = loading.load_run(run_folder, "newest")
    state = make_state(seed=1, n_steps_per_image=3, relation="rmc")  # other counts of objects, another relation
    optimizer = Optimizer("rmsprop", state.model.trainable_variables)
    line = loading.fill_slots(optimizer, source)
    theirs = {v.name: (v.shape, i) for i, v in enumerate(source.model.trainable_variables)}
    saved = loading.load_optimizer(source)
    filled = 0
    for i, variable in enumerate(state.model.trainable_variables):
        shape, j = theirs.get(variable.name, (None, None))
        for slot, start in (("rms", 1.0), ("momentum", 0.0)):
            value = optimizer.slots[slot][i].numpy()
            np.testing.assert_array_equal(value, saved.slots[slot][j] if shape == variable.shape else start)
        filled += shape == variable.shape
    n = len(state.model.trainable_variables)
    assert 0 < filled < n
    assert line == f"optimiser slots (rmsprop: rms, momentum) of {filled} variables filled, {n - filled} start anew"
    assert int(optimizer.updates) == 100


def test_slots_of_another_kind_of_optimiser_stay(run_folder, shared):
    optimizer = Optimizer("momentum", make_state().model.trainable_variables)
    draw(optimizer.slots["momentum"], 3)
    before = [v.numpy() for v in optimizer.slots["momentum"]]
    for folder, line in ((run_folder, "the run's was rmsprop, this one is momentum"), (shared, "has no slots of it")):
        assert line in loading.fill_slots(optimizer, loading.load_run(folder))
    assert_same(dict(enumerate(before)), dict(enumerate(v.numpy() for v in optimizer.slots["momentum"])))


def test_safetensors_give_back_the_run(run_folder, tmp_path, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "safetensors", run_folder, tmp_path / "model")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "card.json",
        "config.json",
        "model.safetensors",
    ]
    expected = loading.load_run(run_folder)
    for path in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        loaded = loading.load_run(path)
        flags = to_flags(expected.config) | {"train_data": "balls4mass64.h5"}
        assert loaded.step == 20 and to_flags(loaded.config) == flags
        assert_same(values_of(loaded.model), values_of(expected.model))
    names = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    assert {f"{name}:0" for name in names} == set(values_of(expected.model))
    assert "R-SQAIR (IN)" in (tmp_path / "model" / "README.md").read_text()
    assert load_flags(tmp_path / "model" / "config.json")[1] == []
    code, _, err = command(monkeypatch, capsys, "safetensors", run_folder, tmp_path / "model")
    assert code == 1 and "--overwrite" in err
    with pytest.raises(UserError, match="no checkpoint of iteration 100; it holds that of 20"):
        loading.load_run(tmp_path / "model", "100")


def test_a_shared_model_is_for_others(tmp_path, monkeypatch, capsys):
    """Readable according to the umask, without the maker's folders, and with all steps of its weights."""
    make_run(tmp_path / "secret" / "run_7", steps=(20,), train={"train_data": str(tmp_path / "secret" / "balls.h5")})
    for name, content in (
        ("started_from", {"first_step": 0, "earlier_steps": 400}),
        ("versions", {"train_data_fingerprint": "abc123"}),
    ):
        (tmp_path / "secret" / "run_7" / f"{name}.json").write_text(json.dumps(content))
    for mask in (0o022, 0o027, 0o002):
        old = os.umask(mask)
        try:
            code, _, err = command(
                monkeypatch, capsys, "safetensors", tmp_path / "secret" / "run_7", tmp_path / "out", "--overwrite"
            )
        finally:
            os.umask(old)
        assert code == 0, err
        for path in (tmp_path / "out").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path
            assert b"secret" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "after 420 training steps, 400 of them in the runs",
        "run `run_7`, checkpoint `step-20`",
        "trained on `balls.h5`, SHA-256 abc123",
    ):
        assert said in card
    assert loading.load_run(tmp_path / "out").all_steps == 420


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"earlier_steps": "4"}', '{"earlier_steps": true}', '{"earlier_steps": -4}']
)
def test_a_damaged_start_is_one_line(run_folder, tmp_path, content):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "started_from.json").write_text(content)
    with pytest.raises(UserError, match="started_from.json: "):
        loading.load_run(tmp_path / "run")


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = dict(safetensors.numpy.load_file(path))
    change(tensors)
    safetensors.numpy.save_file(tensors, path, {"step": "1"})


def rewrite(folder, change):
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


SCALE = "sqair/decoder/output_scale"
SPOILT = {
    "empty": (lambda f: rewrite(f, lambda b: b""), "not a safetensors file"),
    "foreign": (lambda f: rewrite(f, lambda b: b"PK\x03\x04" * 300), "not a safetensors file"),
    "cut": (lambda f: rewrite(f, lambda b: b[:-100]), "not a safetensors file"),
    "header cut": (lambda f: rewrite(f, lambda b: b[:200]), "not a safetensors file"),
    "huge header": (lambda f: rewrite(f, lambda b: struct.pack("<Q", 2**40) + b[8:]), "not a safetensors file"),
    "header not JSON": (lambda f: rewrite(f, lambda b: b[:8] + b"x" + b[9:]), "not a safetensors file"),
    "missing": (lambda f: change_tensors(f, lambda t: t.pop(SCALE)), f"{SCALE} is missing"),
    "extra": (lambda f: change_tensors(f, lambda t: t.update(other=t[SCALE])), "other has no place"),
    "wrong shape": (
        lambda f: change_tensors(f, lambda t: t.update({SCALE: np.ones([2], np.float32)})),
        f"{SCALE} is F32 [2], expected F32 []",
    ),
    "wrong type": (
        lambda f: change_tensors(f, lambda t: t.update({SCALE: np.array(1.0)})),
        f"{SCALE} is F64 [], expected F32 []",
    ),
    "other flags": (lambda f: change_config(f, n_what=4), "does not fit"),
    "bad flag": (lambda f: change_config(f, n_what="many"), "flag n_what must be of type int"),
    "no flags": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_bad_safetensors_are_one_line(kind, shared, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shared, folder)
    spoil, line = SPOILT[kind]
    spoil(folder)
    with pytest.raises(UserError) as caught:
        loading.load_run(folder)
    assert line in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_training_on_moving_mnist_goes_on_with_an_original_run(tmp_path):
    data = tmp_path / "mnist.h5"
    moving_mnist.write(
        moving_mnist.MovingMNIST(n_frames=1, training=8, validation=4, test=0), data, moving_mnist.packaged_digits()
    )
    sizes = {"n_units": 1, "n_what": 3, "glimpse_size": 6, "k_particles": 2}
    state = make_run(tmp_path / "run", image_shape=(50, 50), n_steps_per_image=3, **sizes)
    export.export(loading.load_run(tmp_path / "run"), tmp_path / "original")
    go_on = (
        "sqair.train",
        "--run_dir",
        tmp_path / "next",
        "--continue_from",
        tmp_path / "original",
        "--max_seq_len",
        1,
        "--batch_size",
        4,
        "--train_itr",
        6,
        "--no_eval_on_train",
    )
    result = run_here(*go_on)
    assert result.returncode == 1 and "add --train_data FILE" in result.stderr and not (tmp_path / "next").exists()
    result = run_command(*go_on, "--train_data", data)
    assert result.returncode == 0, result.stderr[-2000:]
    n = len(state.model.trainable_variables)
    # 4 + 6 + 10 parts of 6 steps: step 5 comes after both boundaries, 1 and 3.
    assert "at step 5 of 6, length 1, learning rate 1.11e-06" in result.stdout
    assert f"optimiser slots (rmsprop: rms, momentum) of {n} variables filled, 0 start anew" in result.stdout
    flags = json.loads((tmp_path / "next" / "flags.json").read_text())
    assert {name: flags[name] for name in sizes} == sizes
    assert (flags["crop"], flags["patience"], flags["save_itr"]) == (0, 0, 1000)

    start = loading.load_run(tmp_path / "next", "5")
    assert_same(values_of(start.model), values_of(state.model))
    optimizer = loading.load_optimizer(start)
    for slot, variables in state.optimizer.slots.items():
        assert_same(
            dict(enumerate(v.numpy() for v in variables)), dict(enumerate(v.numpy() for v in optimizer.slots[slot]))
        )
    with open(tmp_path / "next" / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["data"]) for row in rows] == [("6", "batch"), ("6", "validation")]
    assert all(0.0 <= float(row["num_step_accuracy"]) <= 1.0 for row in rows)
