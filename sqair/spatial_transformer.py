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

from collections.abc import Sequence

import tensorflow as tf

MIN_SCALE = 1e-4


def scale_and_shift(where: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(sx, sy) and (tx, ty), [..., 2] each; see `to_coords`."""
    scale, shift = tf.split(where, 2, -1)
    scale, shift = tf.sigmoid(scale), tf.tanh(shift)
    return scale + tf.stop_gradient(tf.maximum(scale, MIN_SCALE) - scale), shift


def to_coords(where: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """(sx, sy, tx, ty), [...] each, of `where` logits [..., 4]: sigmoid of the first two, tanh of the last two.

    Scales are at least 1e-4, with the gradient passed straight through the bound.
    """
    scale, shift = scale_and_shift(where)
    return (*tf.unstack(scale, axis=-1), *tf.unstack(shift, axis=-1))


def unit_grid(n: int, dtype: tf.DType) -> tf.Tensor:
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
    grid = unit_grid(n_out, scale.dtype)
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


def paste(
    glimpse: tf.Tensor, where: tf.Tensor, presence: tf.Tensor, glimpse_shape: Sequence[int], image_shape: Sequence[int]
) -> tf.Tensor:
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
    down = hat_weights(paste_positions(sy, ty, height, h), h)  # [L, N, h, H]
    across = hat_weights(paste_positions(sx, tx, width, w), w)  # [L, N, w, W]
    glimpse *= presence[..., None]
    if channels > 1:
        glimpse = image_to_rows(tf.reshape(glimpse, [-1, h, w, channels]), channels)
    strips = tf.matmul(tf.reshape(glimpse, [-1, h * channels, w]), tf.reshape(across, [-1, w, width]))
    return tf.matmul(
        tf.reshape(down, [-1, slots * h, height]),
        tf.reshape(strips, [-1, slots * h, channels * width]),
        transpose_a=True,
    )


def coverage(
    where: tf.Tensor, presence: tf.Tensor, glimpse_shape: Sequence[int], image_shape: Sequence[int]
) -> tf.Tensor:
    """`paste` of all-one glimpses, [L, H, W]: an outer product, since the weights of each axis are summed up."""
    h, w, _ = glimpse_shape
    height, width = image_shape
    sx, sy, tx, ty = to_coords(where)
    down = sum_of_hat_weights(paste_positions(sy, ty, height, h), h)  # [L, N, H]
    across = sum_of_hat_weights(paste_positions(sx, tx, width, w), w)  # [L, N, W]
    return tf.matmul(down * presence[..., None], across, transpose_a=True)
