"""Real runs of the paper's plan, and how they end when a signal comes."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import attrs
import h5py
import pytest

from data_gen import bouncing_balls
from data_gen.errors import UserError
from eval import paper
from eval.predictions import Predictions
from sqair.runs import folder as run_folder
from tests.checkout_helpers import make_checkout
from tests.paper_helpers import TINY, arguments, call_main, processes_of, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(monkeypatch):
    """Makes the small scale tiny."""
    monkeypatch.setitem(paper.SCALES, "small", TINY)


# What has to run, and why: with a run and its predictions made by the real commands.


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch, paper.Processes() as processes:
        patch.setitem(paper.SCALES, "small", TINY)
        steps = paper.plan(arguments(folder))
        for command in (*steps.data, steps.training[0], steps.prediction[1]):
            assert command.reason()
            processes.run(command)
            assert not processes.failed, command.log.read_text()[-2000:]
            assert command.reason() == ""
    return folder


@pytest.fixture
def copied(made, tmp_path, tiny):
    """A copy of it in another folder, which is still up to date."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    steps = paper.plan(arguments(tmp_path))
    assert [c.reason() for c in (*steps.data, *steps.training, steps.prediction[1])] == [""] * 4
    return tmp_path


def prediction(folder, **changes):
    return paper.plan(arguments(folder, **changes)).prediction[1]


def test_predictions_of_another_checkpoint_are_remade_and_say_of_which(copied):
    run, command = copied / "runs" / "sqair_balls_0", prediction(copied)
    with Predictions(command.result) as predictions:
        assert predictions.about.step == 2
        before = predictions.about.checkpoint_fingerprint
    for path in [*(run / "best").iterdir(), *(run / "checkpoints").glob("step-2.*")]:
        path.unlink()
    assert "another checkpoint" in command.reason() and "step-1" in command.reason()
    with paper.Processes() as processes:
        processes.run(command)
    with Predictions(command.result) as predictions:
        assert predictions.about.step == 1 and predictions.about.checkpoint_fingerprint != before
    assert command.reason() == ""


def test_predictions_of_other_data_or_options_are_remade(copied):
    command = prediction(copied)
    assert "n_sequences None (asked: 3)" in prediction(copied, n_sequences=3).reason()
    with h5py.File(copied / "data" / "balls678mass64.h5", "r+") as file:
        file["test/features"][0, 0, 0, 0] ^= True
    assert "made from other data" in command.reason()
    (copied / "data" / "balls678mass64.h5").unlink()
    assert "is to be made first" in command.reason()


def test_predictions_that_do_not_say_what_they_are_made_of_are_remade(copied):
    command = prediction(copied)
    with h5py.File(command.result, "r+") as file:
        del file.attrs["data_fingerprint"]
    assert "made from other data" in command.reason()
    with h5py.File(command.result, "r+") as file:
        del file.attrs["checkpoint_fingerprint"]
    assert "another checkpoint" in command.reason()
    command.result.write_text("damaged")
    assert "cannot be read" in command.reason()


def test_an_unfinished_run_goes_on_and_its_predictions_wait(copied):
    (copied / "runs" / "sqair_balls_0" / run_folder.FINISHED).unlink()
    steps = paper.plan(arguments(copied))
    assert "is not finished and goes on" in steps.training[0].reason()
    assert "sqair_balls_0 is to be made first" in steps.prediction[1].reason()


def test_a_run_of_other_flags_is_named_and_nothing_starts(copied, monkeypatch, capsys):
    flags = copied / "runs" / "sqair_balls_0" / "flags.json"
    flags.write_text(json.dumps(json.loads(flags.read_text()) | {"n_what": 7, "save_itr": 5}))
    with pytest.raises(UserError, match=r"sqair_balls_0 holds a run with n_what 7 \(asked: 2\)"):
        call_main(monkeypatch, copied, "--models", "in", "sqair", "--seeds", "0")
    assert not (copied / "runs" / "rsqair_in_0").exists()


def test_a_run_of_other_data_is_named_and_training_refuses_to_go_on(copied):
    other = copied / "other.h5"
    bouncing_balls.write(
        attrs.evolve(bouncing_balls.PRESETS["balls4mass64"], n_frames=10, training=16, validation=8, test=8, seed=1),
        other,
    )
    (command,) = paper.plan(arguments(copied, data_4=other)).training
    with pytest.raises(UserError, match="trained on other data than .*other.h5"):
        command.reason()
    before = (copied / "runs" / "sqair_balls_0" / "versions.json").read_text()
    result = subprocess.run([sys.executable, *command.arguments], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and "is not the data that" in result.stderr
    assert (copied / "runs" / "sqair_balls_0" / "versions.json").read_text() == before
    moved = shutil.copy(copied / "data" / "balls4mass64.h5", copied / "moved.h5")
    (same,) = paper.plan(arguments(copied, data_4=moved)).training
    assert same.reason() == ""


def test_an_older_run_that_does_not_tell_its_data_is_known_by_their_path(copied):
    versions = copied / "runs" / "sqair_balls_0" / "versions.json"
    versions.write_text("{}")
    flags = json.loads((copied / "runs" / "sqair_balls_0" / "flags.json").read_text())
    (moved,) = paper.plan(arguments(copied)).training
    with pytest.raises(UserError, match="trained on other data"):
        moved.reason()
    (same,) = paper.plan(arguments(copied, data_4=pathlib.Path(flags["train_data"]))).training
    assert same.reason() == ""


def test_the_whole_and_what_was_asked_for(copied, monkeypatch, capsys):
    """From data and one finished run on, for two seeds; then for one of them alone."""
    assert call_main(monkeypatch, copied, "--models", "sqair", "--seeds", "0", "1", "--jobs", "1") == 0
    output = capsys.readouterr().out
    results = copied / "results"
    assert f"up to date: {copied / 'runs' / 'sqair_balls_0'}\n" in output and "all done (2 of 2 runs)" in output
    assert output.count("\ndone (") == 1 + 5 + 2 + 5  # training, predictions, tables after each run, report
    for name in ("table.md", "table.tex", "figure3.png", "figure3.gif", "figure4.pdf", "curves.png", "index.html"):
        assert (results / name).stat().st_size > 0

    def runs_in_table():
        with open(results / "table.csv", newline="") as file:
            return {row["runs"] for row in csv.DictReader(file)}

    assert runs_in_table() == {"2"}
    page = (results / "index.html").read_text()
    assert "sqair_0_" in page and "sqair_1_" in page and "no predictions" not in page

    assert call_main(monkeypatch, copied, "--models", "sqair", "--seeds", "1", "--report") == 0
    assert "up to date" not in capsys.readouterr().out
    assert runs_in_table() == {"1"} and "sqair_0_" not in (results / "index.html").read_text()


# Signals.


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = make_checkout(tmp_path_factory.mktemp("checkout") / "r-sqair")
    for preset, sizes in (("balls4mass64", dict(training=64, validation=32, test=8)), ("balls678mass64", dict(test=8))):
        (folder / "data").mkdir(exist_ok=True)
        bouncing_balls.write(
            attrs.evolve(bouncing_balls.PRESETS[preset], n_frames=10, **sizes), folder / "data" / f"{preset}.h5"
        )
    return folder


def start(checkout, folder, *words, **environment):
    """Starts run.sh in a folder, in a new session, as from another terminal."""
    folder.mkdir(exist_ok=True)
    log = open(folder / "output.txt", "w")
    return subprocess.Popen(
        [checkout / "run.sh", *words],
        cwd=folder,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env=os.environ | environment,
    )


PAPER = ("--seeds", "0", "1", "--jobs", "2")


@pytest.fixture
def paper_in_training(checkout, tmp_path):
    """run.sh paper with two trainings under way; paths are relative to the current folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copytree(checkout / "data", folder / "given")
    process = start(
        checkout,
        folder,
        "paper",
        *PAPER,
        "--data_4",
        "given/balls4mass64.h5",
        "--data_678",
        "given/balls678mass64.h5",
        SCALE="small",
        MODELS="sqair",
    )
    try:
        logs = [folder / "runs" / "small" / f"sqair_balls_{seed}" / "train.log" for seed in (0, 1)]
        wait_for(lambda: all(log.exists() and "parameters" in log.read_text() for log in logs), process)
        yield folder, process, logs
    finally:
        for number in processes_of(folder):
            os.kill(number, signal.SIGKILL)
        process.wait()


def test_a_signal_reaches_the_trainings_which_save_and_stop(paper_in_training):
    folder, process, logs = paper_in_training
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(120) == 143
    assert not processes_of(folder)
    for log in logs:
        assert "stopped by signal 15 at step" in log.read_text()
        step = log.read_text().rsplit("at step ", 1)[1].split(";")[0]
        assert (log.parent / "checkpoints" / f"step-{step}.index").exists()
        assert not (log.parent / run_folder.FINISHED).exists()
    output = (folder / "output.txt").read_text()
    assert "waiting for 2 commands to save and stop" in output and "the same command goes on from here" in output
    assert "FAILED" not in output


def test_killing_it_outright_leaves_nothing_running(paper_in_training):
    folder, process, logs = paper_in_training
    process.kill()
    process.wait()
    wait_for(lambda: not processes_of(folder), None, 120)
    assert all("stopped by signal 15" in log.read_text() for log in logs)


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_run_sh_ends_with_what_it_runs(checkout, tmp_path, number, code):
    """For the verbs that run several programs."""
    folder = tmp_path / "here"
    process = start(checkout, folder, "data")
    try:
        wait_for(lambda: any(path.stat().st_size > 100_000 for path in folder.glob("data/.*.part")), process)
        os.kill(process.pid, number)
        assert process.wait(60) == code
        wait_for(lambda: not processes_of(folder), None, 60)
        assert not list(folder.glob("data/*")) and not list(folder.glob("data/.*.part"))
    finally:
        for left in processes_of(folder):
            os.kill(left, signal.SIGKILL)


def test_run_sh_train_is_the_training(checkout, tmp_path):
    folder, steps = tmp_path / "here", TINY.training.index("--train_itr") + 1
    endless = TINY.training[:steps] + ["100000"] + TINY.training[steps + 1 :]
    process = start(
        checkout,
        folder,
        "train",
        "sqair_balls",
        "3",
        "--train_data",
        os.path.relpath(checkout / "data" / "balls4mass64.h5", folder),
        *endless,
    )
    try:
        log = folder / "runs" / "sqair_balls_3" / "train.log"
        wait_for(lambda: log.exists() and "step 1 " in log.read_text(), process)
        assert "sqair.train" in processes_of(folder)[process.pid]
        process.terminate()
        assert process.wait(60) == 143 and "stopped by signal 15" in log.read_text()
    finally:
        process.kill()


def test_other_errors_of_run_sh_are_its_own(checkout, tmp_path):
    folder = tmp_path / "here"
    assert start(checkout, folder, "eval", "no_such_run", "no_such_data").wait(120) == 1
    assert "no_such_run" in (folder / "output.txt").read_text()
    assert [path.name for path in folder.iterdir()] == ["output.txt"]  # no folder of results is left
    assert start(checkout, folder, "nonsense").wait(60) == 1
