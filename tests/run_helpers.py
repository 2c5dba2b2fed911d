"""Tiny runs of ours for the tests of checkpoints and exports: random weights and random optimiser slots."""

import json

import attrs
import numpy as np
import tensorflow as tf

from data_gen.console import run_cli
from sqair import export
from sqair.config import Config, ModelConfig, TrainConfig, to_flags
from sqair.model import SQAIR
from sqair.runs import saving
from sqair.training.optimizers import Optimizer

TINY = ModelConfig(n_units=1, n_what=3, glimpse_size=4, k_particles=2, n_steps_per_image=2, image_shape=(10, 12))


def draw(variables, seed):
    """Assigns positive random numbers to variables: slots of squares cannot be negative."""
    rng = np.random.default_rng(seed)
    for variable in variables:
        variable.assign(np.abs(rng.normal(0, 0.1, variable.shape)) + 1e-3)


def make_state(opt="rmsprop", step=5, seed=0, **changes):
    """A training state of a tiny model: weights, slots and counters drawn by `seed`."""
    tf.random.set_seed(seed)
    model = SQAIR(attrs.evolve(TINY, **changes))
    optimizer = Optimizer(opt, model.trainable_variables)
    state = saving.TrainingState(model, optimizer)
    draw([*model.trainable_variables, *(v for slot in optimizer.slots.values() for v in slot)], seed)
    optimizer.updates.assign(step)
    state.step.assign(step)
    return state


def make_run(folder, opt="rmsprop", steps=(5,), train=(), **changes):
    """A run folder of ours with a checkpoint for each step, the first of them the best; returns the last state."""
    folder.mkdir(parents=True)
    for step in steps:
        state = make_state(opt, step, seed=step, **changes)
        saved = saving.RunCheckpoints(folder, state, keep=len(steps))
        saved.save()
        if step == steps[0]:
            saved.save_best()
    config = Config(state.model.config, TrainConfig(opt=opt, **dict(train)))
    (folder / "flags.json").write_text(json.dumps(to_flags(config), default=list))
    return state


def values_of(model):
    """Name -> value of every trainable variable."""
    return {v.name: v.numpy() for v in model.trainable_variables}


def assert_same(values, others):
    """Two mappings of arrays are equal to the last bit."""
    assert set(values) == set(others)
    for name in values:
        np.testing.assert_array_equal(values[name], others[name], err_msg=name)


def command(monkeypatch, capsys, *arguments):
    """Runs `python -m sqair.export ARGUMENTS` in this process; returns exit code, output and error output."""
    monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
    try:
        run_cli(export.main)
    except SystemExit as stop:
        output = capsys.readouterr()
        return stop.code, output.out, output.err
