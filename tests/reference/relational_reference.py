"""Recorded figures of the original relational modules (relational.npz), and their weights, redrawn from their names.

relational.npz holds, for Sonnet 1.36's RelationalMemory fed with flattened inputs (`rmc_flat`) or one row per object
(`rmc_matrix`) and for R-NEM's interaction cell (`in`): inputs, outputs, loss = sum(sin(output)) and its gradients.
"""

import functools
from pathlib import Path

import numpy as np
import sonnet as snt
import tensorflow as tf

from tests.reference import redraw as redraw_lib

FIXTURE = Path(__file__).parent / "relational.npz"
redraw = functools.partial(redraw_lib.redraw, seed=redraw_lib.SEEDS["relational"])


def recorded(module: str) -> dict[str, np.ndarray]:
    """All recorded arrays of "in", "rmc_flat" or "rmc_matrix", without the prefix, gradients as "grad_<variable>"."""
    prefix = module + "_"
    with np.load(FIXTURE) as arrays:
        return {key.removeprefix(prefix).replace("|", "/"): arrays[key] for key in arrays if key.startswith(prefix)}


def variables_by_original(
    module: snt.Module, layers: dict[str, str], weights: str = "w", biases: str = "b"
) -> dict[str, tf.Variable]:
    """The module's variables by their names in the original program.

    Args:
      module: our module.
      layers: our layer, as a path inside the module -> the original's whole path.
      weights: the original's name of a linear layer's weights.
      biases: the original's name of a linear layer's biases.

    Returns:
      Original variable name -> our variable, for every variable of the module.
    """
    leaves = {"w": weights, "b": biases, "scale": "gamma", "offset": "beta"}
    variables = {}
    for variable in module.trainable_variables:
        layer, leaf = variable.name.removesuffix(":0").removeprefix(module.name + "/").rsplit("/", 1)
        variables[f"{layers[layer]}/{leaves[leaf]}"] = variable
    return variables


def assign_recorded_weights(variables: dict[str, tf.Variable]) -> None:
    """Gives every variable the weights recorded under its original name."""
    for name, variable in variables.items():
        variable.assign(redraw(name, tuple(variable.shape)))


def assert_close(actual, expected, name: str, tolerance: float = 1e-5) -> None:
    """Asserts that the largest difference is below `tolerance` of the largest expected magnitude."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, name
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    assert difference < tolerance, f"{name}: relative difference {difference:.2e}"
