"""The guarantees of docs/reliability.md within this process: power losses, damage, full discs, non-finite numbers.

`tests/system/test_training.py` has those that need real runs.
"""

import csv
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import tensorflow as tf

from data_gen.errors import UserError
from sqair.runs import loading, saving
from sqair.runs.folder import MetricsFile, RunLock
from sqair.training.trainer import Trainer
from tests.data_helpers import ROOT, run_here
from tests.eval_helpers import save_run
from tests.model_helpers import eagerly
from tests.run_helpers import assert_same, draw, make_state
from tests.train_helpers import STEPS, config, error_line, make_data, newest, tiniest


@pytest.fixture(scope="module", autouse=True)
def run_eagerly():
    """Small steps are quicker than their tracing."""
    with eagerly():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory)


# Loss of power.


class Disc:
    """What a loss of power would leave of a folder, after every fsync.

    Certain to be on the disc are the bytes of a file at its last fsync and the names in a folder at its last fsync.
    """

    def __init__(self, root, monkeypatch):
        self._root, self._real = root, os.fsync
        self._held = {}  # inode -> descriptor, so that the inode is not reused for another file
        self._bytes, self._names = {}, {}
        self.moments = []
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _listing(self, folder):
        found = {}
        for path in folder.iterdir():
            inode = path.stat().st_ino
            if inode not in self._held:
                self._held[inode] = os.open(path, os.O_RDONLY)
            found[path.name] = (inode, path.is_dir())
        return found

    def _fsync(self, descriptor):
        self._real(descriptor)
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_relative_to(self._root):
            return
        if path.is_dir():
            self._names[path] = self._listing(path)
        else:
            inode = path.stat().st_ino
            self._held.setdefault(inode, os.dup(descriptor))
            self._bytes[inode] = path.read_bytes()
        folders = [self._root, *(p for p in self._root.rglob("*") if p.is_dir())]
        names = {folder: self._listing(folder) for folder in folders}
        inodes = {inode for listing in names.values() for inode, is_folder in listing.values() if not is_folder}
        now = {
            inode: self._read(inode)
            for inode in inodes
            if os.fstat(self._held[inode]).st_size != len(self._bytes.get(inode, b""))
        }
        unsure = any(
            inode in now and "tfevents" not in name
            for listing in names.values()
            for name, (inode, _) in listing.items()
        )
        self.moments.append((dict(self._names), dict(self._bytes), names, now, unsure))

    def _read(self, inode):
        return os.pread(self._held[inode], os.fstat(self._held[inode]).st_size, 0)

    def close(self):
        for descriptor in self._held.values():
            os.close(descriptor)

    def is_unsure(self, moment):
        """Whether a file, except TensorBoard's, which are not flushed, has bytes that may not be on the disc."""
        return self.moments[moment][4]

    def left_at(self, moment, target, rng=None):
        """Makes `target` what is left: what is certain; with `rng`, also all names, and any first bytes of the rest."""
        sure_names, sure_bytes, names, now, _ = self.moments[moment]
        shutil.rmtree(target, ignore_errors=True)

        def fill(source, folder):
            folder.mkdir()
            for name, (inode, is_folder) in (sure_names if rng is None else names).get(source, {}).items():
                if is_folder:
                    fill(source / name, folder / name)
                else:
                    content = sure_bytes.get(inode, b"")
                    if rng is not None and inode in now:
                        content = now[inode][: rng.integers(len(content), len(now[inode]) + 1)]
                    (folder / name).write_bytes(content)

        fill(self._root, target)
        return target


@pytest.fixture(scope="module")
def recorded(data, tmp_path_factory):
    """A run's settings, its folder, its trainer, and what its `Disc` has seen."""
    folder = tmp_path_factory.mktemp("recorded") / "whole"
    settings = tiniest(data, eval_on_train=False, report_loss_every=2)
    with RunLock(folder), pytest.MonkeyPatch.context() as patched:
        disc = Disc(folder, patched)
        trainer = Trainer(settings, str(folder))
        assert trainer.run() == 0
        disc.close()
    return settings, folder, trainer, disc


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
def test_a_loss_of_power_at_any_moment_loses_nothing(recorded, tmp_path, torn):
    settings, whole, trainer, disc = recorded
    rng = np.random.default_rng(torn)
    lines = (whole / "metrics.csv").read_text().splitlines()
    steps = {}
    for moment in range(len(disc.moments)):
        if torn and not disc.is_unsure(moment) and moment < len(disc.moments) - 1:
            continue
        left = disc.left_at(moment, tmp_path / "left", rng if torn else None)
        with RunLock(left):
            prefix, _ = saving.RunCheckpoints(left, trainer.state, 3).restore()
            steps[moment] = int(trainer.state.step) if prefix else 0
            MetricsFile(left / "metrics.csv", lines[0].split(","), steps[moment])
        assert (left / "metrics.csv").read_text().splitlines() == [
            line for line in lines if line.startswith("step") or int(line.split(",")[0]) <= steps[moment]
        ]
        assert not list(left.rglob("*.part"))
    assert list(steps.values()) == sorted(steps.values()) and set(steps.values()) == {0, 4, 8, STEPS}
    moment = rng.choice([moment for moment, step in steps.items() if step < STEPS])
    left = disc.left_at(moment, tmp_path / "left", rng if torn else None)
    with RunLock(left):
        assert Trainer(settings, str(left)).run() == 0
    assert_same(newest(left), newest(whole))
    assert (left / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@pytest.mark.parametrize("file", ["step-2.index", "step-2.data-00000-of-00001"])
@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_a_checkpoint_damaged_from_any_byte_on_is_passed_over(tmp_path, file, damage):
    state = make_state(step=1)
    saved = saving.RunCheckpoints(tmp_path, state, keep=2)
    saved.save()
    before = [v.numpy() for v in state.model.trainable_variables]
    draw(state.model.trainable_variables, 5)
    state.step.assign(2)
    saved.save()
    path = tmp_path / "checkpoints" / file
    content = path.read_bytes()
    for place in [0, 1, len(content) - 1, *np.random.default_rng(0).integers(2, len(content) - 1, 5)]:
        path.write_bytes(content[:place] + (b"\0" * (len(content) - place) if damage == "zeros" else b""))
        if path.read_bytes() == content:
            continue  # its content ends in zeros
        prefix, notes = saved.restore()
        assert prefix.endswith("step-1") and len(notes) == 1 and "damaged checkpoint skipped" in notes[0], place
        for variable, value in zip(state.model.trainable_variables, before):
            np.testing.assert_array_equal(variable, value)
    path.write_bytes(content)
    assert saved.restore()[0].endswith("step-2")


def test_a_table_cut_at_any_byte_goes_on(tmp_path):
    path, columns = tmp_path / "metrics.csv", ["step", "data", "loss"]
    table = MetricsFile(path, columns, 0)
    for step in (5, 10, 15):
        table.append([step, "batch", -1.25 * step])
    content = path.read_bytes()
    kept = content[: content.index(b"15,")]
    for end in range(len(kept), len(content) + 1):
        for rest in (b"", b"\0" * 200_000, b'\xff\xfe,\n"'):
            path.write_bytes(content[:end] + rest)
            MetricsFile(path, columns, 10)
            assert path.read_bytes() == kept


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    kept = {
        "checkpoints/step-1.index",
        ".notes.json.00ff00ff.part",
        ".flags.json.part",
        "mine/.00ff00ff.part/film",
        "mine/.film.00ff00ff.part",
        "checkpoints/.film.part/x",
        "best/.00ff00ff.part.zip",
        "a/checkpoints/.00ff00ff.part/x",
    }
    for name in (
        ".flags.json.00ff00ff.part",
        ".metrics.csv.00ff00ff.part",
        "checkpoints/.00ff00ff.part/step-1.index",
        "best/.00ff00ff.part/step-1.index",
        *kept,
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with RunLock(tmp_path):
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
        assert found == {"run.lock", *kept} and not list(tmp_path.glob("*/.00ff00ff.part/step-1*"))


# Full, read-only and removed.


@pytest.mark.slow
def test_every_log_that_cannot_be_written_is_named(data, tmp_path):
    folder = tmp_path / "run"
    trainer = Trainer(tiniest(data, max_seq_len=1, train_itr=100, save_itr=100, log_itr=100, fig_itr=100), str(folder))
    for name in ("metrics.csv", "resources.csv", "train.log"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/full")
        with pytest.raises(UserError, match=rf"{name}: cannot be written \(No space left on device\); the last"):
            trainer.run()
        (folder / name).unlink()
    trainer._save()  # a run that is started again would save its steps first
    saved = sorted(path.name for path in (folder / "checkpoints").glob("*.index"))
    # TensorBoard's file grows quickest.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"tfevents\S+: cannot be written \(File too large\); the last"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved[0] == "step-0.index"
    assert sorted(path.name for path in (folder / "checkpoints").glob("*.index")) == saved


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    state = make_state(step=1)
    saved = saving.RunCheckpoints(tmp_path, state, keep=1)
    saved.save()
    state.step.assign(2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1000, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(UserError, match=r"step-2: the checkpoint could not be written \(.*File too large\)"):
                saved.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
            "step-1.index",
            "step-1.data-00000-of-00001",
        }


@pytest.mark.parametrize("module, limit", [("eval.likelihood", 1000), ("eval.predict", 20_000)])
def test_evaluation_on_a_full_disc_is_one_line_and_leaves_no_file(data, tmp_path, module, limit):
    run, out = save_run(tmp_path / "run"), tmp_path / "results" / "out"
    result = run_here(module, "--run", run, "--data", data, "--n_frames", 4, "--out", out, file_limit=limit)
    assert error_line(result) == f"error: {out}: File too large"
    assert not out.parent.exists()  # nor the folder that was made for it


# Numbers.


def test_a_gradient_that_is_not_finite_stops_the_run_though_its_loss_is(data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    trainer = Trainer(tiniest(data), str(folder))
    bad = trainer.model.decoder.output_scale
    loss = trainer.model.loss
    # The derivative of the square root is infinite at 0.
    monkeypatch.setattr(trainer.model, "loss", lambda *args: loss(*args) + tf.sqrt(0.0 * tf.reduce_sum(bad)))
    variables = [*trainer.model.trainable_variables, *(v for slot in trainer.optimizer.slots.values() for v in slot)]
    before = [v.numpy() for v in variables]
    with pytest.raises(UserError, match=r"step 0: the loss \([\d.]+\) or its gradient \(norm nan\) is not finite"):
        trainer.run()
    found = json.loads((folder / "non_finite.json").read_text())
    assert found["gradients"] == [bad.name] and found["terms"] == found["variables"] == []
    assert np.isfinite(found["loss"]) and trainer.step == 0
    for variable, value in zip(variables, before):
        np.testing.assert_array_equal(variable, value, err_msg=variable.name)
    assert loading.find_checkpoint(folder, "newest")[1].endswith("step-0")


@pytest.mark.slow
def test_a_run_that_goes_wrong_says_so_and_which_flags_to_look_at(data, tmp_path):
    """Nothing discovered; all slots in use, an effective sample size of 1; validation frames unlike training's."""
    other = tmp_path / "other.h5"
    shutil.copy(data, other)
    with h5py.File(other, "r+") as file:
        frames = file["validation/features"]
        frames[:] = ~frames[:]
    for name, settings, training, expected in (
        (
            "none",
            dict(disc_step_bias=-30.0),
            dict(train_data=str(other)),
            ["nothing is discovered", "--init_from this run with a greater --disc_step_bias", "--train_data"],
        ),
        (
            "all",
            dict(disc_step_bias=30.0, prop_step_bias=30.0, n_steps_per_image=5, output_std=1e-3),
            {},
            [
                "all 5 slots are always used",
                "with a smaller --disc_step_bias and --prop_step_bias",
                "the effective sample size is 1.00 of 2 particles",
                "with a greater --output_std",
            ],
        ),
    ):
        short = tiniest(data, settings, **{**dict(train_itr=6, stage_itr=0, learning_rate=1e-9), **training})
        Trainer(short, str(tmp_path / name)).run()
        log = (tmp_path / name / "train.log").read_text()
        assert all(text in log for text in expected), log
        assert ("validation bound is" in log) == (name == "none")


@pytest.mark.slow
@pytest.mark.parametrize(
    "collapsed, flags",
    [
        (dict(disc_step_bias=-8.0), {"disc_step_bias": 1.0}),
        (dict(disc_step_bias=30.0, prop_step_bias=30.0), {"disc_step_bias": -2.0, "prop_step_bias": -2.0}),
    ],
)
def test_what_the_warning_of_a_collapse_names_ends_it(data, tmp_path, collapsed, flags):
    """A run without objects, or with all slots in use, stays so; the same weights with the biases set anew do not."""

    def objects(name, model, **start):
        short = config(
            data, model, train_itr=4, seq_len=1, max_seq_len=1, learning_rate=1e-3, log_itr=4, eval_on_train=False
        )
        Trainer(short, str(tmp_path / name), **start).run()
        with open(tmp_path / name / "metrics.csv", encoding="utf-8") as file:
            return [float(row["num_steps"]) for row in csv.DictReader(file) if row["data"] == "batch"][-1]

    bad = objects("collapsed", collapsed)
    same = objects("again", collapsed, init_from=str(tmp_path / "collapsed"))
    mended = objects("mended", {**collapsed, **flags}, init_from=str(tmp_path / "collapsed"), asked=set(flags))
    for value in (bad, same):
        assert value < 0.05 or value == 2.0
    assert 0.1 < mended < 1.9


# The run's use of the machine.


@pytest.mark.slow
def test_a_run_keeps_no_file_open(data, tmp_path):
    trainer = Trainer(
        tiniest(
            data, train_itr=18, stage_itr=9, save_itr=3, log_itr=6, fig_itr=9, report_loss_every=3, eval_on_train=False
        ),
        str(tmp_path / "run"),
    )
    assert trainer.run() == 0
    lines = (tmp_path / "run" / "resources.csv").read_text().splitlines()
    files = [int(line.split(",")[-1]) for line in lines[1:]]
    assert len(files) == 6 and len(set(files[1:])) == 1


@pytest.mark.parametrize("module", ["sqair.train", "eval.predict"])
@pytest.mark.parametrize(("wanted", "expected"), [(None, "1"), ("0", "0")])
def test_onednn_is_on_before_tensorflow_is_imported_but_for_who_says_otherwise(module, wanted, expected):
    environment = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    if wanted:
        environment["TF_ENABLE_ONEDNN_OPTS"] = wanted
    program = (
        "import importlib, os, sys\n"
        "class Finder:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'tensorflow':\n"
        "            sys.exit(print(os.environ['TF_ENABLE_ONEDNN_OPTS']))\n"
        "sys.meta_path.insert(0, Finder); importlib.import_module(sys.argv[1])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, module], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == f"{expected}\n", result.stderr[-500:]
