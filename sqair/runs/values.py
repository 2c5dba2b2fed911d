"""The values of TensorFlow's checkpoints, ours and the original's, read and checked."""

import os
import re
import struct

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from data_gen.errors import UserError
from sqair.config import ModelConfig
from sqair.model import SQAIR
from sqair.runs.index import check_index

# What TensorFlow, protocol buffers and the reading of the index raise about a damaged checkpoint.
DAMAGE = (
    tf.errors.OpError,
    DecodeError,
    ValueError,
    AssertionError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    struct.error,
)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 300 characters."""
    # TensorFlow puts the graph node before the text and the operation's name behind it.
    text = re.sub(r"\{\{.*?\}\} ?| \[Op:.*", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0][:300]


def read_values(prefix: str) -> dict[str, np.ndarray]:
    """Reads all values of a checkpoint, so that damage anywhere in its files is found.

    Args:
      prefix: path without .index.

    Returns:
      Variable name -> value.

    Raises:
      UserError: there is no such checkpoint, a file of it is missing or damaged, or a value is not finite.
    """
    if not os.path.exists(f"{prefix}.index"):
        raise UserError(f"{prefix}: no such checkpoint ({prefix}.index is missing)")
    try:
        check_index(prefix)
        reader = tf.train.load_checkpoint(prefix)
        values = {name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}
    except DAMAGE as error:
        raise UserError(f"{prefix}: damaged or incomplete checkpoint ({first_line(error)})") from None
    for name, value in values.items():
        # A run that has not been evaluated yet has no best bound.
        if value.dtype.kind == "f" and not np.isfinite(value).all() and "best_bound" not in name:
            raise UserError(f"{prefix}: damaged checkpoint ({name} is not finite)")
    return values


def make_model(config: ModelConfig, n_values: int, prefix: str) -> SQAIR:
    """Makes a model for stored values.

    Args:
      config: of the model.
      n_values: how many numbers are stored.
      prefix: of the checkpoint.

    Raises:
      UserError: they are far too few; wrong flags could otherwise use all memory.
    """
    if config.least_weights > n_values:
        raise UserError(
            f"{prefix} does not fit its flags: they ask for more than {config.least_weights:,} weights, it "
            f"holds {n_values:,} values"
        )
    return SQAIR(config)


def read_ours(prefix: str) -> dict[str, np.ndarray]:
    """`read_values` of a checkpoint of ours, whose step must be that of its name."""
    values, step = read_values(prefix), prefix.rsplit("-", 1)[-1]
    if str(values.get("state/step/.ATTRIBUTES/VARIABLE_VALUE")) != step:
        raise UserError(f"{prefix}: damaged checkpoint (it is not of step {step})")
    return values
