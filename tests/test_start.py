"""Commands start quickly: options and files are checked before anything that takes seconds to import."""

import os
import re
import signal
import subprocess
import sys

import pytest

from data_gen import bouncing_balls
from tests.data_helpers import ROOT

START = """
import sys
from eval import console
heavy = "tensorflow sonnet tensorflow_probability scipy matplotlib motmetrics pandas sklearn".split()
for name in sys.argv[2:]:
    sys.argv = [name, sys.argv[1]]
    try:
        getattr(console, name)()
    except SystemExit as stop:
        print(name, stop.code, [package for package in heavy if package in sys.modules])
"""


@pytest.mark.parametrize("option, code", [("--help", 0), ("--no_such_option", 2)])
def test_no_command_imports_what_is_slow_for_its_help_or_a_wrong_option(option, code):
    names = re.findall(r'"eval\.console:(\w+)"', (ROOT / "pyproject.toml").read_text())
    result = subprocess.run([sys.executable, "-c", START, option, *names], cwd=ROOT, capture_output=True, text=True)
    said = [line for line in result.stdout.splitlines() if line.split(" ")[0] in names]
    assert said == [f"{name} {code} []" for name in names], result.stderr[-2000:]


FAKE_TENSORFLOW = """
import os
for line in ("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
             "I0000 00:00:1.1   1 port.cc:153] oneDNN custom operations are on. You may see",
             "I0000 00:00:1.1   1 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU is not used",
             "F0000 00:00:1.1   1 cpu_feature_guard.cc:97] The TensorFlow library was compiled to use AVX"):
    os.write(2, line.encode() + b"\\n")
os.abort()
"""


def test_training_speaks_before_tensorflow_whose_errors_alone_are_passed_on(tmp_path):
    (tmp_path / "tensorflow.py").write_text(FAKE_TENSORFLOW)
    settings = bouncing_balls.BouncingBalls(n_frames=3, training=4, validation=4, test=0)
    bouncing_balls.write(settings, tmp_path / "data.h5")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "sqair.train",
            "--preset",
            "rsqair_in",
            "--train_data",
            str(tmp_path / "data.h5"),
            "--run_dir",
            str(tmp_path / "run"),
        ],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == -signal.SIGABRT
    assert result.stdout.startswith(f"{tmp_path}/run: relation in, data ")
    assert [line for line in result.stderr.splitlines() if ".cc:" in line or "absl" in line] == [
        "F0000 00:00:1.1   1 cpu_feature_guard.cc:97] The TensorFlow library was compiled to use AVX"
    ]


def test_training_names_missing_data_before_tensorflow_is_imported(tmp_path):
    (tmp_path / "tensorflow.py").write_text(FAKE_TENSORFLOW)
    result = subprocess.run(
        [sys.executable, "-m", "sqair.train", "--train_data", "nowhere.h5", "--run_dir", str(tmp_path / "run")],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (result.returncode, result.stdout) == (1, "") and "nowhere.h5: no such file" in result.stderr
