"""Crops: the spatial transformer's reading direction, with a hand-written derivative.

What is computed is `sqair.spatial_transformer`'s bilinear reading, the same in both axes: glimpse pixel (v, u) is
sum_ij hat(y_v - i) hat(x_u - j) image_ij with hat(d) = max(0, 1 - |d|). Two things make it fast (docs/performance.md):

- In each row and column two hat weights are not zero. So a gather reads the two columns around x_u, then the two rows
  of the result around y_v, instead of multiplying by matrices of weights that are mostly zero. Images have two zeros on
  every side, so that windows across an edge are no special case.
- Only `where` has a gradient, images are data. d glimpse / dx is the step from one column to the next, d glimpse / dy
  that from row to row, and both are available while the glimpse is computed; they are summed there to the derivatives
  by scale and shift. The automatic derivative of gathers, which would scatter into images, is never computed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sqair.spatial_transformer import image_to_rows, scale_and_shift, unit_grid


class Columns(NamedTuple):
    """Images as `crop` reads them: columns [..., B, W+3, C*(H+4)] of images padded with two zeros on every side, the
    last column left out; and the difference from each column to the next."""

    values: tf.Tensor
    steps: tf.Tensor


def image_to_columns(image: tf.Tensor, channels: int) -> Columns:
    """[..., B, H, W] or [..., B, H, W, C] -> `Columns`."""
    rows = image_to_rows(image, channels)
    *leading, height, width = rows.shape
    rows = tf.reshape(rows, [-1, height, channels, width // channels])
    columns = tf.transpose(tf.pad(rows, [[0, 0], [2, 2], [0, 0], [2, 2]]), [0, 3, 2, 1])  # [L, W+4, C, H+4]
    columns = tf.reshape(columns, [*leading, columns.shape[1], channels * (height + 4)])
    return Columns(columns[..., :-1, :], columns[..., 1:, :] - columns[..., :-1, :])


def crop(columns: Columns, where: tf.Tensor, glimpse_shape: Sequence[int], image: tf.Tensor | None = None) -> tf.Tensor:
    """Glimpses of the windows `where`.

    Along an axis of n pixels, pixel u of a glimpse, in linspace(-1, 1, h), reads position ((s u + t) + 1) (n - 1) / 2.

    Args:
      columns: `Columns` of images [B, H, W, C].
      where: [..., P, 4] logits of a window for each of the P = B*K particles, particles of one image contiguous.
      glimpse_shape: (h, h, C).
      image: int32 [P] the image of each window, where [P, 4]; any number of them. None: as described at `where`.

    Returns:
      [..., P, h*h*C], flattened as the original flattens; zero outside of the image. No gradient flows to the images.

    Raises:
      ValueError: the glimpse is not square.
    """
    h, w, channels = glimpse_shape
    if h != w:
        raise ValueError(f"glimpses of {h} x {w} pixels: expected square ones")
    batch, width, height = columns.values.shape[0], columns.values.shape[1] - 3, columns.values.shape[2] // channels - 4
    values, steps = (tf.reshape(x, [batch * (width + 3), -1]) for x in columns)
    if image is None:
        windows, particles, arange, leading = math.prod(where.shape[:-1]), where.shape[-2], np.arange, where.shape[:-1]
        image = np.tile(np.repeat(np.arange(batch, dtype=np.int32), particles // batch), windows // particles)
    else:
        windows, arange, leading = tf.size(image), tf.range, [-1]
    first_column = image[:, None] * (width + 3)
    first_row = (
        arange(windows, dtype=np.int32)[:, None, None] * channels + np.arange(channels, dtype=np.int32)[:, None]
    ) * (height + 4)
    grid, sizes = unit_grid(h, where.dtype), np.array([[width], [height]], np.int32)
    unit = tf.constant(0.5 * (sizes - 1), where.dtype)

    @tf.custom_gradient
    def resample(scale, shift):  # [M, 2] of all M windows: x, y
        position = (tf.expand_dims(scale, -1) * grid + tf.expand_dims(shift, -1) + 1.0) * unit
        # The pixel below, counting the two zeros before the first. Positions further out read zeros too; a position
        # that is NaN leaves a remainder of NaN.
        below = tf.clip_by_value(tf.cast(tf.floor(position), tf.int32), -2, sizes)
        column, row = tf.unstack(below + 2, axis=1)
        x_rest, y_rest = tf.unstack(position - tf.cast(below, position.dtype), axis=1)
        column, row = column + first_column, tf.expand_dims(row, 1) + first_row
        x_rest, y_rest = tf.expand_dims(x_rest, 2), tf.reshape(y_rest, [windows, 1, h, 1])

        def at_rows(strips):  # [M, w, C*(H+4)] -> the rows below y and the steps to the next, [M, C, h, w]
            strips = tf.reshape(tf.transpose(strips, [0, 2, 1]), [-1, w])
            below = tf.gather(strips, row)
            return below, tf.gather(strips, row + 1) - below

        # The derivatives are computed here, while their inputs are in the cache; a graph without gradients drops them.
        step = tf.gather(steps, column)
        below, dy = at_rows(tf.gather(values, column) + x_rest * step)
        dx_below, dx_step = at_rows(step)
        dx = dx_below + y_rest * dx_step

        def derive(upstream):
            by_position = unit * tf.stack(
                [tf.reduce_sum(upstream * dx, [1, 2]), tf.reduce_sum(upstream * dy, [1, 3])], 1
            )
            return tf.reduce_sum(by_position * grid, -1), tf.reduce_sum(by_position, -1)

        return below + y_rest * dy, derive

    glimpse = resample(*scale_and_shift(tf.reshape(where, [windows, 4])))
    if channels > 1:
        glimpse = tf.transpose(glimpse, [0, 2, 3, 1])
    return tf.reshape(glimpse, [*leading, h * w * channels])
