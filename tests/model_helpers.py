"""Small models in which every branch has an effect, and inputs for them."""

import contextlib

import attrs
import numpy as np
import tensorflow as tf

from sqair.config import ModelConfig
from sqair.core import Slots
from sqair.model import SQAIR

SMALL = ModelConfig(n_steps_per_image=3, n_what=3, n_units=1, glimpse_size=4, k_particles=2, image_shape=(9, 11))


def draw(*shape, seed=0):
    return np.float32(np.random.RandomState(seed).randn(*shape))


def small_config(**changes) -> ModelConfig:
    return attrs.evolve(SMALL, **changes)


def make_busy(module, seed: int = 1) -> None:
    """Random values for every variable: none zero, presences that vary, windows that differ."""
    for i, variable in enumerate(module.trainable_variables):
        shape = variable.shape.as_list()
        value = draw(*shape, seed=1000 * seed + i)
        if len(shape) == 2 and shape[0] > 1:
            value /= np.sqrt(shape[0])
        elif not shape:
            continue
        elif "scale:" in variable.name and len(shape) == 1 and "cholesky" not in variable.name:
            value = 1 + 0.3 * value  # layer norms
        else:
            value *= 0.3
        variable.assign(value)


def busy_model(seed: int = 1, **changes) -> SQAIR:
    model = SQAIR(small_config(**changes))
    make_busy(model, seed)
    propagate, discover = model.sequence.timestep.propagate, model.sequence.timestep.discover
    propagate.core.steps_predictor.layers[-1].b.assign([1.0])
    discover.core.steps_predictor.layers[-1].b.assign([0.3])
    if model.decoder.mean_image is not None:
        model.decoder.mean_image.assign(0.1 * np.abs(draw(*model.decoder.mean_image.shape)))
    return model


@contextlib.contextmanager
def eagerly():
    """Runs compiled functions eagerly: a small model's pass is quicker than its tracing."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def make_inputs(model: SQAIR, n_frames: int = 3, batch: int = 2, seed: int = 0):
    """Random images [T, B, H, W(, C)] and noise."""
    obs = np.abs(draw(n_frames, batch, *model.config.image_shape, seed=seed)) * 0.3
    return tf.constant(obs), model.draw_noise([seed, 1], n_frames, batch)


def loss_and_gradients(model: SQAIR, obs, noise, **options):
    """The forward pass, the VIMCO loss, and gradients by variable name (zero where there is none)."""
    with tf.GradientTape() as tape:
        forward = model(obs, noise, **options)
        loss = model.loss(forward)
    variables = model.trainable_variables
    gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
    return forward, loss, {v.name: g.numpy() if tf.executing_eagerly() else g for v, g in zip(variables, gradients)}


def make_slots(presence, n_what=3):
    """`Slots` [P, N, d] with given presence [P, N] and random values elsewhere."""
    p, n = np.shape(presence)
    values = {
        field: tf.constant(draw(p, n, size, seed=i))
        for i, (field, size) in enumerate(
            [("what", n_what), ("what_loc", n_what), ("where", 4), ("where_loc", 4), ("presence_logit", 1)]
        )
    }
    scales = {"what_scale": tf.exp(draw(p, n, n_what, seed=9)), "where_scale": tf.exp(draw(p, n, 4, seed=8))}
    return Slots(presence=tf.constant(np.float32(presence)[..., None]), **values, **scales)
