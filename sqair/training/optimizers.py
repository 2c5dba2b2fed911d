"""TensorFlow 1's optimisers and learning-rate schedule, the original's (docs/spec/sqair.md, "Objective").

They differ from Sonnet 2's and Keras's in ways that matter in the first steps of a run: RMSProp's mean squares start at
one, and epsilon is inside its square root.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from data_gen.errors import UserError
from sqair.training.rules import RULES, Update


class Optimizer(tf.Module):
    """Updates variables by one of `RULES`. Those of TensorFlow 1, g the gradient and a the learning rate:

    rmsprop:  s = .9 s + .1 g^2;  m = .9 m + a g / sqrt(s + 1e-10);  x -= m;  s starts at 1
    adam:     m = .9 m + .1 g;  v = .999 v + .001 g^2;  x -= a sqrt(1 - .999^t) / (1 - .9^t) m / (sqrt(v) + 1e-8)
    momentum: m = .9 m + g;  x -= a m
    sgd:      x -= a g
    """

    def __init__(self, kind: str, variables: Sequence[tf.Variable], name: str = "optimizer"):
        """Creates the slots.

        Args:
          kind: a key of `RULES`.
          variables: what to train; their order is kept.
          name: module name.

        Raises:
          ValueError: there is no such kind.
        """
        super().__init__(name=name)
        if kind not in RULES:
            raise ValueError(f"optimiser {kind!r}: no such kind; choose from {', '.join(RULES)}")
        self.kind = kind
        self.variables_to_train = list(variables)
        self.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="updates")
        self.slots: dict[str, list[tf.Variable]] = {
            slot: [tf.Variable(tf.fill(v.shape, start), trainable=False, name=slot) for v in self.variables_to_train]
            for slot, start in RULES[kind].slots.items()
        }

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        """Updates all variables once. Args: gradients in the variables' order; learning_rate: scalar."""
        self.updates.assign_add(1)
        t = tf.cast(self.updates, tf.float32)
        for i, (x, g) in enumerate(zip(self.variables_to_train, gradients)):
            slots = {name: variables[i] for name, variables in self.slots.items()}
            RULES[self.kind].apply(Update(x, g, slots, learning_rate, t))


class Schedule:
    """The learning rate by step.

    The original's: `schedule` 'a,b,c' splits train_itr in these proportions, and the rate is divided by 3 at each
    boundary. With `final_rate` f > 0 the rate r falls along half a cosine wave instead, from step d = `decay_itr` on:
    f + (r - f) (1 + cos(pi x)) / 2 with x = (step - d) / (train_itr - d) in [0, 1] (Loshchilov & Hutter 2017, eq. 5).
    """

    def __init__(
        self, learning_rate: float, schedule: str, train_itr: int, final_rate: float = 0.0, decay_itr: int = 0
    ):
        """Raises: UserError: the schedule is not a list of positive numbers, or the fall begins after the last step."""
        self.learning_rate, self.final_rate = learning_rate, final_rate
        self.decay_itr, self.train_itr = decay_itr, train_itr
        self.boundaries: list[int] = []
        if final_rate:
            if decay_itr >= train_itr > 0:
                raise UserError(
                    f"decay_itr {decay_itr}: the learning rate falls from there to train_itr {train_itr}; "
                    "choose fewer steps than those"
                )
        elif schedule:
            try:
                parts = np.cumsum([float(x) for x in schedule.split(",")])
            except ValueError:
                parts = np.array([np.nan])
            if not (np.isfinite(parts).all() and (np.diff(parts, prepend=0.0) > 0).all()):
                raise UserError(f"schedule must be positive numbers with commas, as in '4,6,10', got {schedule!r}")
            self.boundaries = [int(x) for x in np.round(parts * train_itr / parts[-1])][:-1]

    def __call__(self, step: int) -> float:
        """The rate of the update that follows `step` updates."""
        if self.final_rate:
            done = np.clip((step - self.decay_itr) / max(self.train_itr - self.decay_itr, 1), 0.0, 1.0)
            return float(self.final_rate + (self.learning_rate - self.final_rate) * 0.5 * (1.0 + np.cos(np.pi * done)))
        return self.learning_rate * (1.0 / 3.0) ** sum(step > boundary for boundary in self.boundaries)
