"""The paper's plan: which commands, in which order and why; what happens when one fails or a signal comes."""

import contextlib
import functools
import os
import pathlib
import signal
import subprocess
import sys

import attrs
import h5py
import pytest

from data_gen import bouncing_balls
from data_gen.errors import UserError
from eval import paper
from sqair import options
from tests.data_helpers import ROOT
from tests.paper_helpers import TINY, arguments, call_main, processes_of, wait_for


@pytest.fixture
def tiny(monkeypatch):
    """Makes the small scale tiny."""
    monkeypatch.setitem(paper.SCALES, "small", TINY)


def test_the_plan_is_models_by_seeds():
    steps = paper.plan(paper.Arguments())
    assert [len(stage) for stage in (steps.data, steps.training, steps.prediction)] == [2, 15, 40]
    assert [len(predictions) for _, predictions in steps.runs[:3]] == [3, 3, 2]  # rmc cannot be run with 8 slots
    runs = [command.run for command in steps.training]
    assert len(set(runs)) == 15
    assert runs[:4] == [
        f"runs/paper/{name}" for name in ("sqair_balls_0", "rsqair_in_0", "rsqair_rmc_0", "sqair_balls_1")
    ]  # one seed of each model comes first
    assert not any("--xla" in command.arguments for command in steps.training)
    assert all("--xla" in command.arguments for command in paper.plan(paper.Arguments(xla=True)).training)
    assert not any("rmc" in c.run and "8" in c.arguments[c.arguments.index("--n_slots") + 1] for c in steps.prediction)


def test_the_short_scale_is_the_papers_protocol_with_the_short_recipe():
    whole = paper.plan(paper.Arguments(models=("sqair", "rmc_slots")))
    short = paper.plan(
        paper.Arguments(
            models=("sqair", "rmc_slots"), scale="short", runs=pathlib.Path("/runs"), data_dir=pathlib.Path("/data")
        )
    )
    assert all(
        " --recipe short " in f"{command} "
        and "--run_dir /runs/" in str(command)
        and command.arguments[-1] == "/data/balls4mass64.h5"
        for command in short.training
    )
    as_whole = [
        str(command).replace("/runs", "runs/paper").replace("/data", "data").replace("/short/", "/paper/")
        for command in short.prediction
    ]
    assert as_whole == [str(command) for command in whole.prediction]
    assert [command.arguments[4:-2] for command in short.data] == [
        "--n_frames 10 --training 20000 --validation 2000 --test 2000".split(),
        "--n_frames 10 --test 2000".split(),
    ]
    few = paper.plan(paper.Arguments(scale="small", n_sequences=5)).prediction
    assert all(c.arguments.count("--n_sequences") == 1 and c.arguments[-2:] == ["--n_sequences", "5"] for c in few)


@pytest.mark.parametrize("scale", ["paper", "short", "small"])
def test_every_training_command_is_one_that_training_takes(scale):
    for command in paper.plan(paper.Arguments(scale=scale, models=("sqair", "in", "rmc", "rmc_slots"))).training:
        parsed = options.parse(command.arguments[2:])
        assert parsed.run_dir == command.run
        assert str(parsed.config.train.seed) == command.run.rsplit("_", 1)[1]


def test_given_data_files_are_used_and_not_made(tmp_path):
    steps = paper.plan(paper.Arguments(data_4=tmp_path / "a.h5", data_678=tmp_path / "b.h5", seeds=(0,)))
    assert steps.data == []
    assert all(str(tmp_path / "a.h5") in command.arguments for command in steps.training)
    assert {c.arguments[c.arguments.index("--data") + 1] for c in steps.prediction} == {
        str(tmp_path / "a.h5"),
        str(tmp_path / "b.h5"),
    }


# What was asked for.


@pytest.mark.parametrize(
    "wrong, named",
    [
        (dict(jobs=0), "--jobs 0"),
        (dict(models=()), "--models"),
        (dict(seeds=()), "--seeds"),
        (dict(seeds=(0, 1, 0)), "0 is there twice"),
        (dict(models=("in", "in")), "in is there twice"),
        (dict(seeds=(-1,)), "-1 is no seed"),
        (dict(seeds=(2**31,)), "2147483648 is no seed"),
        (dict(n_sequences=0), "--n_sequences 0"),
        (dict(runs=pathlib.Path("")), "--runs is empty"),
        (dict(name="a/b"), "--name a/b"),
        (dict(name=""), "--name is empty"),
    ],
)
def test_impossible_arguments_are_refused(wrong, named):
    with pytest.raises(UserError, match=named):
        paper.Arguments(**wrong)


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
    with h5py.File(command.result, "r+") as file:  # R-NEM's files do not have it
        del file.attrs["settings"]
    assert command.reason() == ""


def test_dry_run_runs_nothing(tmp_path, monkeypatch, capsys):
    assert call_main(monkeypatch, tmp_path, "--dry_run", "--seeds", "0", "--models", "in") == 0
    output = capsys.readouterr().out
    assert "sqair.train --preset rsqair_in" in output and not list(tmp_path.iterdir())
    assert subprocess.run(["bash", "-n"], input=output, text=True).returncode == 0  # it can be kept as a script


# Failures and signals.


def missing(path):
    return "" if path.exists() else f"{path} is missing"


def python_command(folder, name, code):
    result = folder / name
    return paper.Command(["-c", code], folder / "logs" / f"{name}.log", functools.partial(missing, result), result)


def test_a_failure_does_not_stop_the_others_and_finished_ones_are_skipped(tmp_path, capsys):
    command = functools.partial(python_command, tmp_path)
    (tmp_path / "there").write_text("")
    commands = [
        command("there", "raise SystemExit(7)"),
        command("bad", "print('why'); raise SystemExit(3)"),
        command("good", f"open({str(tmp_path / 'good')!r}, 'w')"),
    ]
    with paper.Processes() as processes:
        processes.run_chains([iter([one]) for one in commands], 2)
    output = capsys.readouterr().out
    assert processes.failed == [commands[1]] and (tmp_path / "good").exists()
    assert f"up to date: {tmp_path / 'there'}" in output and "exit code 3" in output and "bad is missing" in output
    log = (tmp_path / "logs" / "bad.log").read_text()
    assert log.startswith("$ python -c") and "why" in log


def test_as_many_run_at_a_time_as_asked_and_a_chain_keeps_its_order(tmp_path):
    code = (
        "import pathlib, time; here = pathlib.Path({0!r}); open(here / '{1}.on', 'w'); time.sleep(1); "
        "open(here / '{1}', 'w').write(str(len(list(here.glob('*.on'))))); (here / '{1}.on').unlink()"
    )
    chains = [
        [python_command(tmp_path, name, code.format(str(tmp_path), name)) for name in names]
        for names in (["a1", "a2"], ["b1", "b2"], ["c1"])
    ]
    with paper.Processes() as processes:
        processes.run_chains([iter(chain) for chain in chains], 2)
    assert not processes.failed
    at_once = {name: int((tmp_path / name).read_text()) for name in ("a1", "a2", "b1", "b2", "c1")}
    assert max(at_once.values()) == 2
    times = {name: (tmp_path / name).stat().st_mtime for name in at_once}
    assert times["a1"] < times["a2"] and times["b1"] < times["b2"]
    assert times["c1"] > min(times["a2"], times["b2"])


# A program that runs one command by `paper.Processes`; the command writes a file when it has started.
ONE_COMMAND = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from eval import paper
with paper.Processes() as processes:
    processes.run(paper.Command(["-c", sys.argv[2]], pathlib.Path("log")))
raise SystemExit(128 + processes.signal)
"""


@contextlib.contextmanager
def one_command(code, folder):
    with subprocess.Popen(
        [sys.executable, "-c", ONE_COMMAND, ROOT, f"{code}; open('begun', 'w'); time.sleep(600)"], cwd=folder
    ) as process:
        wait_for((folder / "begun").exists, process)
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_any_signal_to_it_is_a_polite_one_to_what_it_runs(tmp_path, number):
    polite = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(open('told', 'w').close()))"
    with one_command(polite, tmp_path) as process:
        process.send_signal(number)
        assert process.wait(30) == 128 + number and (tmp_path / "told").exists() and not processes_of(tmp_path)


@pytest.mark.slow
def test_a_second_signal_does_not_wait(tmp_path):
    """A command that ignores the first signal is killed by the second."""
    with one_command("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)", tmp_path) as process:
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.terminate()
        assert process.wait(30) == 143 and not processes_of(tmp_path)
