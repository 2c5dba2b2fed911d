"""A model in the form in which the SQAIR release publishes its own: the README's commands for it, unchanged.

The release's model is not available here; this one is small, made by the test, and trains at length 2 (the release's
at 10); its flags.json has the same keys and types.
"""

import csv
import json
import re
import subprocess
import sys

import attrs
import pytest

from sqair.config import load_flags
from sqair.runs import loading, original
from tests.data_helpers import ROOT
from tests.mnist_helpers import python2_pickle, release_data
from tests.run_helpers import make_state

STEP = 7
# Numbers are floats, scale_prior is one too; `DEAD` are flags of other versions, or unknown here.
DEAD = {
    "constant_prop_prior": 0.0,
    "data_config": "configs/seq_mnist_data.py",
    "debug": False,
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "gpu": 0.0,
    "input_type": "normal",
    "model_config": "configs/mlp_mnist_model.py",
    "per_timestep_vimco": False,
    "results_dir": "../checkpoints",
    "resume": False,
    "run_name": "small",
    "test_run": False,
    "train_path": "seq_mnist_train.pickle",
    "valid_path": "seq_mnist_validation.pickle",
}
FLAGS = {
    **DEAD,
    "batch_size": 4.0,
    "disc_prior_type": "cat",
    "disc_step_bias": 1.0,
    "eval_on_train": True,
    "eval_size_fraction": 0.5,
    "fig_itr": 20000.0,
    "glimpse_size": 6.0,
    "k_particles": 2.0,
    "l2": 0.0,
    "learning_rate": 1e-05,
    "log_at_start": False,
    "log_itr": 10000.0,
    "masked_glimpse": True,
    "n_steps_per_image": 3.0,
    "n_units": 1.0,
    "n_what": 3.0,
    "opt": "rmsprop",
    "output_scale": 0.25,
    "output_std": 0.3,
    "prior_transition": "GRU",
    "prop_prior_step_bias": 10.0,
    "prop_prior_type": "rnn",
    "prop_step_bias": 5.0,
    "rec_where_prior": True,
    "report_loss_every": 1.0,
    "sample_from_prior": False,
    "save_itr": 100000.0,
    "scale_prior": -2.0,
    "schedule": "4,6,10",
    "seq_len": 2.0,
    "stage_itr": 200000.0,
    "step_success_prob": 0.75,
    "time_transition": "GRU",
    "train_itr": STEP + 1.0,
    "transform_var_bias": -3.0,
    "transition": "VanillaRNN",
}


@pytest.fixture
def release(tmp_path):
    """A folder with the model and the data where the README's commands expect them; and the model's state."""
    folder = tmp_path / "release_models" / "mnist_mlp" / "1"
    folder.mkdir(parents=True)
    (folder / "flags.json").write_text(json.dumps(FLAGS, indent=4))
    config, unknown = load_flags(folder / "flags.json")
    assert unknown == sorted(DEAD)
    state = make_state(step=STEP, **{**attrs.asdict(config.model), "image_shape": (50, 50)})
    values = original.original_values(state.model, state.optimizer, STEP)
    original.write_original(str(folder / f"model.ckpt-{STEP}"), values)
    for name, n_sequences in (("train", 12), ("validation", 8)):
        data = release_data(n_sequences, n_frames=10)
        (tmp_path / f"seq_mnist_{name}.pickle").write_bytes(python2_pickle(data))
    return state


@pytest.mark.slow
def test_the_commands_of_the_readme_evaluate_it_see_it_and_go_on_with_it(release, tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- tested: tests/system/test_release_model.py -->\n```bash\n(.*?)```", text, re.DOTALL)[1]
    script = "set -e\n" + block.replace(".venv/bin/python", sys.executable)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"unknown flags, ignored: {', '.join(sorted(DEAD))}" in done.stderr
    assert f"model.ckpt-{STEP}, step {STEP}; data/release.h5, validation: 8 sequences of 10 frames" in done.stdout
    assert (tmp_path / "results" / "release.png").stat().st_size > 10_000
    # One more step, at the rate of the schedule's last part.
    assert f"at step {STEP} of {STEP + 1}, length 2, learning rate 1.11e-06" in done.stdout
    flags = json.loads((tmp_path / "runs" / "release" / "flags.json").read_text())
    kept = {name: value for name, value in FLAGS.items() if name not in (*DEAD, "save_itr", "scale_prior")}
    assert {name: flags[name] for name in kept} == kept and flags["scale_prior"] == "-2"
    assert (flags["crop"], flags["patience"], flags["max_seq_len"], flags["save_itr"]) == (0, 0, 10, 1000)
    start = loading.load_run(tmp_path / "runs" / "release", str(STEP))
    for variable, value in zip(start.model.trainable_variables, release.model.trainable_variables):
        assert (variable.numpy() == value.numpy()).all(), variable.name
    with open(tmp_path / "runs" / "release" / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [(row["step"], row["data"], row["length"]) for row in csv.DictReader(file)]
    assert rows == [(str(STEP + 1), data, "2") for data in ("batch", "validation", "training")]
