"""Tiny runs for the tests of evaluation: real folders with real checkpoints of untrained models."""

import json

import attrs
import numpy as np
import tensorflow as tf

from eval.predictions import MEMBERS
from sqair.config import Config, ModelConfig, to_flags
from sqair.model import SQAIR
from sqair.runs import original
from sqair.runs.saving import RunCheckpoints, TrainingState
from sqair.training.optimizers import Optimizer

TINY = ModelConfig(
    n_steps_per_image=3, n_what=2, n_units=1, glimpse_size=6, k_particles=3, mean_image=False, prop_prior_step_bias=1.0
)


def tiny_model(seed=0, **changes):
    """A model whose presences vary, and whose canvases stay within [0, 1] (three glimpses of about .3 at most)."""
    tf.random.set_seed(seed)
    model = SQAIR(attrs.evolve(TINY, **changes))
    bias = model.decoder.mlp.layers[-1].b
    bias.assign(tf.ones_like(bias))
    return model


def save_run(folder, seed=0, steps=(7,), **changes):
    """Saves a tiny run in our form; the weights differ from step to step."""
    folder.mkdir(parents=True)
    for step in steps:
        model = tiny_model(seed + step, **changes)
        config = Config(model.config, attrs.evolve(Config().train, seed=seed))
        state = TrainingState(model, Optimizer("sgd", model.trainable_variables))
        state.step.assign(step)
        RunCheckpoints(folder, state, len(steps)).save()
    (folder / "flags.json").write_text(json.dumps(to_flags(config), default=list))
    return folder


def save_original(folder, steps):
    """Saves a tiny run in the original's form: flags.json and TensorFlow 1 checkpoints model.ckpt-<itr>."""
    folder.mkdir(parents=True)
    for step in steps:
        model = tiny_model(step)
        values = {
            name: original.gather_original(columns, [c.variable.numpy() for c in columns]).astype(np.float32)
            for name, columns in original.original_names(model).items()
        }
        values |= original.original_constants(model) | {"global_step": np.int64(step)}
        tf.raw_ops.SaveV2(
            prefix=str(folder / f"model.ckpt-{step}"),
            tensor_names=list(values),
            shape_and_slices=[""] * len(values),
            tensors=[tf.constant(v) for v in values.values()],
        )
    flags = {
        name: value
        for name, value in to_flags(Config(model.config)).items()
        if name in ("n_steps_per_image", "n_what", "n_units", "glimpse_size", "k_particles", "prop_prior_step_bias")
    }
    (folder / "flags.json").write_text(json.dumps(flags))
    return folder


def assemble(parts):
    """The whole of the members that `eval.predict.predict` yields in parts."""
    parts, whole, sizes = list(parts), {}, {}
    axes_of = {name: MEMBERS[name].axes.replace("C", "") for _, members in parts for name in members}
    for place, members in parts:
        for name, array in members.items():
            for axis, size in zip(axes_of[name], array.shape):
                sizes[axis] = max(sizes.get(axis, 0), place.get(axis, 0) + size)
    for place, members in parts:
        for name, array in members.items():
            if name not in whole:
                whole[name] = np.full([sizes[axis] for axis in axes_of[name]], 99, array.dtype)
            start = [place.get(axis, 0) for axis in axes_of[name]]
            whole[name][tuple(slice(i, i + size) for i, size in zip(start, array.shape))] = array
    return whole
