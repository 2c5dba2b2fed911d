"""One training step and one evaluation step: pure functions, and the graphs made of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sqair.config import TrainConfig
from sqair.model import SQAIR, Report, report
from sqair.noise import Noise
from sqair.training import replicas
from sqair.training.optimizers import Optimizer
from sqair.training.shards import mean_of_shards, n_shards


class StepResult(NamedTuple):
    """The result of one training step: the loss (nats per frame), the gradient's norm, the forward pass's `Report`."""

    loss: tf.Tensor
    gradient_norm: tf.Tensor
    finite: tf.Tensor
    report: Report


def train_step(
    model: SQAIR,
    optimizer: Optimizer,
    obs: tf.Tensor,
    counts: tf.Tensor,
    noise: Noise,
    learning_rate: tf.Tensor,
    train: TrainConfig,
) -> StepResult:
    """One update. If the loss or a gradient is not finite, nothing is updated and `finite` is false.

    Args:
      model, optimizer: what to update.
      obs: [T, B, H, W] or [T, B, H, W, C]; counts: int32 [T, B]; noise: `Noise`, [T, N, P, d]; all of them this
        replica's share.
      learning_rate: scalar.
      train: `TrainConfig`.

    Returns:
      `StepResult` of all replicas.
    """
    variables = optimizer.variables_to_train

    def derive(obs, counts, noise):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            forward = model(obs, noise)
            loss = model.loss(forward, train.target, train.l2)
        return loss, tape.gradient(loss, variables, unconnected_gradients="zero"), report(forward, counts)

    loss, gradients, summary = replicas.mean(mean_of_shards(derive, obs, counts, noise, n_shards(train)))
    norm = tf.linalg.global_norm(gradients)
    finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
    if train.clip_norm:
        gradients, _ = tf.clip_by_global_norm(gradients, train.clip_norm, norm)
    tf.cond(finite, lambda: optimizer.apply(gradients, learning_rate), lambda: None)
    return StepResult(loss, norm, finite, summary)


def compile_train_step(model: SQAIR, optimizer: Optimizer, train: TrainConfig) -> Callable[..., StepResult]:
    """`train_step` as a graph: (obs, counts, step, learning_rate) -> StepResult, traced once per sequence length.

    The noise of step i is drawn from (seed, i) for the whole batch, outside of what XLA compiles (see `sqair.noise`).

    Args: model, optimizer: what to train. train: `TrainConfig`.
    """

    def step_function(obs, counts, step, learning_rate):
        noise = model.draw_noise(tf.stack([train.seed, tf.cast(step, tf.int32)]), obs.shape[0], obs.shape[1])
        obs, counts = replicas.share((obs, counts), axis=1)
        return train_step(model, optimizer, obs, counts, replicas.share(noise, axis=2), learning_rate, train)

    return replicas.compiled(step_function)


def compile_eval_step(model: SQAIR, train: TrainConfig) -> Callable[..., Report]:
    """A forward pass as a graph: (obs, counts, seed [2]) -> Report. Args: model; train: `TrainConfig`."""

    def step_function(obs, counts, seed):
        noise = replicas.share(model.draw_noise(seed, obs.shape[0], obs.shape[1]), axis=2)
        obs, counts = replicas.share((obs, counts), axis=1)
        reported = mean_of_shards(lambda o, c, n: report(model(o, n), c), obs, counts, noise, n_shards(train))
        return replicas.mean(reported)

    return replicas.compiled(step_function)


def evaluate(eval_step: Callable[..., Report], data: Iterator, n_batches: int, seed: int) -> Report:
    """The mean `Report` over batches; the noise of batch i is drawn from (seed, -1 - i), apart from training's."""
    total = np.zeros(len(Report._fields))
    for i in range(n_batches):
        batch = next(data)
        total += np.asarray([float(x) for x in eval_step(*batch, tf.constant([seed, -1 - i]))])
    return Report(*(total / n_batches))
