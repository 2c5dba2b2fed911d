"""Warnings about a run that goes wrong: collapse, a bound that swings, a low effective sample size, overfitting,
non-finite numbers."""

import collections
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from sqair.model import SQAIR, Forward, Report
from sqair.noise import Noise

PATIENCE = 5  # consecutive reports with the same problem before a warning
WINDOW, LOWS = 8, 3  # a bound swings if this many (LOWS) of the last WINDOW reports are far too low


def clock() -> np.ndarray:
    """Wall-clock and CPU seconds, [2]. The latter are those of this process on all cores: on a shared host they do not
    include the time that other virtual machines take."""
    return np.array([time.monotonic(), time.process_time()])


def resources() -> tuple[float, int]:
    """Resident memory of this process in MB (10^6 bytes) and its number of open files; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0.0, 0


class Swings:
    """Whether the bound swings instead of rising: `LOWS` of the last `WINDOW` reports lie far below the best level.

    The best level is the greatest median of three consecutive reports, so that a single lucky batch does not count. Far
    below means by a quarter of it, at least by 50 nats per frame: in a run that rises, batches differ by less. Bounds
    at different sequence lengths are not compared.
    """

    def __init__(self, clip_norm: float):
        """Args: clip_norm: gradients are clipped to this norm; 0: they are not."""
        self._clip_norm, self._length = clip_norm, -1

    def check(self, bound: float, length: int, gradient_norm: float, clipped: float | None) -> list[str]:
        """The warning, if any, that is due after a report of a training batch.

        Args:
          bound: nats per frame.
          length: of the sequences, in frames.
          gradient_norm: of the batch, before clipping.
          clipped: share of the updates since the last report that were clipped; None without clipping.
        """
        if length != self._length:
            self._length, self._reached, self._warned = length, -np.inf, False
            self._recent: collections.deque[tuple[float, bool, float]] = collections.deque(maxlen=WINDOW)
        far = max(0.25 * abs(self._reached), 50.0)
        self._recent.append((bound, bound < self._reached - far, gradient_norm))
        bounds, low, norms = zip(*self._recent)
        if len(bounds) >= 3:
            self._reached = max(self._reached, float(np.median(bounds[-3:])))
        if not any(low):
            self._warned = False
        if sum(low) < LOWS or self._warned:
            return []
        self._warned = True
        norm = float(np.median(norms))
        clipping = (
            f"--clip_norm, now {self._clip_norm:g} ({clipped:.0%} of the updates since the last report were clipped)"
            if self._clip_norm
            else "--clip_norm, which is off"
        )
        return [
            f"warning: the bound swings: {sum(low)} of the last {len(low)} reports lie {far:.0f} nats per frame or "
            f"more below the {self._reached:.0f} reached before (lowest {min(bounds):.0f}, median gradient norm "
            f"{norm:.0f}): look at --learning_rate, which may be too high, and {clipping}"
        ]


class Monitor:
    """Watches the reports of training batches and warns once each time that a problem begins."""

    def __init__(self, n_slots: int, k_particles: int, clip_norm: float = 0.0):
        """Args: n_slots: N. k_particles: K. clip_norm: see `Swings`."""
        self._swings = Swings(clip_norm)
        self._checks = {
            "nothing is discovered (on average {num_steps:.2f} objects per frame). A run keeps its flags; in a new "
            "--run_dir try --init_from this run with a greater --disc_step_bias, which sets the bias of its weights "
            "anew, or start afresh with that, a smaller --output_std or shorter sequences at first (--seq_len, "
            "--stage_itr)": lambda r: r.num_steps < 0.05,
            f"all {n_slots} slots are always used (on average {{num_steps:.2f}} objects per frame). A run keeps its "
            "flags; in a new --run_dir try --init_from this run with more --n_steps_per_image if there are that many "
            "objects, else with a smaller --disc_step_bias and --prop_step_bias, which set the biases of its weights "
            "anew": lambda r: r.num_steps > 0.99 * n_slots and not r.num_step_accuracy > 0.5,
            f"the effective sample size is {{ess:.2f}} of {k_particles} particles: the bound is hardly tighter than "
            "with one; in a new --run_dir, --continue_from this run with a greater --output_std makes particles more "
            "alike": lambda r: k_particles > 1 and r.ess < 1.001,
        }
        self._spell: dict[str, int] = {}

    def check(
        self, report: Report, length: int = 0, gradient_norm: float = 0.0, clipped: float | None = None
    ) -> list[str]:
        """Warnings that are due after this report of a training batch; for the arguments see `Swings.check`."""
        values = Report(*(float(x) for x in report))
        due = self._swings.check(values.iwae_per_frame, length, gradient_norm, clipped)
        for text, trouble in self._checks.items():
            self._spell[text] = self._spell.get(text, 0) + 1 if trouble(values) else 0
            if self._spell[text] == PATIENCE:
                due.append("warning: " + text.format(**values._asdict()))
        return due


def validation_gap(training_bound: float, validation_bound: float) -> list[str]:
    """Warns of a validation bound far below training's, both in nats per frame."""
    gap = training_bound - validation_bound
    if gap > 0.1 * max(abs(training_bound), 100.0):
        return [
            f"warning: the validation bound is {gap:.1f} nats per frame below training's: in a new "
            "--run_dir, --continue_from this run with more training data (--train_data) or --l2 would help"
        ]
    return []


def non_finite_report(
    model: SQAIR, obs: tf.Tensor, noise: Noise, loss: Callable[[Forward], tf.Tensor], step: int
) -> dict[str, Any]:
    """Runs a bad batch again and says where its numbers are not finite.

    Args:
      model: with the weights the batch was bad for.
      obs, noise: the batch.
      loss: function of a `Forward`.
      step: number of the batch in the order of training.

    Returns:
      JSON values: batch_index; loss, as text if it is not finite; observations_finite; terms, the names of
      log-probabilities with a value that is not finite; variables and gradients, the names of variables with a value
      or a gradient that is not finite.
    """
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        forward = model(obs, noise)
        value = loss(forward)
    gradients = tape.gradient(value, variables, unconnected_gradients="zero")
    total = float(value)
    return {
        "batch_index": step,
        "loss": total if math.isfinite(total) else str(total),
        "observations_finite": _finite(obs),
        "terms": non_finite_terms(forward),
        "variables": [v.name for v in variables if not _finite(v)],
        "gradients": [v.name for v, g in zip(variables, gradients) if not _finite(g)],
    }


def non_finite_terms(forward: Forward) -> list[str]:
    """Names of a forward pass's log-probability terms that have a value which is not finite."""
    terms: dict[str, Sequence[tf.Tensor]] = {"data likelihood": [forward.data_ll]}
    for name, log_probs in (
        ("discovery posterior", forward.q_discovery),
        ("discovery prior", forward.p_discovery),
        ("propagation posterior", forward.q_propagation),
        ("propagation prior", forward.p_propagation),
    ):
        for part, value in zip(log_probs._fields, log_probs):
            terms[f"{name} of {'number of objects or presence' if part == 'discrete' else part}"] = [value]
    return [name for name, values in terms.items() if not all(_finite(v) for v in values)]


def _finite(x: tf.Tensor) -> bool:
    return bool(np.isfinite(np.asarray(x)).all())
