"""The paper's plan: which commands, in which order and why; what happens when one fails or a signal comes."""

import csv
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import attrs
import h5py
import pytest
from checkout_helpers import make_checkout

from data_gen import bouncing_balls
from data_gen.command_line import UserError
from eval import paper
from eval.predictions import Predictions
from sqair import train

TINY = paper.Scale(
    {paper.TRAIN_ON: dict(n_frames=10, training=16, validation=8, test=8), paper.TEST_ON: dict(n_frames=10, test=8)},
    ["--n_units", "1", "--n_what", "2", "--glimpse_size", "6", "--k_particles", "2", "--batch_size", "8", "--shards",
     "1", "--train_itr", "2", "--seq_len", "2", "--stage_itr", "0", "--max_seq_len", "2", "--log_itr", "2",
     "--report_loss_every", "1", "--save_itr", "1", "--fig_itr", "100", "--no-eval_on_train", "--patience", "0"],
    ["--n_frames", "3", "--n_samples", "2", "--canvases"])


@pytest.fixture
def tiny(monkeypatch):
    """Makes the small scale tiny."""
    monkeypatch.setitem(paper.SCALES, "small", TINY)


def arguments(folder, **changes):
    where = dict(runs=folder / "runs", results=folder / "results", data_dir=folder / "data")
    return paper.Arguments(**{"scale": "small", "models": ("sqair",), "seeds": (0,), **where, **changes})


def test_the_plan_is_models_by_seeds():
    steps = paper.plan(paper.Arguments())
    assert [len(stage) for stage in (steps.data, steps.training, steps.prediction)] == [2, 15, 40]
    assert [len(predictions) for _, predictions in steps.runs[:3]] == [3, 3, 2]     # rmc cannot be run with 8 slots
    runs = [command.run for command in steps.training]
    assert len(set(runs)) == 15
    assert runs[:4] == [f"runs/paper/{name}" for name in ("sqair_balls_0", "rsqair_in_0", "rsqair_rmc_0",
                                                         "sqair_balls_1")]     # one seed of each model comes first
    assert not any("--xla" in command.arguments for command in steps.training)
    assert all("--xla" in command.arguments for command in paper.plan(paper.Arguments(xla=True)).training)
    assert not any("rmc" in c.run and "8" in c.arguments[c.arguments.index("--n_slots") + 1] for c in steps.prediction)


def test_the_short_scale_is_the_papers_protocol_with_the_short_recipe():
    whole = paper.plan(paper.Arguments(models=("sqair", "rmc_slots")))
    short = paper.plan(paper.Arguments(models=("sqair", "rmc_slots"), scale="short", runs=pathlib.Path("/runs"),
                                       data_dir=pathlib.Path("/data")))
    assert all(" --recipe short " in f"{command} " and "--run_dir /runs/" in str(command)
               and command.arguments[-1] == "/data/balls4mass64.h5" for command in short.training)
    as_whole = [str(command).replace("/runs", "runs/paper").replace("/data", "data").replace("/short/", "/paper/")
                for command in short.prediction]
    assert as_whole == [str(command) for command in whole.prediction]
    assert [command.arguments[4:-2] for command in short.data] == [
        "--n_frames 10 --training 20000 --validation 2000 --test 2000".split(), "--n_frames 10 --test 2000".split()]
    few = paper.plan(paper.Arguments(scale="small", n_sequences=5)).prediction
    assert all(c.arguments.count("--n_sequences") == 1 and c.arguments[-2:] == ["--n_sequences", "5"] for c in few)


@pytest.mark.parametrize("scale", ["paper", "short", "small"])
def test_every_training_command_is_one_that_training_takes(scale):
    for command in paper.plan(paper.Arguments(scale=scale, models=("sqair", "in", "rmc", "rmc_slots"))).training:
        parsed = train.parse(command.arguments[2:])
        assert parsed.run_dir == command.run
        assert str(parsed.config.train.seed) == command.run.rsplit("_", 1)[1]


def test_given_data_files_are_used_and_not_made(tmp_path):
    steps = paper.plan(paper.Arguments(data_4=tmp_path / "a.h5", data_678=tmp_path / "b.h5", seeds=(0,)))
    assert steps.data == []
    assert all(str(tmp_path / "a.h5") in command.arguments for command in steps.training)
    assert {c.arguments[c.arguments.index("--data") + 1] for c in steps.prediction} == {
        str(tmp_path / "a.h5"), str(tmp_path / "b.h5")}


# What was asked for.


@pytest.mark.parametrize("wrong, named", [
    (dict(jobs=0), "--jobs 0"), (dict(models=()), "--models"), (dict(seeds=()), "--seeds"),
    (dict(seeds=(0, 1, 0)), "0 is there twice"), (dict(models=("in", "in")), "in is there twice"),
    (dict(seeds=(-1,)), "-1 is no seed"), (dict(seeds=(2**31,)), "2147483648 is no seed"),
    (dict(n_sequences=0), "--n_sequences 0"), (dict(runs=pathlib.Path("")), "--runs is empty"),
    (dict(name="a/b"), "--name a/b"), (dict(name=""), "--name is empty"),
])
def test_impossible_arguments_are_refused(wrong, named):
    with pytest.raises(UserError, match=named):
        paper.Arguments(**wrong)


def call_main(monkeypatch, folder, *options):
    where = [word for name in ("runs", "results") for word in (f"--{name}", str(folder / name))]
    where += ["--data_dir", str(folder / "data")]
    monkeypatch.setattr(sys, "argv", ["paper", "--scale", "small", *where, *options])
    return paper.main()


def test_data_files_are_looked_at_before_anything_starts(tmp_path, monkeypatch, capsys):
    there, nowhere = tmp_path / "test_only.h5", tmp_path / "nowhere.h5"
    bouncing_balls.write(attrs.evolve(bouncing_balls.PRESETS["balls678mass64"], n_frames=3, test=4), there)
    with pytest.raises(UserError, match="nowhere.h5"):
        call_main(monkeypatch, tmp_path, "--data_4", str(there), "--data_678", str(nowhere))
    assert "test_only.h5" in capsys.readouterr().err and os.listdir(tmp_path) == ["test_only.h5"]


def test_data_made_with_other_settings_are_named(tmp_path, tiny):
    command = paper.plan(arguments(tmp_path)).data[1]
    assert command.reason() == f"{command.result} is missing"
    settings = attrs.evolve(bouncing_balls.PRESETS["balls678mass64"], n_frames=10, test=8)
    command.result.parent.mkdir()
    bouncing_balls.write(settings, command.result)
    assert command.reason() == ""
    bouncing_balls.write(attrs.evolve(settings, seed=1), command.result)
    with pytest.raises(UserError, match="seed 1, asked is 0"):
        command.reason()
    with h5py.File(command.result, "r+") as file:       # R-NEM's files do not say
        del file.attrs["settings"]
    assert command.reason() == ""


def test_dry_run_runs_nothing(tmp_path, monkeypatch, capsys):
    assert call_main(monkeypatch, tmp_path, "--dry_run", "--seeds", "0", "--models", "in") == 0
    output = capsys.readouterr().out
    assert "sqair.train --preset rsqair_in" in output and not list(tmp_path.iterdir())
    assert subprocess.run(["bash", "-n"], input=output, text=True).returncode == 0      # it can be kept as a script


# What has to run, and why: a run, with predictions, made by the real commands.


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
    """A copy of it: what is the same elsewhere is still up to date."""
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
    (copied / "runs" / "sqair_balls_0" / train.FINISHED).unlink()
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
    bouncing_balls.write(attrs.evolve(bouncing_balls.PRESETS["balls4mass64"], n_frames=10, training=16, validation=8,
                                      test=8, seed=1), other)
    command, = paper.plan(arguments(copied, data_4=other)).training
    with pytest.raises(UserError, match="trained on other data than .*other.h5"):
        command.reason()
    before = (copied / "runs" / "sqair_balls_0" / "versions.json").read_text()
    result = subprocess.run([sys.executable, *command.arguments], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and "is not the data that" in result.stderr
    assert (copied / "runs" / "sqair_balls_0" / "versions.json").read_text() == before
    moved = shutil.copy(copied / "data" / "balls4mass64.h5", copied / "moved.h5")
    same, = paper.plan(arguments(copied, data_4=moved)).training
    assert same.reason() == ""


def test_an_older_run_that_does_not_tell_its_data_is_known_by_their_path(copied):
    versions = copied / "runs" / "sqair_balls_0" / "versions.json"
    versions.write_text("{}")
    flags = json.loads((copied / "runs" / "sqair_balls_0" / "flags.json").read_text())
    moved, = paper.plan(arguments(copied)).training
    with pytest.raises(UserError, match="trained on other data"):
        moved.reason()
    same, = paper.plan(arguments(copied, data_4=pathlib.Path(flags["train_data"]))).training
    assert same.reason() == ""


def test_the_whole_and_what_was_asked_for(copied, monkeypatch, capsys):
    """From data and one finished run on, for two seeds; then for one of them alone."""
    assert call_main(monkeypatch, copied, "--models", "sqair", "--seeds", "0", "1", "--jobs", "1") == 0
    output = capsys.readouterr().out
    results = copied / "results"
    assert f"up to date: {copied / 'runs' / 'sqair_balls_0'}\n" in output and "all done (2 of 2 runs)" in output
    assert output.count("\ndone (") == 1 + 5 + 2 + 5     # training, predictions, tables after each run, report
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


# Failures and signals.


def missing(path):
    return "" if path.exists() else f"{path} is missing"


def python_command(folder, name, code):
    result = folder / name
    return paper.Command(["-c", code], folder / "logs" / f"{name}.log", functools.partial(missing, result), result)


def test_a_failure_does_not_stop_the_others_and_finished_ones_are_skipped(tmp_path, capsys):
    command = functools.partial(python_command, tmp_path)
    (tmp_path / "there").write_text("")
    commands = [command("there", "raise SystemExit(7)"), command("bad", "print('why'); raise SystemExit(3)"),
                command("good", f"open({str(tmp_path / 'good')!r}, 'w')")]
    with paper.Processes() as processes:
        processes.run_chains([iter([one]) for one in commands], 2)
    output = capsys.readouterr().out
    assert processes.failed == [commands[1]] and (tmp_path / "good").exists()
    assert f"up to date: {tmp_path / 'there'}" in output and "exit code 3" in output and "bad is missing" in output
    log = (tmp_path / "logs" / "bad.log").read_text()
    assert log.startswith("$ python -c") and "why" in log


def test_as_many_run_at_a_time_as_asked_and_a_chain_keeps_its_order(tmp_path):
    code = ("import pathlib, time; here = pathlib.Path({0!r}); open(here / '{1}.on', 'w'); time.sleep(1); "
            "open(here / '{1}', 'w').write(str(len(list(here.glob('*.on'))))); (here / '{1}.on').unlink()")
    chains = [[python_command(tmp_path, name, code.format(str(tmp_path), name)) for name in names]
              for names in (["a1", "a2"], ["b1", "b2"], ["c1"])]
    with paper.Processes() as processes:
        processes.run_chains([iter(chain) for chain in chains], 2)
    assert not processes.failed
    at_once = {name: int((tmp_path / name).read_text()) for name in ("a1", "a2", "b1", "b2", "c1")}
    assert max(at_once.values()) == 2
    times = {name: (tmp_path / name).stat().st_mtime for name in at_once}
    assert times["a1"] < times["a2"] and times["b1"] < times["b2"]
    assert times["c1"] > min(times["a2"], times["b2"])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = make_checkout(tmp_path_factory.mktemp("checkout") / "r-sqair")
    for preset, sizes in (("balls4mass64", dict(training=64, validation=32, test=8)), ("balls678mass64", dict(test=8))):
        (folder / "data").mkdir(exist_ok=True)
        bouncing_balls.write(attrs.evolve(bouncing_balls.PRESETS[preset], n_frames=10, **sizes),
                             folder / "data" / f"{preset}.h5")
    return folder


def processes_of(folder):
    """Running processes, by id, that were started for a folder."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            state = (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
            where = os.readlink(path / "cwd")
        except OSError:
            continue
        if where == str(folder) and state != "Z":
            found[int(path.name)] = b" ".join(words).decode()
    return found


def wait_for(condition, process, seconds=300):
    for _ in range(seconds * 10):
        if condition():
            return
        assert process is None or process.poll() is None, "ended too early"
        time.sleep(0.1)
    raise AssertionError("did not happen in time")


def start(checkout, folder, *words, **environment):
    """Starts run.sh in a folder, in a session of its own as from another terminal."""
    folder.mkdir(exist_ok=True)
    log = open(folder / "output.txt", "w")
    return subprocess.Popen([checkout / "run.sh", *words], cwd=folder, stdout=log, stderr=log, start_new_session=True,
                            env=os.environ | environment)


PAPER = ("--seeds", "0", "1", "--jobs", "2")


@pytest.fixture
def paper_in_training(checkout, tmp_path):
    """run.sh paper with two trainings under way; relative paths are those of the folder that we are in."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copytree(checkout / "data", folder / "given")
    process = start(checkout, folder, "paper", *PAPER, "--data_4", "given/balls4mass64.h5", "--data_678",
                    "given/balls678mass64.h5", SCALE="small", MODELS="sqair")
    try:
        logs = [folder / "runs" / "small" / f"sqair_balls_{seed}" / "train.log" for seed in (0, 1)]
        wait_for(lambda: all(log.exists() and "parameters" in log.read_text() for log in logs), process)
        yield folder, process, logs
    finally:
        for number in processes_of(folder):
            os.kill(number, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_trainings_which_save_and_stop(paper_in_training, number):
    folder, process, logs = paper_in_training
    os.kill(process.pid, number)
    assert process.wait(120) == 128 + number
    assert not processes_of(folder)
    for log in logs:
        assert "stopped by signal 15 at step" in log.read_text()
        step = log.read_text().rsplit("at step ", 1)[1].split(";")[0]
        assert (log.parent / "checkpoints" / f"step-{step}.index").exists()
        assert not (log.parent / train.FINISHED).exists()
    output = (folder / "output.txt").read_text()
    assert "waiting for 2 commands to save and stop" in output and "the same command goes on from here" in output
    assert "FAILED" not in output


def test_killing_it_outright_leaves_nothing_running(paper_in_training):
    folder, process, logs = paper_in_training
    process.kill()
    process.wait()
    wait_for(lambda: not processes_of(folder), None, 120)
    assert all("stopped by signal 15" in log.read_text() for log in logs)


def test_a_second_signal_does_not_wait(checkout, tmp_path):
    """Of two: the first is not heard by a command that ignores it."""
    code = (f"import sys; sys.path.insert(0, {str(checkout)!r})\nfrom eval import paper\nimport functools, pathlib\n"
            "deaf = ('import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); '\n"
            "        'open(\"deaf\", \"w\"); time.sleep(600)')\n"
            "with paper.Processes() as processes:\n"
            "    processes.run(paper.Command(['-c', deaf], pathlib.Path('log')))\n"
            "raise SystemExit(128 + processes.signal)\n")
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) as process:
        wait_for((tmp_path / "deaf").exists, process)
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.terminate()
        assert process.wait(30) == 143 and not processes_of(tmp_path)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129),
                                          (signal.SIGKILL, -9)])
def test_run_sh_ends_with_what_it_runs(checkout, tmp_path, number, code):
    """Of the verbs that run several programs."""
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
    endless = TINY.training[:steps] + ["100000"] + TINY.training[steps + 1:]
    process = start(checkout, folder, "train", "sqair_balls", "3", "--train_data",
                    os.path.relpath(checkout / "data" / "balls4mass64.h5", folder), *endless)
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
    assert [path.name for path in folder.iterdir()] == ["output.txt"]       # no folder of results is left
    assert start(checkout, folder, "nonsense").wait(60) == 1
