"""Hostile and broken files: dozens of damaged ones of each format (`tests.fuzz`), each read or refused in one line.

Every case is deterministic. FUZZ_CASES=5000 in the environment tries 5,000 cases of each format instead of 60. What
crashes, hangs, takes more than 2 GB or ends in another exception than `UserError` fails, with the case and how it was
damaged.
"""

import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
import time

import h5py
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_gen import bouncing_balls
from data_gen.errors import LONGEST_MESSAGE, UserError
from sqair.config import Config, from_flags, to_flags
from tests.data_helpers import ROOT, run_command, run_here
from tests.eval_helpers import save_run
from tests.fuzz.formats import FORMATS
from tests.fuzz.hdf5 import packed_zeros
from tests.mnist_helpers import Danger, release_data

CASES = int(os.environ.get("FUZZ_CASES", 60))
HANGS = 1200  # looks, a tenth of a second apart, without a new case
MEMORY_MB = 2000
MOST_CRASHES = 20

# Formats that one process reads, after another: TensorFlow is loaded for the last ones only.
PROCESSES = (
    ("hdf5", "predictions", "pickle", "digits", "flags", "csv"),
    ("pipeline", "curves", "metrics", "checkpoint", "values", "original", "safetensors"),
)


def memory_mb(process):
    """The memory of a process, which may have ended, in MB."""
    try:
        found = re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{process.pid}/status").read_text())
    except OSError:
        found = None
    return int(found[1]) // 1024 if found else 0


def watch(process, log):
    """Waits for a process; ends it if it hangs or takes too much memory, and says so."""
    size, looks = -1, 0
    while process.poll() is None:
        time.sleep(0.1)
        looks += 1  # counted, not timed: a machine that stalls for a minute stalls this process too
        if log.exists() and log.stat().st_size != size:
            size, looks = log.stat().st_size, 0
        memory = memory_mb(process)
        if memory > MEMORY_MB or looks > HANGS:
            process.kill()
            process.wait()
            return f"takes {memory} MB" if memory > MEMORY_MB else "hangs"
    return f"ends the process with code {process.returncode}" if process.returncode else ""


def try_cases(folder, formats, n):
    """Tries n cases of each format; returns the notes about them, and what crashes, hangs or takes too much memory."""
    log, crashes = folder / "cases.jsonl", []
    while len(crashes) < MOST_CRASHES:
        with open(folder / "stderr", "w+") as stderr:
            command = [sys.executable, "-m", "tests.fuzz", folder, str(n), *formats]
            process = subprocess.Popen(command, cwd=ROOT, stdout=stderr, stderr=stderr)
            try:
                trouble = watch(process, log)
            finally:
                process.kill()
                process.wait()
            stderr.seek(0)
            if not trouble:
                break
            last = json.loads(log.read_text().splitlines()[-1]) if log.exists() else {}
            assert "damage" in last, f"{trouble} outside of a case, after {last}: {stderr.read()[-2000:]}"
            crashes.append(f"{last['format']} {last['case']} {trouble}: {last['damage']}")
    rows = list(map(json.loads, log.read_text().splitlines()))
    return [
        {**begun, **row}
        for begun in rows
        if "damage" in begun
        for row in rows
        if "problem" in row and (row["format"], row["case"]) == (begun["format"], begun["case"])
    ], crashes


@pytest.mark.slow
@pytest.mark.parametrize("formats", PROCESSES, ids=" ".join)
def test_broken_files_are_read_or_refused_in_one_line(formats, tmp_path):
    tried, crashes = try_cases(tmp_path, formats, CASES)
    problems = crashes + [
        f"{row['format']} {row['case']}: {row['damage']}: {row['problem']}" for row in tried if row["problem"]
    ]
    assert not problems, f"{len(problems)} of {len(tried)}:\n" + "\n".join(problems[:10])
    assert max(row["memory_mb"] for row in tried) < MEMORY_MB
    for name in formats:
        refused = [row["refused"] for row in tried if row["format"] == name]
        assert len(refused) >= CASES * FORMATS[name].share and not all(refused), name
        assert any(refused) or name == "csv", name  # of a table, only what is damaged is dropped


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["GRU", "in", "adam", "-2,1", "nan", "1e999"]),
    lambda values: (st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=3)),
    max_leaves=6,
)
FLAG = st.sampled_from(sorted(to_flags(Config())))


@settings(
    max_examples=max(CASES, 100),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.dictionaries(FLAG | st.text(max_size=5), JSON, max_size=3))
@example({"scale_prior": 10**400})
def test_any_flags_make_a_configuration_that_lasts_or_one_line(flags):
    try:
        config, unknown = from_flags(flags)
    except UserError as error:
        message = str(error)
        assert message.startswith("flag") and message.isprintable() and len(message) <= LONGEST_MESSAGE
    else:
        assert unknown == sorted(set(flags) - set(to_flags(config)))
        assert from_flags(json.loads(json.dumps(to_flags(config)))) == (config, [])


@settings(max_examples=max(CASES, 100), derandomize=True, deadline=None, database=None)
@given(st.text(max_size=3 * LONGEST_MESSAGE))
def test_errors_are_one_short_line_whatever_they_quote(text):
    message = str(UserError(f"name: {text} advice"))
    assert message.startswith("name:") and message.endswith("advice") and message.isprintable()
    assert len(message) <= LONGEST_MESSAGE


# --- the commands ---


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A data file and a run, as they should be."""
    folder = tmp_path_factory.mktemp("sound")
    balls = bouncing_balls.BouncingBalls(n_frames=2, training=4, validation=4, test=4)
    bouncing_balls.write(balls, folder / "balls.h5")
    save_run(folder / "run")
    (folder / "release.pickle").write_bytes(pickle.dumps(release_data(), 2))
    return folder


def cut(path, size=1000):
    path.write_bytes(path.read_bytes()[:size])


def bomb(path):
    with h5py.File(path, "r+") as file:
        shape = (2, 4, 64, 64, 1)
        del file["test/features"]
        data = file.create_dataset("test/features", shape, "u1", chunks=shape, compression="gzip")
        data.id.write_direct_chunk((0,) * 5, packed_zeros(3 * 2**30))


LIKELIHOOD = ("eval.likelihood", "--run", "run", "--data", "balls.h5", "--n_frames", 2)
TRAIN = (
    "sqair.train",
    "--preset",
    "sqair_balls",
    "--train_data",
    "balls.h5",
    "--max_seq_len",
    2,
    "--batch_size",
    2,
    "--run_dir",
    "new",
)
CONVERT = ("data_gen.moving_mnist", "--from_pickle", "release.pickle", "--out", "out.h5")
DIGITS = ("data_gen.moving_mnist", "--digits", "digits", "--digit_labels", "labels", "--out", "out.h5")
TABLES = ("eval.tables", "--predictions", "balls.h5", "--out", "out")
COMMANDS = {
    "pickle cut": (lambda f: cut(f / "release.pickle"), CONVERT),
    "pickle runs code": (lambda f: (f / "release.pickle").write_bytes(pickle.dumps(Danger(f / "made"), 2)), CONVERT),
    "pickle of junk": (lambda f: (f / "release.pickle").write_bytes(os.urandom(1000)), CONVERT),
    "pickle missing": (lambda f: (f / "release.pickle").unlink(), CONVERT),
    "digits of junk": (lambda f: [(f / name).write_bytes(b"junk" * 99) for name in ("digits", "labels")], DIGITS),
    "digits missing": (lambda f: None, DIGITS),
    "predictions are data": (lambda f: None, TABLES),
    "predictions cut": (lambda f: cut(f / "balls.h5"), TABLES),
    "figures of junk": (
        lambda f: (f / "m.json").write_text('{"metrics": [[' + "[" * 10**5),
        ("eval.figures", "figure4", "--metrics", "m.json", "--out", "out.png"),
    ),
    "data cut": (lambda f: cut(f / "balls.h5"), TRAIN),
    "data a bomb": (lambda f: bomb(f / "balls.h5"), LIKELIHOOD),
    "flags too large": (
        lambda f: (f / "run/flags.json").write_text('{"n_units": 256, "image_shape": [4096, 4096]}'),
        LIKELIHOOD,
    ),
    "checkpoint cut": (lambda f: cut(next((f / "run").rglob("*.data*"))), LIKELIHOOD),
    "checkpoint index of junk": (
        lambda f: next((f / "run").rglob("*.index")).write_bytes(b"\0" * 500),
        ("sqair.export", "original", "run", "new"),
    ),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_commands_end_in_one_error_line(kind, sound, tmp_path):
    folder = tmp_path / "case"
    shutil.copytree(sound, folder)
    spoil, (module, *arguments) = COMMANDS[kind]
    spoil(folder)
    before = sorted(folder.rglob("*"))
    names = ("run", "new", "out", "out.h5", "out.png", "balls.h5", "release.pickle", "digits", "labels", "m.json")
    call = run_command if module == "sqair.train" else run_here  # it sets TensorFlow up as it needs it
    done = call(module, *(folder / word if word in names else word for word in arguments))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 1 and len(lines) == 1 and str(folder) in lines[0], done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert [
        path for path in folder.rglob("*") if path.is_file() and path not in before and path.name != "run.lock"
    ] == []
