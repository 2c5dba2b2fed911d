"""Training over replicas: two real processes on this machine, or two logical devices, against one process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.data_helpers import ROOT
from tests.train_helpers import command, config, error_line, execute, free_ports, make_data

pytestmark = pytest.mark.slow
STEPS, EARLY = 24, 6  # the whole run; where it is compared with one process
TWO_DEVICES = """
import sys
import tensorflow as tf
from data_gen.console import run_cli
from sqair import train
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
run_cli(train.main)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, n_frames=2)


def distributed(data, **training):
    """A tiny run of one slot and two frames, whose every second step is kept."""
    short = dict(
        seq_len=2,
        max_seq_len=2,
        stage_itr=0,
        schedule="",
        train_itr=STEPS,
        save_itr=2,
        log_itr=STEPS,
        fig_itr=STEPS,
        keep_checkpoints=STEPS,
        eval_on_train=False,
        distribute="multi_worker",
    )
    return config(data, {"n_steps_per_image": 1}, **{**short, **training})


class Workers:
    """Two workers; the second has a separate run folder, in which nothing must appear."""

    def __init__(self, config_, folder):
        self.folder = folder
        addresses = [f"localhost:{port}" for port in free_ports(2)]
        self.processes, self._outputs = [], []
        for i, run_dir in enumerate((folder, folder.parent / "second")):
            tf_config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
            self._outputs.append(folder.parent / f"{time.monotonic_ns()}.txt")
            with open(self._outputs[-1], "w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command(config_, run_dir),
                        stdout=file,
                        stderr=file,
                        env={**os.environ, "TF_CONFIG": json.dumps(tf_config)},
                    )
                )

    def wait_for(self, step):
        """Waits until the chief has reported a step."""
        log = self.folder / "train.log"
        while not (log.exists() and re.search(rf"^step {step} ", log.read_text(), re.MULTILINE)):
            assert self.processes[0].poll() is None, self.output(0)[-2000:]
            time.sleep(0.02)

    def finish(self):
        """The exit codes."""
        codes = [process.wait(timeout=300) for process in self.processes]
        assert not (self.folder.parent / "second").exists()
        return codes

    def output(self, i):
        return self._outputs[i].read_text()


def saved(folder, step):
    """All values of a run at a step."""
    reader = tf.train.load_checkpoint(str(folder / "checkpoints" / f"step-{step}"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name}


def assert_same_but_for_rounding(folder, other):
    """Weights and optimiser of two runs have changed alike, to 2e-4 of each variable's largest change.

    Sums over the batch are taken in another order: after 6 steps we saw differences of up to 2.1e-5 of it. An error
    in a part of the batch, of its noise or of the mean makes differences of the order of 1. rtol is for variables that
    have hardly changed, where only the last bits of their values differ.
    """
    start, first, second = saved(folder, 0), saved(folder, EARLY), saved(other, EARLY)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if "best" not in name:
            change = np.abs(value - start[name]).max(initial=0)
            np.testing.assert_allclose(second[name], value, rtol=1e-6, atol=2e-4 * change, err_msg=name)
    changed = [name for name, value in first.items() if "best" not in name and not np.array_equal(value, start[name])]
    assert len(changed) > 0.9 * len(first)


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """The first steps of the run on one device."""
    folder = tmp_path_factory.mktemp("one") / "run"
    result = execute(command(distributed(data, distribute="none", train_itr=EARLY), folder))
    assert result.returncode == 0, result.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """The run on two workers without interruption."""
    folder = tmp_path_factory.mktemp("two") / "run"
    workers = Workers(distributed(data), folder)
    assert workers.finish() == [0, 0], workers.output(0)[-2000:]
    return folder


def test_two_workers_compute_what_one_does(one, two):
    assert_same_but_for_rounding(one, two)
    assert "2 replicas, 4 sequences each" in (two / "train.log").read_text()


def test_two_devices_compute_what_one_does(data, one, tmp_path):
    folder = tmp_path / "run"
    words = command(distributed(data, distribute="mirrored", train_itr=EARLY), folder)
    result = execute([sys.executable, "-c", TWO_DEVICES, *words[3:]])
    assert result.returncode == 0, result.stderr[-2000:]
    assert "2 replicas, 4 sequences each" in (folder / "train.log").read_text()
    assert_same_but_for_rounding(one, folder)


def test_a_batch_that_does_not_split(data, tmp_path):
    words = command(distributed(data, distribute="mirrored", batch_size=7), tmp_path / "run")
    assert "batch_size 7 cannot be split over 2 replicas" in error_line(
        execute([sys.executable, "-c", TWO_DEVICES, *words[3:]])
    )


def test_stopped_and_killed_workers_go_on(data, two, tmp_path):
    folder = tmp_path / "run"
    workers = Workers(distributed(data), folder)
    workers.wait_for(3)
    workers.processes[1].send_signal(signal.SIGTERM)  # all stop, at one step
    assert workers.finish() == [143, 143], workers.output(0)[-2000:]

    workers = Workers(distributed(data), folder)
    workers.wait_for(12)
    workers.processes[1].kill()
    killed = time.monotonic()
    assert workers.finish() == [1, -signal.SIGKILL], workers.output(0)[-2000:]
    assert time.monotonic() - killed < 120
    lines = [line for line in workers.output(0).splitlines() if line.startswith("error:")]
    found = re.search(r"worker 1 \(localhost:\d+\) has gone.* start all workers again .* from step (\d+)$", lines[0])
    assert len(lines) == 1 and found and "Traceback" not in workers.output(0)
    newest = max(int(path.stem.split("-")[1]) for path in (folder / "checkpoints").glob("*.index"))
    assert int(found[1]) == newest >= 12

    workers = Workers(distributed(data), folder)
    assert workers.finish() == [0, 0], workers.output(0)[-2000:]
    assert f"going on from {folder}/checkpoints/step-{newest}" in (folder / "train.log").read_text()
    expected, got = saved(two, STEPS), saved(folder, STEPS)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_a_worker_that_answers_but_does_not_join_ends_the_others():
    with socket.socket() as silent:
        silent.bind(("", 0))
        silent.listen()
        other, own = f"localhost:{silent.getsockname()[1]}", f"localhost:{free_ports(1)[0]}"
        for index, addresses in ((1, [other, own]), (0, [own, other])):
            tf_config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            result = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "from sqair.training import multi_worker, replicas\n"
                    "multi_worker.CONNECT_SECONDS = 2\nreplicas.Distribution('multi_worker')",
                ],
                capture_output=True,
                text=True,
                timeout=100,
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(tf_config)},
            )
            assert result.returncode == 1, result.stderr[-2000:]
            (error,) = (line for line in result.stderr.splitlines() if line.startswith("error:"))
            assert f"worker {index} ({own}) answered the others, but not all of them joined within 2 s" in error
            assert "Traceback" not in result.stderr
