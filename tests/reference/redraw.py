"""The weights of the recorded figures, redrawn from the variables' names, and folders made of them.

The rule is that of the recordings: for a variable `name` of shape s, r = RandomState(crc32(name) ^ seed) and
x = r.randn(*s); a matrix of more than one row is x / sqrt(rows), anything else .1 x, a layer norm's gamma 1 + .1 x.
"""

import json
import shutil
import zlib
from pathlib import Path

import attrs
import numpy as np

from sqair.config import load_flags
from sqair.model import SQAIR
from sqair.runs import original

HERE = Path(__file__).parent
RECORDED = HERE.parents[2] / "shared" / "reference"  # the whole recordings, not part of the repository
SEEDS = {
    "mnist_default": 0,
    "balls": 1,
    "relational": 3,
    "cells": 12,
    "l2": 14,
    "generate": 21,
    "generate_guided": 22,
    "sample_nogen": 23,
}
ADDED = ("cells", "l2")  # recordings in which what was drawn for a bias was added to its initial value
CARRIED = ("balls", "cells", "l2", "sample_nogen", "generate_guided")  # here; canvases only for balls


def redraw(variable: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The weights that the original variable of this name and shape had when its figures were recorded."""
    draw = np.random.RandomState(zlib.crc32(variable.encode()) ^ seed).randn(*shape)
    if len(shape) == 2 and shape[0] > 1:
        return draw / np.sqrt(shape[0])
    return 0.1 * draw + variable.endswith("gamma")


def variable_shapes(recording: str) -> dict[str, list[int]]:
    """Original name -> shape of every variable of a recorded checkpoint except optimiser slots and the global step."""
    recorded = json.loads((HERE / "original_variables.json").read_text())
    if recording in recorded:
        return recorded[recording]
    folder = HERE / recording if recording in CARRIED else RECORDED / recording
    with np.load(folder / "inputs.npz") as inputs:
        image_shape = inputs["mean_img"].shape
    model = SQAIR(attrs.evolve(load_flags(folder / "flags.json")[0].model, image_shape=image_shape))
    shapes = {name: original.original_shape(columns) for name, columns in original.original_names(model).items()}
    shapes["decoder/air_decoder/Variable"] = [*image_shape, 1]
    return {**shapes, **{name: [] for name in original.original_constants(model)}}


def redraw_sqair(recording: str, flags: dict, mean_image: np.ndarray) -> dict[str, np.ndarray]:
    """All values of a recorded SQAIR checkpoint, float32; scalars and the mean image are as the original starts them.

    Args: recording: its name. flags: its flags. mean_image: [H, W].
    """
    kept = {
        "decoder/air_decoder/Variable": mean_image[..., None],
        "decoder/air_decoder/decoder/output_scale": flags["output_scale"],
        "decoder/air_decoder/output_std": np.sqrt(flags["output_std"]),
        "decoder/air_decoder/background_std": np.sqrt(flags["output_std"]),
        "propagation/propagation_core/where_update_scale": 1.0,
        "propagation/propagation_core/steps_predictor/mlp/linear_1/b": [flags["prop_step_bias"] - 4.0],
        "discovery/discovery_core/steps_predictor/mlp/linear_1/b": [flags["disc_step_bias"] - 0.5],
    }
    scale_prior = [float(x) for x in flags["scale_prior"].split(",")]
    initial = (
        {
            "propagation/propagation_core/what/linear/b": 1.0,
            "discovery/discovery_core/air_encoder/mlp/linear_1/b": 1.0,
            "discovery/discover/recurrent_normal_impl/linear/b": [scale_prior[0], scale_prior[-1], 0, 0, 1, 1, 1, 1],
        }
        if recording in ADDED
        else {}
    )
    values = {}
    for name, shape in variable_shapes(recording).items():
        if name.endswith("/min_std"):
            value = 0.01
        elif name.endswith("/scale_offset"):
            value = flags["transform_var_bias"]
        else:
            value = kept[name] if name in kept else redraw(name, tuple(shape), SEEDS[recording])
            value = value + np.asarray(initial.get(name, 0.0))
        values[name] = np.reshape(np.asarray(value, np.float32), shape)
    return values


def make_folder(recording: str, folder: Path) -> Path:
    """A recorded folder made of the figures stored here and redrawn weights."""
    shutil.copytree(HERE / recording, folder)
    flags = json.loads((folder / "flags.json").read_text())
    with np.load(folder / "inputs.npz") as inputs:
        mean_image = inputs["mean_img"]
    original.write_original(str(folder / "model.ckpt-0"), redraw_sqair(recording, flags, mean_image))
    return folder
