"""The paper's plan at tiny size, and the processes that it starts."""

import os
import pathlib
import sys
import time

from eval import paper

TINY = paper.Scale(
    {paper.TRAIN_ON: dict(n_frames=10, training=16, validation=8, test=8), paper.TEST_ON: dict(n_frames=10, test=8)},
    [
        "--n_units",
        "1",
        "--n_what",
        "2",
        "--glimpse_size",
        "6",
        "--k_particles",
        "2",
        "--batch_size",
        "8",
        "--shards",
        "1",
        "--train_itr",
        "2",
        "--seq_len",
        "2",
        "--stage_itr",
        "0",
        "--max_seq_len",
        "2",
        "--log_itr",
        "2",
        "--report_loss_every",
        "1",
        "--save_itr",
        "1",
        "--fig_itr",
        "100",
        "--no-eval_on_train",
        "--patience",
        "0",
    ],
    ["--n_frames", "3", "--n_samples", "2", "--canvases"],
)


def arguments(folder, **changes):
    where = dict(runs=folder / "runs", results=folder / "results", data_dir=folder / "data")
    return paper.Arguments(**{"scale": "small", "models": ("sqair",), "seeds": (0,), **where, **changes})


def call_main(monkeypatch, folder, *options):
    where = [word for name in ("runs", "results") for word in (f"--{name}", str(folder / name))]
    where += ["--data_dir", str(folder / "data")]
    monkeypatch.setattr(sys, "argv", ["paper", "--scale", "small", *where, *options])
    return paper.main()


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
