"""The weights of the recorded figures, redrawn from the variables' names, and folders made of them.

The rule is that of the recordings: for a variable `name` of shape s, r = RandomState(crc32(name) ^ seed) and
x = r.randn(*s); a matrix of more than one row is x / sqrt(rows), anything else .1 x, a layer norm's gamma 1 + .1 x.
"""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np

from sqair.original import write_original

HERE = Path(__file__).parent
RECORDED = HERE.parents[2] / "shared" / "reference"   # the whole recordings, not part of the repository
SEEDS = {"mnist_default": 0, "balls": 1, "relational": 3}


def redraw(variable: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The weights that the original variable of this name and shape had when its figures were recorded."""
    draw = np.random.RandomState(zlib.crc32(variable.encode()) ^ seed).randn(*shape)
    if len(shape) == 2 and shape[0] > 1:
        return draw / np.sqrt(shape[0])
    return 0.1 * draw + variable.endswith("gamma")


def variable_shapes(recording: str) -> dict[str, list[int]]:
    """Original name -> shape of every variable of a recorded checkpoint but optimiser slots and the global step."""
    return json.loads((HERE / "original_variables.json").read_text())[recording]


def redraw_sqair(recording: str, flags: dict, mean_image: np.ndarray) -> dict[str, np.ndarray]:
    """All values of a recorded SQAIR checkpoint, float32; scalars and the mean image are as the original starts them.

    Args: recording: balls or mnist_default. flags: its flags. mean_image: [H, W].
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
    values = {}
    for name, shape in variable_shapes(recording).items():
        if name.endswith("/min_std"):
            value = 0.01
        elif name.endswith("/scale_offset"):
            value = flags["transform_var_bias"]
        else:
            value = kept[name] if name in kept else redraw(name, tuple(shape), SEEDS[recording])
        values[name] = np.reshape(np.asarray(value, np.float32), shape)
    return values


def make_balls_folder(folder: Path) -> Path:
    """The recorded folder `balls`, whole, made of the figures carried here and redrawn weights."""
    shutil.copytree(HERE / "balls", folder)
    flags = json.loads((folder / "flags.json").read_text())
    with np.load(folder / "inputs.npz") as inputs:
        mean_image = inputs["mean_img"]
    write_original(str(folder / "model.ckpt-0"), redraw_sqair("balls", flags, mean_image))
    return folder
