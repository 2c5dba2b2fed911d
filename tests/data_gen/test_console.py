"""Options as users write them, and outputs: no command overwrites its inputs, a run, or another kind of file."""

import errno
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import attrs
import h5py
import numpy as np
import pytest

from data_gen import bouncing_balls, console, files
from data_gen.errors import UserError
from sqair import export, model, options
from sqair.runs import loading, saving
from sqair.runs.folder import RunLock
from tests.data_helpers import ROOT, run_command, run_here
from tests.eval_helpers import TINY, save_original, save_run
from tests.mnist_helpers import release_data
from tests.model_helpers import eagerly


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with one of everything that commands read."""
    folder = tmp_path_factory.mktemp("sound")
    settings = bouncing_balls.BouncingBalls(n_frames=3, training=4, validation=4, test=4)
    bouncing_balls.write(settings, folder / "data.h5")
    bouncing_balls.write(settings, folder / "other.h5")
    save_run(folder / "run")
    (folder / "run" / "metrics.csv").write_text(
        "step,data,iwae_per_frame,data_ll,kl,num_step_accuracy\n1,validation,1,1,1,1\n2,validation,1,1,1,1\n"
    )
    save_original(folder / "original", [3])
    export.save_safetensors(loading.load_run(folder / "run"), folder / "shared")
    (folder / "release.p").write_bytes(pickle.dumps(release_data(3), 2))
    (folder / "notes.txt").write_text("mine")
    for name in ("index.html", "table.md", "table.csv", "notes.png", "README.md", "notes.gif"):
        path = folder / "mine" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (folder / "mine" / "differences.csv").write_text("mine")
    np.savez(folder / "mine" / "own.npz", videos=np.full((3, 4, 8, 8), 200, np.uint8))
    os.mkfifo(folder / "pipe")
    os.link(folder / "data.h5", folder / "hard_link.h5")
    os.symlink(folder / "data.h5", folder / "soft_link.h5")
    os.symlink(folder / "run", folder / "link_to_run")
    predict(folder, folder / "predictions.h5")
    return folder


def predict(folder, out):
    from eval import predict as command

    command.write(
        command.Arguments(
            run=str(folder / "run"),
            data=str(folder / "data.h5"),
            out=out,
            n_frames=3,
            n_samples=1,
            n_sequences=4,
            batch_size=4,
            canvases=True,
        )
    )


def call(monkeypatch, capsys, module, arguments):
    """Runs a command in this process; returns its exit code and its error output."""
    monkeypatch.setattr("sys.argv", [module, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        console.run_cli(importlib.import_module(module).main)
    return stop.value.code, capsys.readouterr().err


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


MODEL = "--run {0}/run --data {0}/data.h5"
SMALL = f"{MODEL} --n_frames 3 --n_sequences 4"
PREDICT = f"eval.predict {SMALL} --n_samples 1 --out {{0}}"
LIKELIHOOD = f"eval.likelihood {SMALL} --out {{0}}"
SEQUENCES = f"eval.figures {SMALL} --out {{0}}"
TRAIN = "sqair.train --preset sqair_balls --train_data {0}/data.h5 --batch_size 2 --shards 1 --run_dir {0}"


@pytest.mark.parametrize(
    "line, message",
    [
        *(
            (f"{command}/{name}", message)
            for command in (PREDICT, LIKELIHOOD)
            for name, message in (
                ("data.h5", "is read by this command"),
                ("hard_link.h5", "is read by this command"),
                ("soft_link.h5", "is read by this command"),
                ("other.h5", "already exists and is not a file of"),
                ("notes.txt", "already exists and is not a file of"),
                ("pipe", "already exists and is not a file of"),
                ("run/flags.json", "lies in the run folder"),
                ("run/checkpoints/step-7.index", "lies in the run folder"),
                ("run/new", "lies in the run folder"),
                ("run/sub/new", "lies in the run folder"),
                ("link_to_run/new", "lies in the run folder"),
                ("original/new", "lies in the run folder"),
                ("shared/new", "lies in the run folder"),
                ("run", "is a folder"),
            )
        ),
        (f"{LIKELIHOOD}/predictions.h5", "is not a file of eval.likelihood"),
        (f"{SEQUENCES}/mine/notes.png", "is not a PNG"),
        (f"{SEQUENCES}/mine/new.pdf {{0}}/mine/notes.png", "notes.png: already exists and is not a PNG"),
        (f"{SEQUENCES}/mine/notes.pdf --gif", "notes.gif: already exists and is not a GIF"),
        (f"{SEQUENCES}/run/new.png", "lies in the run folder"),
        ("eval.figures --predictions {0}/predictions.h5 --out {0}/run/new.png", "lies in the run folder"),
        ("eval.figures curves --runs {0}/run --out {0}/run/new.png", "lies in the run folder"),
        ("eval.figures figure4 --metrics {0}/none --out {0}/mine/notes.png", "is not a PNG"),
        (
            "eval.tables --predictions {0}/predictions.h5 --out {0}/mine",
            "table.md: already exists and is not a result",
        ),
        ("eval.tables --predictions {0}/predictions.h5 --out {0}/run", "lies in the run folder"),
        ("eval.page --results {0}/mine", "index.html: already exists and is not a page"),
        ("eval.page --results {0}/run", "lies in the run folder"),
        ("eval.benchmark --json {0}/notes.txt", "is not a file of eval.benchmark"),
        ("eval.benchmark --json {0}/run/flags.json", "lies in the run folder"),
        ("data_gen.bouncing_balls --training 1 --out {0}/predictions.h5", "is not a data set"),
        ("data_gen.bouncing_balls --training 1 --out {0}/run/new.h5", "lies in the run folder"),
        (
            "data_gen.import_videos --inputs {0}/mine/own.npz --axes STHW --out {0}/mine/own.npz",
            "is read by this command",
        ),
        ("data_gen.import_videos --inputs {0}/mine/own.npz --axes STHW --out {0}/run/new.h5", "lies in the run folder"),
        ("data_gen.import_videos --inputs {0}/mine/own.npz --axes STHW --out {0}/predictions.h5", "is not a data set"),
        ("data_gen.moving_mnist --training 1 --out {0}/predictions.h5", "is not a data set"),
        ("data_gen.moving_mnist --from_pickle {0}/release.p --out {0}/release.p", "is read by this command"),
        ("data_gen.moving_mnist --digits {0}/data.h5 --out {0}/data.h5", "is read by this command"),
        ("data_gen.moving_mnist --from_pickle {0}/release.p --out {0}/notes.txt", "is not a data set"),
        ("sqair.export safetensors {0}/run {0}/run --overwrite", "is a run folder"),
        ("sqair.export safetensors {0}/run {0}/run/sub", "lies in the run folder"),
        ("sqair.export safetensors {0}/run {0}/original", "is a run folder"),
        ("sqair.export safetensors {0}/run {0}/mine", "README.md: already exists and is not a card"),
        ("sqair.export original {0}/run {0}/run --overwrite", "is a run folder"),
        ("sqair.export original {0}/run {0}/run/sub", "lies in the run folder"),
        ("sqair.export original {0}/run {0}/shared", "is a model to share"),
        (f"{TRAIN}/original", "a run of the original program"),
        (f"{TRAIN}/shared", "is a model to share"),
        (f"{TRAIN}/run/sub", "lies in the run folder"),
    ],
)
def test_no_command_writes_over_anything_but_its_own_kind(sound, monkeypatch, capsys, line, message):
    module, *arguments = line.format(sound).split()
    before = contents(sound)
    code, err = call(monkeypatch, capsys, module, arguments)
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 1 and len(errors) == 1 and message in errors[0], err[-1000:]
    assert contents(sound) == before


@pytest.mark.slow
def test_ones_own_kind_is_replaced(sound, tmp_path, monkeypatch, capsys):
    lines = [
        *(
            line.replace("--out {0}", f"--out {tmp_path}")
            for line in (f"{SEQUENCES}/g.png", f"{PREDICT}/predictions.h5 --canvases", f"{LIKELIHOOD}/l.json")
        ),
        f"eval.figures --predictions {tmp_path}/predictions.h5 --n_sequences 1 --n_frames 3 --gif --out "
        f"{tmp_path}/f.png {tmp_path}/f.pdf",
        f"eval.tables --predictions {tmp_path}/predictions.h5 --out {tmp_path}",
        f"eval.page --results {tmp_path}",
        f"data_gen.bouncing_balls --training 2 --validation 0 --test 0 --n_frames 2 --out {tmp_path}/data.h5",
        f"sqair.export safetensors {{0}}/run {tmp_path}/shared --overwrite",
    ]
    (tmp_path / "l.json").touch()  # an empty file may be replaced
    for _ in range(2):
        for line in lines:
            module, *arguments = line.format(sound).split()
            with eagerly():
                code, err = call(monkeypatch, capsys, module, arguments)
            assert not code, err
            assert ("data.h5: test holds 4 sequences of 3 frames, 64 x 64, bool" in err) == ("--data" in line)
        left = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_mtime == 0]
        assert not left
        for path in tmp_path.rglob("*"):
            if path.is_file():
                os.utime(path, (0, 0))


@pytest.mark.slow
def test_a_data_set_survives_a_command_that_names_it_twice(sound):
    """The real command, in a separate process."""
    before = (sound / "data.h5").read_bytes()
    data = sound / "data.h5"
    result = run_command("eval.predict", "--run", sound / "run", "--data", data, "--out", data)
    assert result.returncode == 1 and "is read by this command" in result.stderr
    assert (sound / "data.h5").read_bytes() == before
    with h5py.File(sound / "data.h5") as file:
        assert "training" in file


# Options.


@pytest.mark.parametrize(
    "line, name",
    [
        ("sqair.train --preset sqair_balls --run_dir=", "--run_dir"),
        ("sqair.train --run_dir _", "--run_dir"),
        ("sqair.train --run_dir x --init_from _", "--init_from"),
        ("sqair.train --schedule _ --run_dir _", "--run_dir"),
        ("sqair.train --run_dir x --train_data= --schedule=", "--train_data"),
        ("eval.predict --run _ --data d --out o", "--run"),
        ("eval.likelihood --run r --data d --out _", "--out"),
        ("eval.figures --run r --data d _ --out o.png", "--data"),
        ("eval.tables --predictions p --out _", "--out"),
        ("eval.page --results _", "--results"),
        ("sqair.export original r _", "argument 3"),
        ("data_gen.bouncing_balls --out _", "--out"),
        ("data_gen.import_videos --inputs _ --out o", "--inputs"),
        ("eval.benchmark --json _", "--json"),
        ("eval.paper --name _ --dry_run", "--name"),
        ("eval.compare_original _", "argument 1"),
    ],
)
def test_empty_paths_are_errors_everywhere(tmp_path, monkeypatch, capsys, line, name):
    monkeypatch.chdir(tmp_path)
    module, *arguments = ("" if word == "_" else word for word in line.split())
    code, err = call(monkeypatch, capsys, module, arguments)
    assert code == 1 and f"error: {name}: is empty" in err and err.count("error:") == 1
    assert not list(tmp_path.iterdir())


def test_an_empty_run_folder_is_refused_whoever_asks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--run_dir: is empty"), RunLock(""):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--xla=True", {"xla": True}),
        ("--xla true --seed 3", {"xla": True, "seed": 3}),
        ("--xla=False", {"xla": False}),
        ("--eval_on_train=False", {"eval_on_train": False}),
        ("--eval_on_train False --xla", {"eval_on_train": False, "xla": True}),
        ("--noeval_on_train", {"eval_on_train": False}),
        ("--no-eval_on_train", {"eval_on_train": False}),
        ("--no_eval_on_train", {"eval_on_train": False}),
        ("--eval-on-train=no", {"eval_on_train": False}),
        ("--masked_glimpse=false", {"masked_glimpse": False}),
        ("--nomean_image --n_what 7", {"mean_image": False, "n_what": 7}),
        ("--xla", {"xla": True}),
        ("--schedule=", {"schedule": ""}),
    ],
)
def test_booleans_as_the_originals_users_write_them(words, expected):
    config = options.parse(["--run_dir", "x", *words.split()]).config
    found = attrs.asdict(config.model) | attrs.asdict(config.train)
    assert {name: found[name] for name in expected} == expected


def test_what_is_no_boolean_is_one_line_and_values_of_other_options_stay():
    with pytest.raises(UserError, match="--xla maybe: expected True or False; or write --xla, --no_xla"):
        options.parse(["--run_dir", "x", "--xla=maybe"])
    assert options.parse(["--run_dir", "True"]).run_dir == "True"
    assert options.parse(["--run_dir=no", "--xla"]).run_dir == "no"


@pytest.mark.parametrize(
    "name", ["run/checkpoints/step-7.data-00000-of-00001", "run/checkpoints", "run", "shared/model.safetensors"]
)
def test_what_may_not_be_read_is_neither_damaged_nor_absent(sound, monkeypatch, name):
    """The file or folder, as if it were another user's (root may read all)."""
    hidden, opened, listed = str(sound / name), open, os.listdir

    def refuse(function):
        def call(path, *arguments, **options):
            if str(path) == hidden:
                raise PermissionError(errno.EACCES, "Permission denied", hidden)
            return function(path, *arguments, **options)

        return call

    monkeypatch.setattr("builtins.open", refuse(opened))
    monkeypatch.setattr("os.listdir", refuse(listed))
    with pytest.raises(PermissionError):
        loading.load_run(sound / name.split("/")[0])
    if name.startswith("run/"):
        state = saving.TrainingState(model.SQAIR(TINY), None)
        with pytest.raises(PermissionError):  # and a run does not start anew, or from an older checkpoint
            saving.RunCheckpoints(sound / "run", state, 3).restore()


def test_a_checkpoint_that_is_not_there_names_those_that_are(sound):
    with pytest.raises(UserError, match="no checkpoint latest; choose best, newest, or one of the iterations 7"):
        loading.find_checkpoint(sound / "run", "latest")


def test_a_file_system_without_locks_is_not_a_run_in_use(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match="cannot be locked .No locks available.*file system that has locks"):
        with RunLock(tmp_path):
            pass


def test_json_has_no_numbers_that_are_not_finite():
    text = files.to_json({"a": [1.5, float("nan")], "b": {"c": (float("inf"), True, None, "x", 2)}})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [1.5, None], "b": {"c": [None, True, None, "x", 2]}}
    assert text.startswith('{\n "a"') and text.endswith("}\n")


def test_cores_where_the_system_does_not_say_which(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert console.n_cores() == 6


@pytest.mark.slow
def test_versions_of_a_copy_in_somebodys_repository_do_not_report_that(tmp_path):
    for name in ("sqair", "relational", "data_gen"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name)
    script = "import json; from sqair.runs.folder import versions; print(json.dumps(versions()))"
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    said = subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "copy", capture_output=True, text=True)
    found = json.loads(said.stdout)
    assert found["git_commit"] == "unknown" and found["uncommitted_changes"] is None


def test_unknown_options_name_a_command_that_works(tmp_path):
    for module in ("sqair.train", "eval.compare_original"):
        result = run_here(module, "--nonsense", "3")
        assert result.returncode and f"python -m {module}" in result.stderr + result.stdout
        assert f"{module.rsplit('.')[-1]}.py" not in result.stderr + result.stdout


def test_folders_made_for_a_result_go_when_it_fails(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "made", "made/below"):
        with pytest.raises(ZeroDivisionError), files.atomic_path(tmp_path / folder / "file") as path:
            path.write_text("half")
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    with files.atomic_path(tmp_path / "made" / "below" / "file") as path:
        path.write_text("whole")
    assert (tmp_path / "made" / "below" / "file").read_text() == "whole"
