"""Models to share: those of models/ give what their cards record, and every command takes such a folder."""

import csv
import json
import sys

import numpy as np
import pytest
import safetensors.numpy

from data_gen.console import run_cli
from data_gen.errors import UserError
from eval import figures, likelihood, models, page, predict, tables
from eval.options import AddModel
from sqair import export
from sqair.runs import loading
from tests.data_helpers import ROOT
from tests.eval_helpers import save_run

pytestmark = pytest.mark.slow
SHIPPED = sorted(path for path in (ROOT / "models").glob("*") if path.is_dir())
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def command(monkeypatch, capsys, module, *words):
    """Runs `python -m MODULE WORDS` in this process; returns exit code, output and error output."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        run_cli(module.main)
    return stop.value.code or 0, *capsys.readouterr()


def test_there_are_models_and_they_are_small():
    assert SHIPPED
    assert sum(path.stat().st_size for folder in SHIPPED for path in folder.iterdir()) < 45e6


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_a_model_gives_what_its_card_records(folder):
    assert models.check(folder) == []
    told = json.loads((folder / "card.json").read_text())
    assert not told["uncommitted_changes"] and told["validation"]["length"] == 10
    for said in (
        told["commit"],
        told["data_sha256"],
        told["machine"],
        f"seed {told['seed']}",
        f"recipe `{told['recipe']}`",
        f"{told['validation']['iwae_per_frame']:.1f}",
        f"after {told['all_steps']:,} training steps",
    ):
        assert said in (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny run with the files of a trained one; figures of eval.tables; and the model made of both."""
    folder = tmp_path_factory.mktemp("models")
    made = save_run(folder / "run", relation="in")
    (made / "versions.json").write_text(
        json.dumps(
            {
                "git_commit": COMMIT,
                "uncommitted_changes": True,
                "train_data_fingerprint": "abc123",
                "machine": "one fast GPU",
            }
        )
    )
    for name, columns, rows in (
        (
            "metrics",
            "step data length iwae_per_frame data_ll kl num_step_accuracy",
            [
                "5 validation 10 481.25 520.5 38.5 0.995",
                "6 batch 10 1 1 1 1",
                "7 validation 10 nan 1 1 1",
                "8 validation 10 500.0 1 1 1",
            ],
        ),
        (
            "resources",
            "step data seconds_per_step cpu_seconds_per_step",
            ["2 machine 60.0 90.0", "4 machine nan 90.0", "6 machine 120.0 150.0", "9 machine 1 1"],
        ),
    ):
        with open(made / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(row.split() for row in [columns, *rows])
    data = folder / "balls.h5"
    models.bouncing_balls.write(models.DATA, data)
    for run_ in (made, save_run(folder / "other", seed=1, relation="in")):
        predict.write(
            predict.Arguments(
                run=str(run_),
                data=str(data),
                out=folder / "predictions" / f"{run_.name}.h5",
                n_sequences=4,
                n_frames=4,
                n_samples=2,
                k_particles=3,
                batch_size=4,
            )
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tables", "--predictions", str(folder / "predictions"), "--out", str(folder)])
        tables.main()
    models.add(AddModel(run=str(made), out=folder / "model", metrics=(folder / "metrics",)))
    return folder


def test_the_card_tells_what_is_known_of_the_run(tiny):
    told = json.loads((tiny / "model" / "card.json").read_text())
    assert (told["run"], told["step"], told["recipe"], told["seed"]) == ("run", 7, None, 0)
    assert (told["commit"], told["uncommitted_changes"], told["data_sha256"]) == (COMMIT, True, "abc123")
    # 2 steps of one minute and 4 of two minutes: ten minutes for the six that were timed.
    assert told["minutes"] == pytest.approx(10 / 6 * 7) and told["processor_minutes"] == pytest.approx(13 / 6 * 7)
    assert told["validation"] == {
        "step": 5,
        "length": 10,
        "iwae_per_frame": 481.25,
        "data_ll": 520.5,
        "kl": 38.5,
        "num_step_accuracy": 0.995,
    }
    (row,) = told["table"]
    assert (row["data_set"], row["n_sequences"], row["n_samples"]) == ("balls", 4, 2)
    (of_run,) = (json.loads(path.read_text()) for path in (tiny / "metrics").glob("*seed0*"))
    for name, value in row["figures"].items():
        values = of_run["metrics"][name]  # one that is not defined is None
        assert value is None if None in values else value == pytest.approx(np.mean(values))
    card = (tiny / "model" / "README.md").read_text()
    for said in (
        "# R-SQAIR (IN)",
        f"commit {COMMIT} and changes on top of it, machine: one fast GPU",
        "in 12 minutes (15 of a processor core)",
        "nats per frame: bound (IWAE) 481.2, log p(x|z) 520.5, KL 38.5, count accuracy 0.995",
        f"| balls | 4 | {row['figures']['data_ll_predicted']:.2f} |",
    ):
        assert said in card


def test_check_tells_other_weights_from_the_same(tiny, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, capsys, models, "check", tiny / "model")[:2] == (0, f"{tiny / 'model'}: as recorded\n")
    for path in (tiny / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    weights["sqair/decoder/output_scale"] *= 1.001
    (tmp_path / "model.safetensors").write_bytes(safetensors.numpy.save(weights, {"step": "7"}))
    code, _, err = command(monkeypatch, capsys, models, "check", tmp_path)
    assert code == 1 and f"{tmp_path}: iwae is" in err and "data_ll_predicted is" in err
    export.save_safetensors(loading.load_run(tiny / "run"), tmp_path, overwrite=True)
    code, _, err = command(monkeypatch, capsys, models, "check", tmp_path)
    assert code == 1 and f"error: {tmp_path / 'card.json'}: no figures to check in it" in err


def test_figures_of_another_checkpoint_are_no_figures_of_this_one(tiny, tmp_path):
    save_run(tmp_path / "run", seed=2)
    with pytest.raises(UserError, match="--metrics: no figures of .*run/checkpoints/step-7 among them"):
        models.add(AddModel(run=str(tmp_path / "run"), out=tmp_path / "model", metrics=(tiny / "metrics",)))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="other.json: not a file of eval.tables"):
        models.add(AddModel(run=str(tiny / "run"), out=tmp_path / "model", metrics=(tmp_path / "other.json",)))
    assert not (tmp_path / "model").exists()


def test_every_command_takes_it_as_a_run(tiny, tmp_path, monkeypatch, capsys):
    model, few = tiny / "model", ("--data", tiny / "balls.h5", "--n_frames", 3, "--n_sequences", 2)
    for module, *words in (
        (likelihood, "--run", model, *few, "--checkpoint", "all", "--out", tmp_path / "likelihood.json"),
        (predict, "--run", model, *few, "--out", tmp_path / "p.h5", "--n_samples", 1),
        (figures, "--run", model, *few, "--out", tmp_path / "f.png"),
        (page, "--results", tmp_path, "--runs", model),
    ):
        code, _, err = command(monkeypatch, capsys, module, *words)
        assert code == 0, err[-1000:]
    assert "relation_embedding" in (tmp_path / "index.html").read_text()
