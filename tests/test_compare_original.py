"""Parity with the original program: eval.compare_original on its recorded figures, and on folders that do not fit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from data_gen.command_line import run
from eval import compare_original
from sqair.original import write_original
from tests.reference import redraw

ROOT = Path(__file__).parent.parent
needs_recordings = pytest.mark.skipif(not redraw.RECORDED.exists(), reason="the whole recordings are not here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return redraw.make_balls_folder(tmp_path_factory.mktemp("recorded") / "balls")


@pytest.fixture()
def copy(folder, tmp_path):
    """A folder to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "spoilt"))


def change_flags(folder, **changes):
    path = folder / "flags.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_npz(path, **changes):
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def command(folder, monkeypatch, capsys):
    """Runs the command line in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["compare_original", str(folder)])
    with pytest.raises(SystemExit) as stopped:
        run(compare_original.main)
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


def test_every_recorded_quantity_and_gradient_is_equal(folder):
    recording = compare_original.load_recording(folder)
    rows = compare_original.compare(recording)
    assert [row for row in rows if not row.passed] == []
    assert len(rows) == len(recording.outputs) + len(recording.gradient_norms) == 156
    assert {row.tolerance for row in rows} == {1e-4, 5e-4, 5e-3}


@needs_recordings
def test_whole_gradients_are_equal(folder):
    recording = compare_original.load_recording(folder)
    _, gradients = compare_original.compute(recording.model, recording.obs, recording.noise, recording.counts)
    with np.load(redraw.RECORDED / "balls" / "gradients.npz") as recorded:
        assert {key.replace("|", "/") for key in recorded} == set(gradients)
        for key in recorded:
            name = key.replace("|", "/")
            tolerance = 5e-3 if name == compare_original.SCALE_OFFSET else 2e-3
            assert compare_original.relative_difference(gradients[name], recorded[key]) < tolerance, name


@needs_recordings
@pytest.mark.parametrize("recording", ["balls", "mnist_default"])
def test_redrawn_weights_are_the_recorded_ones(recording):
    folder = redraw.RECORDED / recording
    with np.load(folder / "inputs.npz") as inputs:
        values = redraw.redraw_sqair(recording, json.loads((folder / "flags.json").read_text()), inputs["mean_img"])
    reader = tf.train.load_checkpoint(str(folder / "model.ckpt-0"))
    assert len(values) == 110
    for name, value in values.items():
        np.testing.assert_allclose(value, reader.get_tensor(name), rtol=1e-6, atol=1e-7, err_msg=name)


def test_command_succeeds(folder):
    if redraw.RECORDED.exists():
        folder = redraw.RECORDED / "mnist_default"
    done = subprocess.run([sys.executable, "-m", "eval.compare_original", str(folder)], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 157 and all(" pass " in line for line in lines[:-1])
    assert "156 of 156 quantities equal the original's" in lines[-1]


def test_slightly_wrong_weights_fail(copy, monkeypatch, capsys):
    prefix = copy / "model.ckpt-0"
    reader = tf.train.load_checkpoint(str(prefix))
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    name = "propagation/gru_1/uz"
    values[name] = np.where(np.arange(256) == 7, 1.5 * values[name], values[name])    # one of 256 columns
    write_original(str(prefix), values)
    code, out, err = command(copy, monkeypatch, capsys)
    assert code == 1 and not err
    failed = [line.split()[0] for line in out.splitlines()[:-1] if "FAIL" in line]
    assert "prop_what_prior_log_prob" in failed and "where" not in failed
    assert "FAILED: " in out.splitlines()[-1]


def test_recorded_quantities_we_do_not_know_fail(folder, monkeypatch):
    recording = compare_original.load_recording(folder)
    norms = dict(recording.gradient_norms)
    norms["somewhere/else/w"] = norms.pop("propagation/gru/uz")
    recording = recording._replace(outputs={"novelty": np.ones(3), "target": np.ones([2])}, gradient_norms=norms)
    ours = {"target": np.ones([3])}, {name: np.asarray(norm) for name, (norm, _) in recording.gradient_norms.items()
                                      if name != "somewhere/else/w"} | {"propagation/gru/uz": np.ones(2)}
    monkeypatch.setattr(compare_original, "compute", lambda *_: ours)
    failed = [row.name for row in compare_original.compare(recording) if not row.passed]
    assert failed == ["novelty", "target", "gradient somewhere/else/w", "gradient propagation/gru/uz (not recorded)"]


def test_not_a_number_does_not_pass():
    difference = compare_original.relative_difference([1.0, np.nan], [1.0, 2.0])
    assert not compare_original.Row("x", difference, 1e-4).passed


def remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize("spoil, expected", [
    (lambda f: change_flags(f, n_what=6),
     ["does not fit the flags: decoder/air_decoder/decoder/mlp/linear/w has shape [5, 256]", "ask for [6, 256]"]),
    (lambda f: change_flags(f, n_units=4), ["does not fit the flags", "shape"]),
    (lambda f: change_flags(f, output_std=0.5), ["does not fit the flags", "output_std"]),
    (lambda f: change_flags(f, masked_glimpse=False), ["air_encoder/mlp/linear", "has no place in the model"]),
    (lambda f: change_flags(f, disc_prior_type="geom"),
     ["discovery/discover/mlp/linear/b has no place in the model", "(and 3 more)"]),
    (lambda f: change_flags(f, prop_prior_type="rw"), ["random_walk_propagate_prior/linear/w is missing"]),
    (lambda f: change_flags(f, k_particles=4), ["15 particles", "k_particles 4"]),
    (lambda f: change_flags(f, n_what="many"), ["flags.json", "n_what"]),
    (lambda f: (f / "flags.json").write_text("[]"), ["flags.json", "list"]),
    (lambda f: (f / "flags.json").write_text("{"), ["flags.json", "JSON"]),
    (remove("flags.json"), ["flags.json", "no such file"]),
    (remove("inputs.npz"), ["inputs.npz", "no such file"]),
    (remove("outputs.npz"), ["outputs.npz", "no such file"]),
    (remove("gradient_norms.json"), ["gradient_norms.json"]),
    (lambda f: (f / "gradient_norms.json").write_text("{\"propagation/gru/uz\": 3}"), ["gradient_norms.json"]),
    (remove("model.ckpt-0.index"), ["no original checkpoint"]),
    (remove("model.ckpt-0.data-00000-of-00001"), ["model.ckpt-0", "damaged or incomplete"]),
    (lambda f: os.truncate(f / "model.ckpt-0.data-00000-of-00001", 5000), ["model.ckpt-0", "damaged or incomplete"]),
    (lambda f: os.truncate(f / "outputs.npz", 5000), ["outputs.npz", "cannot be read"]),
    (lambda f: change_npz(f / "inputs.npz", noise_disc_where=None), ["noise_disc_where is missing"]),
    (lambda f: change_npz(f / "inputs.npz", noise_prop_what=np.zeros([4, 3, 15, 5], np.float32)),
     ["noise_prop_what", "(4, 3, 15, 5)", "(4, 4, 15, 5)"]),
    (lambda f: change_npz(f / "inputs.npz", noise_disc_presence=np.zeros([4, 4, 15], np.float32)),
     ["noise_disc_presence", "(4, 4, 15)"]),
    (lambda f: shutil.rmtree(f), ["no such file"]),
])
def test_folder_that_does_not_fit_is_one_line(spoil, expected, copy, monkeypatch, capsys):
    spoil(copy)
    code, out, err = command(copy, monkeypatch, capsys)
    assert code == 1 and not out
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for part in expected:
        assert part in err
