"""Multiple object tracking: CLEAR MOT figures by the package motmetrics, over box overlaps computed here.

Boxes are top, left, height, width in pixels, in the coordinates of ``eval.geometry``.
"""

from typing import Any, NamedTuple

import motmetrics
import numpy as np
import numpy.typing as npt

from eval.geometry import CROP_SIZE, box_iou, centres_inside, clip_boxes


class Tracking(NamedTuple):
    """CLEAR MOT figures (Bernardin & Stiefelhagen, 2008) pooled over all frames given.

    Attributes:
      mota: 1 - (misses + false_positives + id_switches) / objects; at most 1, may be negative; NaN without objects.
      motp: mean 1 - IoU of the matches, as motmetrics has it: **lower is better**; NaN without matches.
      id_switches: matches whose object has another identity than the ball's last match.
      misses: balls without an object.
      false_positives: objects without a ball.
      objects: ball appearances, summed over the frames.
      frames: frames scored.
    """

    mota: float
    motp: float
    id_switches: int
    misses: int
    false_positives: int
    objects: int
    frames: int


def ground_truth(
    centres: npt.ArrayLike, pixels: npt.ArrayLike, image_size: npt.ArrayLike = CROP_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Which balls count as ground truth in a frame, and which are ignored.

    A ball counts when its centre lies in the crop and a pixel of it is visible (not all behind the curtain). A ball
    of which only an edge shows, its centre outside, is ignored: finding it is no match, missing it no miss, and an
    object on it no false positive. Too little of it is visible to locate it, but explaining it is not wrong.

    Args:
      centres: [S, T, n_max, 2], from ``geometry.pixel_centres``.
      pixels: [S, T, n_max], from ``geometry.visible_pixels`` of the cropped groups.
      image_size: side of the frame in pixels, or (H, W).

    Returns:
      (truth, ignored), each [S, T, n_max] bool.

    Raises:
      ValueError: if the shapes do not fit together.
    """
    centres, visible = np.asarray(centres, float), np.asarray(pixels) > 0
    if centres.shape[:-1] != visible.shape:
        raise ValueError(f"centres {centres.shape} must be pixels {visible.shape} with an axis of 2 behind")
    inside = centres_inside(centres, image_size)
    return visible & inside, visible & ~inside


def track(
    true_boxes: npt.ArrayLike,
    truth: npt.ArrayLike,
    boxes: npt.ArrayLike,
    object_id: npt.ArrayLike,
    ignored: npt.ArrayLike | None = None,
    min_iou: float = 0.5,
    image_size: npt.ArrayLike = CROP_SIZE,
) -> Tracking:
    """Scores objects against balls over a set of sequences.

    Boxes are first clipped to the frame, since nothing visible determines how far they extend beyond it. A ball and an
    object may be matched from IoU >= min_iou on; motmetrics keeps earlier pairs that still may, then takes the
    least total 1 - IoU. Identities last for one sequence. An object whose best overlap is with an ignored ball, and
    is >= min_iou, is left out of that frame.

    Args:
      true_boxes: [S, T, n, 4], from ``geometry.boxes_from_discs``.
      truth: [S, T, n] bool, the balls that count.
      boxes: [S, T, N, 4], from ``geometry.boxes_and_centres_from_pixels`` or ``geometry.boxes_from_where``; an object
        without one (NaN) is a false positive.
      object_id: [S, T, N], integers; -1 where the slot is absent, else unique in its frame.
      ignored: [S, T, n] bool, balls that are ignored; None for none.
      min_iou: the least overlap of a match, in (0, 1].
      image_size: side of the frame in pixels, or (H, W).

    Returns:
      Tracking, pooled over all sequences and frames.

    Raises:
      ValueError: if the shapes do not fit together, an identity appears twice in a frame, or min_iou is out of range.
    """
    true_boxes, boxes = np.asarray(true_boxes, float), np.asarray(boxes, float)
    truth, object_id = np.asarray(truth, bool), np.asarray(object_id)
    ignored = np.zeros_like(truth) if ignored is None else np.asarray(ignored, bool)
    _check(true_boxes, truth, boxes, object_id, ignored)
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou must lie in (0, 1], got {min_iou}")

    present = object_id >= 0
    iou = box_iou(clip_boxes(true_boxes, image_size), clip_boxes(boxes, image_size))  # [S, T, n, N]
    best = np.where(truth[..., None], iou, 0.0).max(axis=2, initial=0.0)  # [S, T, N]
    best_ignored = np.where(ignored[..., None], iou, 0.0).max(axis=2, initial=0.0)
    present &= ~((best_ignored >= min_iou) & (best_ignored > best))
    distance = np.where(iou >= min_iou, 1.0 - iou, np.nan)

    # One accumulator for all: balls have different names in every sequence, so that no match continues into the next,
    # and the figures are sums over frames. (One accumulator per sequence would take twice the time.)
    S, T, n = truth.shape
    ball_id = np.arange(S)[:, None] * n + np.arange(n)  # [S, n]
    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    for index in np.ndindex(S, T):
        balls, objects = truth[index], present[index]
        pairs = distance[index][np.ix_(balls, objects)]
        accumulator.update(ball_id[index[0]][balls], object_id[index][objects], pairs)
    return _summary(accumulator)


_NAMES = {  # field of Tracking -> metric of motmetrics
    "mota": "mota",
    "motp": "motp",
    "id_switches": "num_switches",
    "misses": "num_misses",
    "false_positives": "num_false_positives",
    "objects": "num_objects",
    "frames": "num_frames",
}


def _summary(accumulator: Any) -> Tracking:
    figures = motmetrics.metrics.create().compute(accumulator, metrics=list(_NAMES.values()), return_dataframe=False)
    return Tracking(**{field: Tracking.__annotations__[field](figures[name]) for field, name in _NAMES.items()})


def _check(
    true_boxes: np.ndarray, truth: np.ndarray, boxes: np.ndarray, object_id: np.ndarray, ignored: np.ndarray
) -> None:
    for name, array, axes in (("true_boxes", true_boxes, "[S, T, n, 4]"), ("boxes", boxes, "[S, T, N, 4]")):
        if array.ndim != 4 or array.shape[-1] != 4:
            raise ValueError(f"{name} must be {axes}, got {array.shape}")
    if true_boxes.shape[:2] != boxes.shape[:2]:
        raise ValueError(f"true_boxes {true_boxes.shape} and boxes {boxes.shape} must share [S, T]")
    balls, slots = true_boxes.shape[:-1], boxes.shape[:-1]
    for name, array, shape in (("truth", truth, balls), ("ignored", ignored, balls), ("object_id", object_id, slots)):
        if array.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {array.shape}")
    ordered = np.sort(object_id, axis=-1)
    if np.any((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)):
        raise ValueError("an object_id appears twice in a frame")
