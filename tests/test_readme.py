"""README's shell blocks, and those of docs/cluster.md, run as scripts: with our run.sh, but with programs that only
record their arguments.

The recorded arguments are then parsed by the command that they are for.
"""

import importlib
import json
import os
import re
import subprocess
import sys

import pytest
import tyro

from data_gen.console import parse
from eval import paper
from eval.options import FIGURES
from sqair import options as sqair_options
from tests.checkout_helpers import make_checkout, write_script
from tests.data_helpers import ROOT

# Except blocks that a comment before them marks as tested elsewhere.
BLOCKS = [
    block
    for name in ("README.md", "docs/cluster.md")
    for block in re.findall(r"(?<!-->\n)^```bash\n(.*?)^```$", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
]
IS_JOB = "#SBATCH"

# Records its name, its arguments and the environment variables that matter.
NOTE = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["NOTED"], "a") as file:
    noted = [os.path.basename(sys.argv[0]), sys.argv[1:], os.environ.get("TF_CONFIG"), os.getcwd()]
    file.write(json.dumps(noted) + "\\n")
if sys.argv[1:2] == ["-c"]:
    exec(sys.argv[2])
"""

# Imitations of SLURM's programs, as far as README uses them.
SBATCH = """#!/bin/bash
[[ $(head -c 2 "$1") == '#!' ]] || { echo "This does not look like a batch script" >&2; exit 1; }
export SLURM_JOB_NODELIST='host[0-1]'
last=$(sed -n 's/^#SBATCH.*--array=0-\\([0-9]*\\).*/\\1/p' "$1")
for i in $(seq 0 "${last:-0}"); do SLURM_ARRAY_TASK_ID=$i bash "$1" || exit; done
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for i in 0 1; do SLURM_PROCID=$i "$@" || exit; done
"""
SCONTROL = """#!/bin/bash
[[ "$*" == 'show hostnames host[0-1]' ]] && printf 'host0\\nhost1\\n'
"""


def parse_as(name, words):
    """Parses options as the module of that name does."""
    module, options = importlib.import_module(name), {}
    if name == "sqair.train":
        return sqair_options.parse(words)
    if name == "eval.figures":
        kind = FIGURES[words[0] if words[0] in FIGURES else "sequences"]
        return parse(kind, name, words[words[0] in FIGURES :])
    if name == "data_gen.bouncing_balls":
        options = {"default": module.CommandLine(out=tyro.MISSING, settings=module.PRESETS["balls4mass64"])}
    return parse(getattr(module, "Arguments", None) or module.CommandLine, name, words, **options)


@pytest.fixture
def run_block(tmp_path, monkeypatch):
    """Runs a block; returns the recorded calls."""
    checkout = make_checkout(tmp_path / "r-sqair", python=NOTE)
    for name in ("pip", "jupyter", "tensorboard"):
        write_script(checkout / ".venv" / "bin" / name, NOTE)
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        write_script(tmp_path / "bin" / name, text)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTED", str(tmp_path / "noted"))

    def run(block):
        script = tmp_path / "block.sh"
        script.write_text(block)
        command = ["sbatch", script] if IS_JOB in block else ["bash", "-eu", script]
        result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=100)
        assert result.returncode == 0 and "not found" not in result.stderr, result.stderr
        lines = [json.loads(line) for line in (tmp_path / "noted").read_text().splitlines()]
        return checkout, [line for line in lines if line[1][:1] != ["-c"]]  # the set-up asks for the version

    return run


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0][:40] for block in BLOCKS])
def test_it_is_a_script_of_commands_that_there_are(block, run_block):
    checkout, noted = run_block(block)
    assert noted
    for program, words, _, folder in noted:
        assert folder == str(checkout)
        if program == "python" and words[1] != "pytest":
            assert words[0] == "-m"
            try:
                parse_as(words[1], words[2:])
            except SystemExit as stop:
                assert stop.code == 0 and "--help" in words, words
        elif program == "pip":
            assert words[:2] == ["install", "-e"]
            extra = re.fullmatch(r"\.(?:\[(.*)\])?", words[2])[1]
            assert not extra or f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
        elif program == "jupyter":
            assert (ROOT / words[-1]).is_file()


def test_the_array_job_trains_every_model_and_seed_where_the_paper_looks_for_it(run_block):
    (block,) = (block for block in BLOCKS if "--array" in block)
    _, noted = run_block(block)
    asked = [sqair_options.parse(words[2:]) for _, words, _, _ in noted]
    planned = [sqair_options.parse(command.arguments[2:]) for command in paper.plan(paper.Arguments()).training]
    assert sorted((a.run_dir, str(a.config)) for a in asked) == sorted((p.run_dir, str(p.config)) for p in planned)


def test_the_job_of_two_machines_tells_each_worker_the_others(run_block):
    (block,) = (block for block in BLOCKS if "srun" in block)
    _, noted = run_block(block)
    configs = [json.loads(config) for _, _, config, _ in noted]
    assert [config["task"] for config in configs] == [{"type": "worker", "index": i} for i in (0, 1)]
    assert {tuple(config["cluster"]["worker"]) for config in configs} == {("host0:2222", "host1:2223")}
