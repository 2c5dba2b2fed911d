"""The paper's plan: which commands, in which order, and what happens when one fails."""

import sys

import pytest

from data_gen.command_line import UserError
from eval import paper
from sqair import train


def test_the_plan_is_models_by_seeds():
    steps = paper.plan(paper.Arguments())
    assert [len(stage) for stage in steps] == [2, 15, 40, 5]       # rmc cannot be run with 8 slots: 15*2 + 10
    runs = [command.run for command in steps.training]
    assert len(set(runs)) == 15 and runs[0] == "runs/paper/sqair_balls_0"
    assert not any("--xla" in command.arguments for command in steps.training)
    assert all("--xla" in command.arguments for command in paper.plan(paper.Arguments(xla=True)).training)
    assert not any("rmc" in c.run and "8" in c.arguments[c.arguments.index("--n_slots") + 1] for c in steps.prediction)


@pytest.mark.parametrize("scale", ["paper", "small"])
def test_every_training_command_is_one_that_training_takes(scale):
    for command in paper.plan(paper.Arguments(scale=scale, models=("sqair", "in", "rmc", "rmc_slots"))).training:
        arguments = train.parse(command.arguments[2:])
        assert arguments.run_dir == command.run
        assert str(arguments.config.train.seed) == command.run.rsplit("_", 1)[1]


def test_given_data_files_are_used_and_not_made(tmp_path):
    steps = paper.plan(paper.Arguments(data_4=tmp_path / "a.h5", data_678=tmp_path / "b.h5", seeds=(0,)))
    assert steps.data == []
    assert all(str(tmp_path / "a.h5") in command.arguments for command in steps.training)
    assert {c.arguments[c.arguments.index("--data") + 1] for c in steps.prediction} == {
        str(tmp_path / "a.h5"), str(tmp_path / "b.h5")}


def test_a_failure_does_not_stop_the_others_and_finished_ones_are_skipped(tmp_path, capsys):
    def command(name, code):
        return paper.Command(["-c", code], tmp_path / name, tmp_path / "logs" / f"{name}.log")

    (tmp_path / "there").write_text("")
    commands = [command("there", "raise SystemExit(7)"), command("bad", "print('why'); raise SystemExit(3)"),
                command("good", f"open({str(tmp_path / 'good')!r}, 'w')")]
    failed = paper.run_stage(commands, 2)
    output = capsys.readouterr().out
    assert failed == [commands[1]] and (tmp_path / "good").exists()
    assert "there already" in output and "exit code 3" in output
    log = (tmp_path / "logs" / "bad.log").read_text()
    assert log.startswith("$ python -c") and "why" in log


def test_dry_run_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["paper", "--dry_run", "--seeds", "0", "--models", "in"])
    assert paper.main() == 0
    assert "sqair.train --preset rsqair_in" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_impossible_arguments_are_refused():
    with pytest.raises(UserError, match="--jobs"):
        paper.Arguments(jobs=0)
