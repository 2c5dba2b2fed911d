"""Tiny training runs, by the real command and within this process, and readers of their folders."""

import csv
import socket
import subprocess
import sys

import attrs
import pytest
import tensorflow as tf

from data_gen import bouncing_balls
from sqair import config as sqair_config
from sqair import train
from sqair.config import Config, ModelConfig, TrainConfig
from sqair.runs import loading
from tests.data_helpers import run_here

STEPS = 12


def make_data(tmp_path_factory, n_frames=4):
    """A file of a few real sequences."""
    path = tmp_path_factory.mktemp("data") / "balls.h5"
    settings = attrs.evolve(
        bouncing_balls.PRESETS["balls4mass64"], n_frames=n_frames, training=40, validation=16, test=16
    )
    bouncing_balls.write(settings, path)
    return path


def config(data, model=(), **training):
    """A tiny run: lengths 2 (8 steps) and 3, a checkpoint every 4 steps, an evaluation every 6; batches in one piece,
    which takes half as long to trace."""
    tiny = dict(n_what=2, n_units=1, n_steps_per_image=2, glimpse_size=6, k_particles=2, image_shape=(20, 20))
    short = dict(
        train_data=str(data),
        crop=20,
        batch_size=8,
        learning_rate=1e-4,
        seq_len=2,
        stage_itr=8,
        max_seq_len=3,
        train_itr=STEPS,
        save_itr=4,
        log_itr=6,
        report_loss_every=1,
        fig_itr=12,
        patience=0,
        shards=1,
    )
    return Config(ModelConfig(**{**tiny, **dict(model)}), TrainConfig(**{**short, **training}))


def tiniest(data, model=(), **training):
    """The same with one slot and lengths 1 and 2, for what does not depend on them."""
    return config(data, {"n_steps_per_image": 1, **dict(model)}, **{"seq_len": 1, "max_seq_len": 2, **training})


def command(config_, folder, **options):
    flags = {**sqair_config.to_flags(config_), "run_dir": str(folder), **options}
    words = [sys.executable, "-m", "sqair.train"]
    for key, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{key}" if value else f"--no-{key}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{key}", *map(str, value)]
        else:
            words += [f"--{key}", str(value)]
    return words


def execute(words):
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def execute_here(words):
    """The same within this process, which keeps its TensorFlow settings: for commands that fail."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train, "use_machine", lambda _: None)
        return run_here(*words[2:])


def free_ports(n):
    """Ports of this machine on which no process listens."""
    sockets = [socket.socket() for _ in range(n)]
    for socket_ in sockets:
        socket_.bind(("localhost", 0))
    ports = [socket_.getsockname()[1] for socket_ in sockets]
    for socket_ in sockets:
        socket_.close()
    return ports


def error_line(result):
    """The one-line error message of a command that fails."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 1 and len(lines) == 1 and "Traceback" not in result.stderr, result.stderr[-2000:]
    return lines[0]


def newest(folder):
    """All values of a run's newest checkpoint."""
    prefix = loading.find_checkpoint(folder, "newest")[1]
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name}


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))
