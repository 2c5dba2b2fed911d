"""The list of optimisers, by the value of --opt: `sqair.training.optimizers` applies them, docs/extending.md adds one.

Only the updates import TensorFlow, which takes seconds: commands read their options without it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Update(NamedTuple):
    """One update of one variable: the variable, its gradient, its slots by name, the learning rate, and t, the number
    of this update from 1 on, float32."""

    variable: Any
    gradient: Any
    slots: Mapping[str, Any]
    learning_rate: Any
    t: Any


class Rule(NamedTuple):
    """An optimiser. slots: variables kept beside each trained one, name -> value at the start. apply: one update."""

    slots: Mapping[str, float]
    apply: Callable[[Update], Any]


# The updates are TensorFlow's own kernels, those that TensorFlow 1 ran.
def _rmsprop(u: Update) -> Any:
    from tensorflow import raw_ops

    return raw_ops.ResourceApplyRMSProp(
        var=u.variable.handle,
        ms=u.slots["rms"].handle,
        mom=u.slots["momentum"].handle,
        lr=u.learning_rate,
        rho=0.9,
        momentum=0.9,
        epsilon=1e-10,
        grad=u.gradient,
    )


def _adam(u: Update) -> Any:
    from tensorflow import raw_ops

    return raw_ops.ResourceApplyAdam(
        var=u.variable.handle,
        m=u.slots["m"].handle,
        v=u.slots["v"].handle,
        beta1_power=0.9**u.t,
        beta2_power=0.999**u.t,
        lr=u.learning_rate,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        grad=u.gradient,
    )


def _sgd(u: Update) -> Any:
    from tensorflow import raw_ops

    return raw_ops.ResourceApplyGradientDescent(var=u.variable.handle, alpha=u.learning_rate, delta=u.gradient)


def _momentum(u: Update) -> Any:
    from tensorflow import raw_ops

    return raw_ops.ResourceApplyMomentum(
        var=u.variable.handle, accum=u.slots["momentum"].handle, lr=u.learning_rate, grad=u.gradient, momentum=0.9
    )


RULES: dict[str, Rule] = {
    "rmsprop": Rule({"rms": 1.0, "momentum": 0.0}, _rmsprop),
    "adam": Rule({"m": 0.0, "v": 0.0}, _adam),
    "sgd": Rule({}, _sgd),
    "momentum": Rule({"momentum": 0.0}, _momentum),
}
