"""Attention windows: crops, pastes and boxes (docs/spec/sqair.md, "Spatial transformer").

AIR's spatial transformer, whose affine map has a scale s and a shift t per axis, in coordinates from -1 to 1 over the
centres of an axis's n pixels::

    (sx, sy) = max(sigmoid(where_1, where_2), 1e-4),  (tx, ty) = tanh(where_3, where_4)
    crop:   glimpse pixel u reads image position ((s u + t) + 1) (n_image - 1) / 2
    paste:  image pixel v reads glimpse position ((v - t) / s + 1) (n_glimpse - 1) / 2

There is no rotation or shear, so that both resample one axis after the other, bilinearly. A crop reads whole columns of
an image, then rows of those; no gradient flows to images, which are data. A paste, whose glimpses need one, is two
products with matrices of hat weights max(0, 1 - |p - i|), p the source coordinate of an output pixel: the values and
gradients of a gather-based resampler, as matrix products. Canvases are held as rows, [..., H, C*W], so that grey and
colour take the same path.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

MIN_SCALE = 1e-4


def _scale_and_shift(where: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(sx, sy) and (tx, ty), [..., 2] each; see `to_coords`."""
    scale, shift = tf.split(where, 2, -1)
    scale, shift = tf.sigmoid(scale), tf.tanh(shift)
    return scale + tf.stop_gradient(tf.maximum(scale, MIN_SCALE) - scale), shift


def to_coords(where: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """(sx, sy, tx, ty), [...] each, of `where` logits [..., 4]: sigmoid of the first two, tanh of the last two.

    Scales are at least 1e-4, with the gradient passed straight through the bound.
    """
    scale, shift = _scale_and_shift(where)
    return (*tf.unstack(scale, axis=-1), *tf.unstack(shift, axis=-1))


def _grid(n: int, dtype: tf.DType) -> tf.Tensor:
    """linspace(-1, 1, n) as one operation; `tf.linspace` adds about thirty to the graph."""
    return tf.raw_ops.LinSpace(start=tf.constant(-1.0, dtype), stop=tf.constant(1.0, dtype), num=n)


def hat_weights(position: tf.Tensor, size: int) -> tf.Tensor:
    """Bilinear weights max(0, 1 - |p - i|) of pixels i = 0..size-1 for positions p [..., n]; [..., size, n]."""
    pixels = tf.expand_dims(tf.range(size, dtype=position.dtype), -1)
    return tf.nn.relu(1.0 - tf.abs(tf.expand_dims(position, -2) - pixels))


def sum_of_hat_weights(position: tf.Tensor, size: int) -> tf.Tensor:
    """The sum of `hat_weights` over the pixels, [...]: one between the first and the last, and falling outside."""
    return tf.clip_by_value(tf.minimum(position + 1.0, size - position), 0.0, 1.0)


def paste_positions(scale: tf.Tensor, shift: tf.Tensor, n_out: int, n_in: int) -> tf.Tensor:
    """Positions [..., n_out] in a glimpse axis of n_in pixels that an image axis's pixels read: a crop's inverse."""
    grid = _grid(n_out, scale.dtype)
    scale, shift = tf.expand_dims(scale, -1), tf.expand_dims(shift, -1)
    return ((grid - shift) / scale + 1.0) * (0.5 * (n_in - 1))


def image_to_rows(image: tf.Tensor, channels: int) -> tf.Tensor:
    """[..., H, W] or [..., H, W, C] -> rows [..., H, C*W]."""
    if channels == 1:
        return image if image.shape[-1] != 1 else image[..., 0]
    rank = image.shape.rank
    image = tf.transpose(image, list(range(rank - 2)) + [rank - 1, rank - 2])
    return tf.reshape(image, tf.concat([tf.shape(image)[:-2], [-1]], 0))


def rows_to_image(rows: tf.Tensor, channels: int) -> tf.Tensor:
    """The inverse of `image_to_rows`: [..., H, C*W] -> [..., H, W] or [..., H, W, C]."""
    if channels == 1:
        return rows
    shape = tf.shape(rows)
    image = tf.reshape(rows, tf.concat([shape[:-1], [channels, shape[-1] // channels]], 0))
    rank = image.shape.rank
    return tf.transpose(image, list(range(rank - 2)) + [rank - 1, rank - 2])


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
    columns = tf.transpose(tf.pad(rows, [[0, 0], [2, 2], [0, 0], [2, 2]]), [0, 3, 2, 1])        # [L, W+4, C, H+4]
    columns = tf.reshape(columns, [*leading, columns.shape[1], channels * (height + 4)])
    return Columns(columns[..., :-1, :], columns[..., 1:, :] - columns[..., :-1, :])


def crop(columns: Columns, where: tf.Tensor, glimpse_shape: Sequence[int], image: tf.Tensor | None = None
         ) -> tf.Tensor:
    """Glimpses of the windows `where`.

    Along an axis of n pixels, pixel u of a glimpse, in linspace(-1, 1, h), reads position ((s u + t) + 1) (n - 1) / 2.

    Args:
      columns: `Columns` of images [B, H, W, C].
      where: [..., P, 4] logits of a window for each of the P = B*K particles, particles of one image contiguous.
      glimpse_shape: (h, h, C).
      image: int32 [P] the image of each window, where [P, 4]; any number of them. None: as said at `where`.

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
    first_row = (arange(windows, dtype=np.int32)[:, None, None] * channels
                 + np.arange(channels, dtype=np.int32)[:, None]) * (height + 4)
    grid, sizes = _grid(h, where.dtype), np.array([[width], [height]], np.int32)
    unit = tf.constant(0.5 * (sizes - 1), where.dtype)

    @tf.custom_gradient
    def resample(scale, shift):     # [M, 2] of all M windows: x, y
        position = (tf.expand_dims(scale, -1) * grid + tf.expand_dims(shift, -1) + 1.0) * unit
        # The pixel below, counting the two zeros before the first. Positions further out read zeros too; a position
        # that is NaN leaves a remainder of NaN.
        below = tf.clip_by_value(tf.cast(tf.floor(position), tf.int32), -2, sizes)
        column, row = tf.unstack(below + 2, axis=1)
        x_rest, y_rest = tf.unstack(position - tf.cast(below, position.dtype), axis=1)
        column, row = column + first_column, tf.expand_dims(row, 1) + first_row
        x_rest, y_rest = tf.expand_dims(x_rest, 2), tf.reshape(y_rest, [windows, 1, h, 1])

        def at_rows(strips):        # [M, w, C*(H+4)] -> the rows below y and the steps to the next, [M, C, h, w]
            strips = tf.reshape(tf.transpose(strips, [0, 2, 1]), [-1, w])
            below = tf.gather(strips, row)
            return below, tf.gather(strips, row + 1) - below

        # The derivatives are computed here, while their inputs are in the cache; a graph without gradients drops them.
        step = tf.gather(steps, column)
        below, dy = at_rows(tf.gather(values, column) + x_rest * step)
        dx_below, dx_step = at_rows(step)
        dx = dx_below + y_rest * dx_step

        def derive(upstream):
            by_position = unit * tf.stack([tf.reduce_sum(upstream * dx, [1, 2]), tf.reduce_sum(upstream * dy, [1, 3])],
                                          1)
            return tf.reduce_sum(by_position * grid, -1), tf.reduce_sum(by_position, -1)

        return below + y_rest * dy, derive

    glimpse = resample(*_scale_and_shift(tf.reshape(where, [windows, 4])))
    if channels > 1:
        glimpse = tf.transpose(glimpse, [0, 2, 3, 1])
    return tf.reshape(glimpse, [*leading, h * w * channels])


def paste(glimpse: tf.Tensor, where: tf.Tensor, presence: tf.Tensor, glimpse_shape: Sequence[int],
          image_shape: Sequence[int]) -> tf.Tensor:
    """The sum over slots of presence times the glimpse, resampled into its window of the image.

    Args:
      glimpse: [L, N, h*w*C].
      where: [L, N, 4] logits.
      presence: [L, N].
      glimpse_shape: (h, w, C).
      image_shape: (H, W).

    Returns:
      [L, H, C*W] rows.
    """
    h, w, channels = glimpse_shape
    height, width = image_shape
    slots = where.shape[1]
    sx, sy, tx, ty = to_coords(where)
    down = hat_weights(paste_positions(sy, ty, height, h), h)          # [L, N, h, H]
    across = hat_weights(paste_positions(sx, tx, width, w), w)         # [L, N, w, W]
    glimpse *= presence[..., None]
    if channels > 1:
        glimpse = image_to_rows(tf.reshape(glimpse, [-1, h, w, channels]), channels)
    strips = tf.matmul(tf.reshape(glimpse, [-1, h * channels, w]), tf.reshape(across, [-1, w, width]))
    return tf.matmul(tf.reshape(down, [-1, slots * h, height]), tf.reshape(strips, [-1, slots * h, channels * width]),
                     transpose_a=True)


def coverage(where: tf.Tensor, presence: tf.Tensor, glimpse_shape: Sequence[int],
             image_shape: Sequence[int]) -> tf.Tensor:
    """`paste` of all-one glimpses, [L, H, W]: an outer product, since the weights of each axis are summed up."""
    h, w, _ = glimpse_shape
    height, width = image_shape
    sx, sy, tx, ty = to_coords(where)
    down = sum_of_hat_weights(paste_positions(sy, ty, height, h), h)          # [L, N, H]
    across = sum_of_hat_weights(paste_positions(sx, tx, width, w), w)         # [L, N, W]
    return tf.matmul(down * presence[..., None], across, transpose_a=True)
