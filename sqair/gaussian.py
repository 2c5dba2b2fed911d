"""The likelihood of pixels, p(x | z) = N(x; canvas, std) for each of them, once for TensorFlow and for numpy."""

import math
from typing import Any

import numpy as np


def log_likelihood(squares: Any, n_pixels: int, std: Any) -> Any:
    """The log-density of independent pixels in nats: -squares / (2 std^2) - n (log std + log(2 pi) / 2).

    Args:
      squares: the sum of (x - canvas)^2 over n pixels: a tensor or an array of any shape.
      n_pixels: n; 1 for the log-density of every single pixel.
      std: standard deviation, a number or an array that broadcasts with squares.

    Returns:
      As squares.
    """
    return -0.5 * squares / std**2 - n_pixels * (np.log(std) + 0.5 * math.log(2 * math.pi))
