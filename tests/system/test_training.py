"""Training by its real command: its files, how it continues after a kill, and repeatability.

Also what only separate processes show: discs that are full or vanish, and memory.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import tensorflow as tf

from data_gen import bouncing_balls
from eval.predictions import Predictions
from sqair.runs import loading
from tests.data_helpers import ROOT, run_command
from tests.eval_helpers import save_run
from tests.run_helpers import assert_same
from tests.train_helpers import STEPS, command, config, error_line, execute, make_data, newest, rows

pytestmark = pytest.mark.slow
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = execute(command(config(data, shards=2), folder))
    assert result.returncode == 0, result.stderr[-2000:]
    return folder


def test_a_run_leaves_what_it_promises(finished, data):
    flags = json.loads((finished / "flags.json").read_text())
    assert flags["n_what"] == 2 and flags["train_data"] == str(data)
    versions = json.loads((finished / "versions.json").read_text())
    assert versions["tensorflow"] == tf.__version__ and "git_commit" in versions
    assert json.loads((finished / "finished.json").read_text())["step"] == STEPS
    log = (finished / "train.log").read_text()
    for split, n in (("training", 40), ("validation", 16)):
        assert f"{data}: {split} holds {n} sequences of 4 frames, 64 x 64, bool\n" in log
    batches = [row for row in rows(finished) if row["data"] == "batch"]
    assert [int(row["step"]) for row in batches] == list(range(1, STEPS + 1))
    assert [int(row["length"]) for row in batches] == [2] * 8 + [3] * 4
    assert all(np.isfinite(float(row["iwae"])) for row in rows(finished))
    assert {row["data"] for row in rows(finished)} == {"batch", "validation", "training"}
    assert list(finished.glob("events.out.tfevents.*"))
    assert len(list((finished / "checkpoints").glob("*.index"))) == 3
    assert len(list((finished / "best").glob("*.index"))) == 1


def test_signals_are_answered_while_a_step_is_compiled(data, tmp_path):
    folder = tmp_path / "run"
    words = command(config(data, seq_len=4, stage_itr=0, max_seq_len=4), folder)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line == "compiling the training step at length 4 ...\n":
            break
    time.sleep(1)
    process.terminate()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors[-2000:]
    assert output == "stopped by signal 15 at step 0; the same command goes on from here\n"
    assert "Traceback" not in errors
    assert (folder / "run.lock").read_text() == ""  # released properly
    assert loading.find_checkpoint(folder, "newest")[1].endswith("step-0")


def test_a_killed_run_ends_as_if_it_had_not_been(finished, data, tmp_path):
    """By one signal after another, each at a random moment."""
    folder, rng, hit = tmp_path / "killed", np.random.default_rng(0), 0
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            command(config(data, shards=2), folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        steps = rng.integers(1, 3)
        for line in process.stdout:
            steps -= line.startswith("step ")
            if steps == 0 or line.startswith("finished"):
                break
        time.sleep(float(rng.uniform(0, 0.15)))
        process.send_signal(how)
        process.stdout.read()
        code = process.wait(timeout=120)
        if not (folder / "finished.json").exists():  # otherwise it finished before the signal
            assert code == (-how if how == signal.SIGKILL else 128 + how)
            hit += 1
    assert hit
    result = execute(command(config(data, shards=2), folder))
    assert result.returncode == 0, result.stderr[-2000:]
    assert_same(newest(folder), newest(finished))
    assert (folder / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()


def test_a_full_disc_stops_the_run_which_goes_on_when_there_is_room(finished, data, tmp_path):
    """A file system of 1.9 MB, which holds two checkpoints and not three, and then one of 64 MB."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no user mount a file system of his own")
    settings, small, out = config(data, shards=2), tmp_path / "small", tmp_path / "out"
    small.mkdir()
    script = """mount -t tmpfs -o size=1900k tmpfs "$1"; shift
                small=$1 out=$2; shift 2
                "$@" >"$out.first" 2>"$out.error"; echo $? >"$out.code"
                cp -r "$small/run" "$out.full"
                mount -o remount,size=64m "$small" && "$@" && cp -r "$small/run" "$out" """
    result = execute(["unshare", "-rm", "sh", "-c", script, "sh", small, small, out, *command(settings, small / "run")])
    assert result.returncode == 0, result.stderr[-2000:]
    error = (tmp_path / "out.error").read_text()
    assert (tmp_path / "out.code").read_text() == "1\n" and "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and str(small / "run") in lines[0] and "No space left on device" in lines[0]
    assert not list((tmp_path / "out.full").rglob("*.part"))
    assert loading.find_checkpoint(tmp_path / "out.full", "newest")[1].endswith("step-4")
    assert_same(newest(out), newest(finished))
    assert (out / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()


def test_a_removed_run_folder_stops_the_run(data, tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    process = subprocess.Popen(
        command(config(data, train_itr=100_000), folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step 3 "):
            break
    folder.rename(elsewhere)  # atomically, unlike `rm -r`
    shutil.rmtree(elsewhere)
    _, errors = process.communicate(timeout=300)
    line = error_line(subprocess.CompletedProcess([], process.returncode, stderr=errors))
    assert str(folder) in line and "No such file or directory" in line
    assert not folder.exists()


def _without_privileges():
    """Makes permissions apply to root too."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def test_read_only_folders_are_one_line(data, tmp_path):
    """No new run, no continued run and no checkpoint in one."""

    def start(folder):
        return subprocess.run(
            command(config(data, eval_on_train=False), folder),
            capture_output=True,
            text=True,
            timeout=300,
            preexec_fn=_without_privileges,
        )

    locked, run = tmp_path / "locked", tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    locked.mkdir()
    for folder in (locked, run, run / "checkpoints"):
        folder.chmod(0o555)
    try:
        assert f"{locked / 'run'}: cannot be written (Permission denied)" in error_line(start(locked / "run"))
        assert f"{run}: cannot be written (Permission denied)" in error_line(start(run))
        run.chmod(0o755)
        line = error_line(start(run))
        assert f"{run / 'checkpoints'}/step-0" in line and "Permission denied" in line
    finally:
        for folder in (locked, run, run / "checkpoints"):
            folder.chmod(0o755)
    assert not list(locked.iterdir()) and not list((run / "checkpoints").iterdir())


def test_the_same_seed_gives_the_same_data_bounds_and_predictions(finished, data, tmp_path):
    """By the real commands; equal weights are tested above."""
    again = tmp_path / "balls.h5"
    result = run_command(
        "data_gen.bouncing_balls", "--n_frames", 4, "--training", 40, "--validation", 16, "--test", 16, "--out", again
    )
    assert result.returncode == 0 and again.read_bytes() == data.read_bytes()

    def evaluated(name):
        out, members = tmp_path / f"{name}.json", {}
        predicted = tmp_path / f"{name}.h5"
        for module, path in (("eval.likelihood", out), ("eval.predict", predicted)):
            result = run_command(module, "--run", finished, "--data", data, "--n_frames", 4, "--out", path)
            assert result.returncode == 0, result.stderr[-2000:]
        with h5py.File(predicted) as file:
            file.visititems(lambda name, item: members.update({name: item[:]}) if hasattr(item, "shape") else None)
        return re.sub(r'"(run|data|checkpoint|out|command)": [^\n]*', "", out.read_text()), members

    (bounds, predictions), (bounds_again, predictions_again) = evaluated("one"), evaluated("two")
    assert '"iwae"' in bounds and bounds.replace("one.json", "two.json") == bounds_again
    assert "rollout/what" in predictions
    assert_same(predictions, predictions_again)


# The same four steps, again and again from the same weights.
STEPS_AGAIN = """
import sys
import tensorflow as tf
from data_gen import pipeline
from sqair import train
arguments = train.parse(sys.argv[1:])
settings = arguments.config.train
train.use_machine(settings)
trainer = train.Trainer(arguments.config, arguments.run_dir)
variables = [*trainer.model.trainable_variables, *trainer.optimizer.variables]
start = [v.numpy() for v in variables]
batches = pipeline.batches(settings.train_data, "training", settings.batch_size, settings.max_seq_len)
found = []
for _ in range(4):
    for variable, value in zip(variables, start):
        variable.assign(value)
    results = [trainer.train_step(*batch, tf.constant(i, tf.int64), tf.constant(1e-5))
               for i, batch in enumerate(batches.take(4))]
    found.append([x.numpy().tobytes() for x in [*tf.nest.flatten(results), *variables]])
assert any(v.numpy().tobytes() != x.tobytes() for v, x in zip(variables, start))
assert all(again == found[0] for again in found), "not the same"
"""


def test_steps_at_full_size_are_the_same_each_time(data, tmp_path):
    """Gradients of the paper's model are sums of many terms, which must be added in one order."""
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            STEPS_AGAIN,
            "--preset",
            "sqair_balls",
            "--train_data",
            data,
            "--seq_len",
            "3",
            "--max_seq_len",
            "3",
            "--batch_size",
            "16",
            "--run_dir",
            tmp_path / "run",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def peak_memory(*arguments):
    """MB (10^6 bytes) that `python -m ARGUMENTS` held at most."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024 / 1e6


@pytest.fixture(scope="module")
def many_sequences(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "balls.h5"
    bouncing_balls.write(bouncing_balls.BouncingBalls(n_frames=20, training=0, validation=0, test=800), path)
    return path


@pytest.mark.parametrize("module", ["eval.likelihood", "eval.predict"])
def test_memory_of_an_evaluation_does_not_grow_with_the_data(many_sequences, tmp_path, module):
    data, n_frames, few, many = many_sequences, 20, 64, 800
    samples = ("--n_samples", 1) if module == "eval.predict" else ()
    run = save_run(tmp_path / "run", k_particles=1)
    frames = many * n_frames * 50 * 50 * 4 / 1e6
    few, many = (
        peak_memory(
            module,
            "--run",
            run,
            "--data",
            data,
            "--n_frames",
            n_frames,
            "--k_particles",
            1,
            "--n_sequences",
            n,
            "--out",
            tmp_path / f"{n}",
            *samples,
        )
        for n in (few, many)
    )
    assert many - few < frames / 4, (few, many, frames)


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    """The real command on a video of 700 frames, whose canvases alone would take 84 MB."""
    rng, side, n_frames = np.random.default_rng(0), 50, 700
    with h5py.File(tmp_path / "long.h5", "w") as file:
        file.create_dataset(
            "test/features",
            data=(rng.random((n_frames, 1, side, side, 1)) < 0.02) * np.uint8(255),
            chunks=(10, 1, side, side, 1),
            compression="gzip",
        )
        file.attrs["white"] = 255
    run = save_run(tmp_path / "for_long")
    peaks = []
    for frames in (100, n_frames):
        out = tmp_path / f"long_{frames}.h5"
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "eval.predict",
                "--run",
                run,
                "--data",
                tmp_path / "long.h5",
                "--n_frames",
                str(frames),
                "--n_samples",
                "1",
                "--k_particles",
                "12",
                "--out",
                out,
                "--batch_size",
                "1",
                "--canvases",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0, errors
        assert "compiling the model for 1 x 12 particles, 3 slots ..." in errors
        peaks.append(usage.ru_maxrss / 1024)  # MB
        with Predictions(out) as predictions:
            assert predictions.sizes["T"] == frames
            assert np.isfinite(predictions["inference/data_ll"][:]).all()
            assert (predictions["rollout/data_ll"][:] != 0).all() and predictions["truth/frames"][:, -1].any()
    assert peaks[1] < peaks[0] + 60, peaks
