"""Boxes and centres in pixels: of the truth, of windows, and of what objects draw. Pure numpy.

Letters: S sequences, T frames, N slots, n objects of the truth, H x W the frame as the model sees it (50 x 50).

Coordinates: (row, column) in pixels of that frame, where the *centre* of pixel i is at i, so that a frame covers
[-0.5, H - 0.5] and matplotlib's ``imshow`` draws everything in place. The model's ``where`` uses them too
(its -1 and 1 are the centres of the first and last pixel); the data put pixel centres at i + 0.5, which
``pixel_centres`` subtracts. Boxes are top, left, height, width.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

CROP_SIZE = 50  # pixels per side that the model sees
MIN_SCALE = 1e-4  # the spatial transformer's lower bound on sx, sy
LEAST_INTENSITY = 0.1  # of white: an object that adds less to a pixel is not visible there (glimpses are never black)


def require(condition: Any, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def divide(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> np.ndarray:
    """numerator / denominator in float64, NaN where the denominator is 0."""
    denominator = np.asarray(denominator, float)
    return np.asarray(numerator, float) / np.where(denominator == 0, np.nan, denominator)


# ---------------------------------------------------------------------------------------------------------------
# Truth as stored -> pixels
# ---------------------------------------------------------------------------------------------------------------


def pixel_centres(positions: npt.ArrayLike, n: npt.ArrayLike, unit: float, start: npt.ArrayLike = (0, 0)) -> np.ndarray:
    """Positions in units of the box to (row, column) in pixels: unit x - start - 0.5.

    Args:
      positions: [T, S, n_max, 2] in units, x[0] the column, x[1] the row.
      n: [S], integers: the number of objects of each sequence.
      unit: pixels per unit: 64 / 15 for 4 and for 6 to 8 balls.
      start: row and column of the stored frame that the model's frame begins at: 7, 7 for 50 of 64 pixels.

    Returns:
      [S, T, n_max, 2] float64, (row, column) in pixels; NaN beyond a sequence's n.

    Raises:
      ValueError: if the shapes do not fit together.
    """
    positions, n = np.asarray(positions, float), np.asarray(n)
    shape = positions.shape
    require(len(shape) == 4 and shape[-1] == 2, f"positions must be [T, S, n_max, 2], got {shape}")
    require(n.shape == shape[1:2], f"n must be [S] = {shape[1:2]}, got {n.shape}")
    centres = positions.swapaxes(0, 1)[..., ::-1] * unit - np.asarray(start) - 0.5
    exists = np.arange(centres.shape[2]) < n[:, None]  # [S, n_max]
    return np.where(exists[:, None, :, None], centres, np.nan)


def boxes_from_discs(centres: npt.ArrayLike, radii: npt.ArrayLike, unit: float) -> np.ndarray:
    """The boxes of discs: the square around each, not clipped at the frame's edge.

    Args:
      centres: [S, T, n_max, 2], (row, column) in pixels, from ``pixel_centres``.
      radii: [S, n_max] in units of the box.
      unit: pixels per unit.

    Returns:
      [S, T, n_max, 4] float64: top, left, height, width in pixels; NaN where the centre is.

    Raises:
      ValueError: if the shapes do not fit together.
    """
    centres, radii = np.asarray(centres, float), np.asarray(radii, float)
    require(centres.ndim == 4 and centres.shape[-1] == 2, f"centres must be [S, T, n_max, 2], got {centres.shape}")
    expected = (centres.shape[0], centres.shape[2])
    require(radii.shape == expected, f"radii must be [S, n_max] = {expected}, got {radii.shape}")
    radius = np.broadcast_to((radii * unit)[:, None, :, None], centres.shape)
    diameter = np.where(np.isnan(centres), np.nan, 2.0 * radius)
    return np.concatenate([centres - radius, diameter], axis=-1)


def centres_inside(centres: npt.ArrayLike, image_size: npt.ArrayLike = CROP_SIZE) -> np.ndarray:
    """Whether a centre lies in the frame, [-0.5, size - 0.5) on both axes; False for NaN.

    Args:
      centres: [..., 2], (row, column) in pixels.
      image_size: side of the frame in pixels, or (H, W).

    Returns:
      [...] bool.
    """
    centres = np.asarray(centres, float)
    require(centres.shape[-1:] == (2,), f"centres must be [..., 2], got {centres.shape}")
    return np.all((centres >= -0.5) & (centres < np.asarray(image_size) - 0.5), axis=-1)


def visible_pixels(groups: npt.ArrayLike, balls: int) -> np.ndarray:
    """Visible pixels of each object: without those outside the crop, behind a curtain or behind other objects.

    Args:
      groups: [..., H, W], integers: 0 background, 1..n the ball.
      balls: n_max.

    Returns:
      [..., n_max] int64, pixels.
    """
    groups = np.asarray(groups)
    require(groups.ndim >= 2, f"groups must be [..., H, W], got {groups.shape}")
    return np.stack([np.sum(groups == ball, axis=(-2, -1)) for ball in range(1, balls + 1)], axis=-1)


# ---------------------------------------------------------------------------------------------------------------
# Boxes with each other and with the frame
# ---------------------------------------------------------------------------------------------------------------


def box_iou(first: npt.ArrayLike, second: npt.ArrayLike) -> np.ndarray:
    """Intersection over union of every pair of boxes.

    Args:
      first: [..., n, 4], top, left, height, width.
      second: [..., N, 4], the same leading axes.

    Returns:
      [..., n, N] float64 in [0, 1]; 0 where a box is NaN or both have no area.

    Raises:
      ValueError: if the last axis is not 4 or the leading axes differ.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    shapes = f"{first.shape} and {second.shape}"
    for boxes in (first, second):
        if boxes.ndim < 2 or boxes.shape[-1] != 4:
            raise ValueError(f"boxes must be [..., number, 4], got {shapes}")
    if first.shape[:-2] != second.shape[:-2]:
        raise ValueError(f"the leading axes of the boxes differ: {shapes}")
    first, second = first[..., :, None, :], second[..., None, :, :]
    start = np.maximum(first[..., :2], second[..., :2])
    end = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    intersection = np.prod(np.maximum(end - start, 0.0), axis=-1)
    union = np.prod(first[..., 2:], axis=-1) + np.prod(second[..., 2:], axis=-1) - intersection
    positive = union > 0  # False for NaN
    return np.where(positive, intersection, 0.0) / np.where(positive, union, 1.0)


def clip_boxes(boxes: npt.ArrayLike, image_size: npt.ArrayLike = CROP_SIZE) -> np.ndarray:
    """The part of each box inside the frame, [-0.5, size - 0.5]; no area if there is none.

    Args:
      boxes: [..., 4], top, left, height, width.
      image_size: side of the frame in pixels, or (H, W).

    Returns:
      [..., 4] float64.
    """
    boxes = np.asarray(boxes, float)
    size = np.asarray(image_size, float)
    start = np.clip(boxes[..., :2], -0.5, size - 0.5)
    end = np.clip(boxes[..., :2] + boxes[..., 2:], -0.5, size - 0.5)
    return np.concatenate([start, end - start], axis=-1)


# ---------------------------------------------------------------------------------------------------------------
# Where -> pixels
# ---------------------------------------------------------------------------------------------------------------


def _transform(where: npt.ArrayLike, image_size: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """where logits [..., 4] -> scale [..., 2], shift [..., 2], size [2], each (row, column)."""
    where = np.asarray(where, float)
    require(where.shape[-1:] == (4,), f"where must be [..., 4] (sx, sy, tx, ty), got {where.shape}")
    scale = np.maximum(expit(where[..., 1::-1]), MIN_SCALE)
    return scale, np.tanh(where[..., :1:-1]), np.broadcast_to(np.asarray(image_size, float), (2,))


def boxes_from_where(where: npt.ArrayLike, image_size: npt.ArrayLike = CROP_SIZE) -> np.ndarray:
    """The boxes SQAIR draws: height = (H + 1) sy, top = (H - 1)/2 (ty - sy + 1); width and left likewise from x.

    These are the original's formulas. Their middle lies sy pixels below and to the right of the glimpse's centre
    (a quarter of a pixel for a ball); positions are better taken from ``centres_from_where``.

    Args:
      where: [..., 4] logits (sx, sy, tx, ty), before sigmoid and tanh.
      image_size: side of the frame in pixels, or (H, W).

    Returns:
      [..., 4] float64: top, left, height, width in pixels.

    Raises:
      ValueError: if the last axis is not 4.
    """
    scale, shift, size = _transform(where, image_size)
    return np.concatenate([(size - 1) / 2 * (shift - scale + 1), (size + 1) * scale], axis=-1)


def centres_from_where(where: npt.ArrayLike, image_size: npt.ArrayLike = CROP_SIZE) -> np.ndarray:
    """The glimpse's centre in the frame, exactly: (H - 1)/2 (ty + 1), (W - 1)/2 (tx + 1).

    Args:
      where: [..., 4] logits (sx, sy, tx, ty), before sigmoid and tanh.
      image_size: side of the frame in pixels, or (H, W).

    Returns:
      [..., 2] float64: (row, column) in pixels.

    Raises:
      ValueError: if the last axis is not 4.
    """
    _, shift, size = _transform(where, image_size)
    return (size - 1) / 2 * (shift + 1)


# ---------------------------------------------------------------------------------------------------------------
# What an object draws -> pixels
# ---------------------------------------------------------------------------------------------------------------


def boxes_and_centres_from_pixels(drawn: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Where an object is seen: box and centre of mass of the pixels that exceed half of their maximum.

    A window may be far larger than the object in it, which may lie anywhere inside, so that the window's own box and
    centre say little. Of an object that the frame's edge cuts, only what is inside counts.

    Args:
      drawn: [..., H, W], what the object adds to each pixel, in [0, 1] of white: its pasted glimpse.

    Returns:
      (boxes, centres): [..., 4] float64: top, left, height, width in pixels, and [..., 2]: (row, column) in pixels, the
      mean weighted by what is drawn; NaN where no pixel has ``LEAST_INTENSITY``.

    Raises:
      ValueError: if there are no two last axes.
    """
    drawn = np.asarray(drawn)
    require(drawn.ndim >= 2, f"drawn must be [..., H, W], got {drawn.shape}")
    greatest = drawn.max((-2, -1), keepdims=True)
    seen = (drawn > greatest / 2) & (greatest >= LEAST_INTENSITY)
    starts, lengths, centres = [], [], []
    for axis, other in ((-2, -1), (-1, -2)):  # rows, columns
        size, along = drawn.shape[axis], seen.any(other)
        first, behind = along.argmax(-1), size - along[..., ::-1].argmax(-1)
        starts.append(first - 0.5)
        lengths.append(behind - first)
        mass = np.where(seen, drawn, 0).sum(other, dtype=float)
        centres.append(divide((mass * np.arange(size)).sum(-1), mass.sum(-1)))
    centre = np.stack(centres, -1)
    boxes = np.stack(starts + lengths, -1)
    return np.where(np.isnan(centre).any(-1, keepdims=True), np.nan, boxes), centre


def segmentation(drawn: npt.ArrayLike) -> np.ndarray:
    """Which slot explains a pixel: the one that adds most to it.

    Args:
      drawn: [..., N, H, W], as in ``boxes_and_centres_from_pixels``.

    Returns:
      [..., H, W] uint8: slot + 1, or 0 where no slot adds ``LEAST_INTENSITY``.
    """
    drawn = np.asarray(drawn)
    return np.where(drawn.max(-3) >= LEAST_INTENSITY, drawn.argmax(-3) + 1, 0).astype(np.uint8)
