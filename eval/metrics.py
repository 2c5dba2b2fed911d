"""Metrics as pure numpy functions over stored predictions and ground truth.

Letters: S sequences, M samples, T frames, N slots, K particles, n balls, H x W the crop (50 x 50).

Coordinates and boxes are those of ``eval.geometry``. Sums are in float64 for inputs of any type.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from eval.geometry import CROP_SIZE, centres_inside, divide, require
from sqair import gaussian

# ---------------------------------------------------------------------------------------------------------------
# Likelihoods
# ---------------------------------------------------------------------------------------------------------------


def gaussian_log_likelihood(
    image: npt.ArrayLike, canvas: npt.ArrayLike, std: npt.ArrayLike, colour: bool = False
) -> np.ndarray:
    """Log-density of every pixel: log N(image; canvas, std) = -((x - c)/std)^2 / 2 - log std - log(2 pi)/2.

    Args:
      image: [..., H, W], intensities in [0, 1]; with colour [..., H, W, C].
      canvas: [..., H, W(, C)], the decoder's mean; the leading axes broadcast with the image's.
      std: standard deviation, a number or an array that broadcasts with the canvas; positive.
      colour: whether there is an axis of channels, over which a pixel's log-densities are added up.

    Returns:
      [..., H, W] float64, nats.

    Raises:
      ValueError: if H x W (x C) differ, the leading axes do not broadcast, or std is not positive.
    """
    image, canvas, std = (np.asarray(a, float) for a in (image, canvas, std))
    own = 3 if colour else 2  # axes of one frame
    require(np.all(std > 0), "std must be positive")
    shapes = f"image {image.shape} and canvas {canvas.shape}"
    require(
        image.ndim >= own and image.shape[-own:] == canvas.shape[-own:], f"{shapes} must share [H, W{', C' * colour}]"
    )
    try:
        found = gaussian.log_likelihood((image - canvas) ** 2, 1, std)
    except ValueError:
        raise ValueError(f"{shapes} and std {std.shape} do not broadcast") from None
    return found.sum(-1) if colour else found


def masked_sum(pixels: npt.ArrayLike, mask: npt.ArrayLike) -> np.ndarray:
    """The sum over the masked pixels of a frame.

    Args:
      pixels: [..., H, W], from ``gaussian_log_likelihood``.
      mask: [..., H, W], zero or not; the leading axes broadcast with the pixels'.

    Returns:
      [...] float64, nats per frame; 0 where the mask is empty.

    Raises:
      ValueError: if H x W differ.
    """
    values, inside = np.asarray(pixels, float), np.asarray(np.asarray(mask) != 0)
    require(inside.shape[-2:] == values.shape[-2:], f"mask {inside.shape} and pixels {values.shape} must share [H, W]")
    return np.where(inside, values, 0.0).sum(axis=(-2, -1))


def relational_log_likelihood(
    image: npt.ArrayLike, canvas: npt.ArrayLike, collisions: npt.ArrayLike, std: npt.ArrayLike, colour: bool = False
) -> np.ndarray:
    """The relational log-likelihood of the paper (section 3): the sum over the pixels of colliding balls only.

    It is not divided by their number, and a frame without a collision counts as 0.

    Args:
      image, canvas, std, colour: as ``gaussian_log_likelihood``.
      collisions: [..., H, W], non-zero on the visible pixels of colliding balls; broadcasts with the image.

    Returns:
      [...] float64, nats per frame.

    Raises:
      ValueError: as ``gaussian_log_likelihood``, or if the collisions' H x W differ.
    """
    return masked_sum(gaussian_log_likelihood(image, canvas, std, colour), collisions)


class UpperBounds(NamedTuple):
    """Log-likelihoods of a perfect canvas in nats: ``pixel`` per pixel; ``data``, ``relational`` per frame (means)."""

    pixel: float
    data: float
    relational: float


def upper_bounds(images: npt.ArrayLike, collisions: npt.ArrayLike, std: float) -> UpperBounds:
    """The log-likelihoods of a canvas equal to the image: -log std - log(2 pi)/2 per pixel, times the pixels.

    At std 0.3: 0.28503 per pixel, 712.6 per frame of 50 x 50.

    Args:
      images: [..., H, W], the frames scored (only their size matters).
      collisions: [..., H, W], the same shape, non-zero on the pixels of colliding balls.
      std: standard deviation, a positive number.

    Returns:
      UpperBounds, means over the frames.

    Raises:
      ValueError: if the shapes differ or std is not positive.
    """
    images, collisions = np.asarray(images), np.asarray(collisions)
    require(images.ndim >= 2, f"images must be [..., H, W], got {images.shape}")
    require(images.shape == collisions.shape, f"images {images.shape} and collisions {collisions.shape} differ")
    pixel = float(gaussian_log_likelihood(np.zeros((1, 1)), np.zeros((1, 1)), std)[0, 0])
    pixels = images.shape[-2] * images.shape[-1]
    return UpperBounds(pixel, pixel * pixels, pixel * pixels * float(np.mean(collisions != 0)))


# ---------------------------------------------------------------------------------------------------------------
# Bounds from importance weights
# ---------------------------------------------------------------------------------------------------------------


class ParticleBounds:
    """IWAE, VAE bound and effective sample size from chunks of particles, in memory that does not grow with K.

    With log w_k of all particles seen so far: IWAE = logsumexp_k log w_k - log K (Burda et al., 2016); VAE bound =
    mean_k log w_k; ESS = (sum_k w_k)^2 / sum_k w_k^2. 500 particles are 100 updates of 5; the result does not
    depend on how they were split.
    """

    def __init__(self) -> None:
        self.particles = 0
        self._log_sum: Any = -np.inf
        self._log_sum_of_squares: Any = -np.inf
        self._sum: Any = 0.0

    def update(self, log_weights: npt.ArrayLike) -> "ParticleBounds":
        """Adds particles.

        Args:
          log_weights: [..., k], nats, summed over the frames; k may differ from call to call, the rest may not.

        Returns:
          self.

        Raises:
          ValueError: if there is no particle, or the leading axes are not those of the first call.
        """
        log_weights = np.asarray(log_weights, float)
        shape, so_far = log_weights.shape, np.shape(self._log_sum)
        require(len(shape) > 0 and shape[-1] > 0, f"log_weights must be [..., k > 0], got {shape}")
        require(
            self.particles == 0 or so_far == shape[:-1], f"log_weights {shape} do not continue particles of {so_far}"
        )
        self._log_sum = np.logaddexp(self._log_sum, logsumexp(log_weights, axis=-1))
        self._log_sum_of_squares = np.logaddexp(self._log_sum_of_squares, logsumexp(2 * log_weights, axis=-1))
        self._sum = self._sum + log_weights.sum(axis=-1)
        self.particles += log_weights.shape[-1]
        return self

    @property
    def iwae(self) -> np.ndarray:
        """[...] float64, nats per sequence."""
        return self._log_sum - np.log(self.particles)

    @property
    def vae(self) -> np.ndarray:
        """[...] float64, nats per sequence."""
        return self._sum / self.particles

    @property
    def effective_sample_size(self) -> np.ndarray:
        """[...] float64, particles, in [1, K]."""
        return np.exp(2 * self._log_sum - self._log_sum_of_squares)


def iwae_bound(log_weights: npt.ArrayLike, frames: int = 1) -> np.ndarray:
    """IWAE bound, (logsumexp_k log w_k - log K) / frames (Burda et al., 2016).

    Args:
      log_weights: [..., K], nats, summed over the frames.
      frames: T for nats per frame, 1 for nats per sequence.

    Returns:
      [...] float64, nats.

    Raises:
      ValueError: if there is no particle.
    """
    return ParticleBounds().update(log_weights).iwae / frames


def vae_bound(log_weights: npt.ArrayLike, frames: int = 1) -> np.ndarray:
    """The evidence lower bound, mean_k log w_k / frames. Args, Returns and Raises as ``iwae_bound``."""
    return ParticleBounds().update(log_weights).vae / frames


def effective_sample_size(log_weights: npt.ArrayLike) -> np.ndarray:
    """(sum_k w_k)^2 / sum_k w_k^2: 1 when one particle has all the weight, K when all weigh the same.

    Args:
      log_weights: [..., K], nats.

    Returns:
      [...] float64, particles.

    Raises:
      ValueError: if there is no particle.
    """
    return ParticleBounds().update(log_weights).effective_sample_size


# ---------------------------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------------------------


def count_accuracy(true_counts: npt.ArrayLike, inferred_counts: npt.ArrayLike) -> float:
    """The share of frames whose number of objects is right.

    Args:
      true_counts, inferred_counts: integers of shapes that broadcast, e.g. [S, 1, T] and [S, M, T].

    Returns:
      float in [0, 1].

    Raises:
      ValueError: if the shapes do not broadcast.
    """
    true_counts, inferred_counts = _same_counts(true_counts, inferred_counts)
    return float(np.mean(true_counts == inferred_counts))


def confusion_matrix(true_counts: npt.ArrayLike, inferred_counts: npt.ArrayLike, max_count: int) -> np.ndarray:
    """How often each true count was inferred as each count.

    Args:
      true_counts, inferred_counts: integers of shapes that broadcast, in 0..max_count.
      max_count: the largest count, of truth and model alike.

    Returns:
      [max_count + 1, max_count + 1] int64, frames; rows are true counts, columns inferred ones.

    Raises:
      ValueError: if the shapes do not broadcast or a count is out of range.
    """
    true_counts, inferred_counts = (c.astype(np.int64).ravel() for c in _same_counts(true_counts, inferred_counts))
    for name, counts in (("true", true_counts), ("inferred", inferred_counts)):
        require(np.all((counts >= 0) & (counts <= max_count)), f"{name} counts must lie in 0..{max_count}")
    size = max_count + 1
    return np.bincount(true_counts * size + inferred_counts, minlength=size * size).reshape(size, size)


def _same_counts(true_counts: npt.ArrayLike, inferred_counts: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    true, inferred = np.asarray(true_counts), np.asarray(inferred_counts)
    try:
        true, inferred = np.broadcast_arrays(true, inferred)
    except ValueError:
        raise ValueError(f"counts {true.shape} and {inferred.shape} do not broadcast") from None
    return true, inferred


def collapsed(
    inferred_counts: npt.ArrayLike, slots: int, true_counts: npt.ArrayLike | None = None, fraction: float = 0.99
) -> str:
    """Whether a model has collapsed: no object, or all N slots, in (nearly) every frame.

    Right counts are no collapse: where the true counts are given, cut off at N, and are themselves 0 (or N)
    in as many frames, the answer is 'none'.

    Args:
      inferred_counts: integers, any shape: the objects of each frame.
      slots: N, the most objects the model can have.
      true_counts: integers, any shape: the visible objects of the same frames; None to leave truth out.
      fraction: how many of the frames make 'nearly every'.

    Returns:
      'all zero', 'always N' or 'none'.

    Raises:
      ValueError: if there are no counts.
    """
    inferred_counts = np.asarray(inferred_counts)
    require(inferred_counts.size > 0, "inferred_counts is empty")
    for verdict, count in (("all zero", 0), ("always N", slots)):
        right = true_counts is not None and np.mean(np.minimum(true_counts, slots) == count) >= fraction
        if np.mean(inferred_counts == count) >= fraction and not right:
            return verdict
    return "none"


# ---------------------------------------------------------------------------------------------------------------
# Segmentation
# ---------------------------------------------------------------------------------------------------------------


def foreground_ari(true_groups: npt.ArrayLike, predicted_segmentation: npt.ArrayLike) -> np.ndarray:
    """Adjusted Rand index (Hubert & Arabie, 1985) over the pixels that truly are an object, frame by frame.

    Over pairs of foreground pixels, with a = pairs together in both, b = together in truth only, c = together in
    the prediction only, d = apart in both: ARI = 2 (ad - bc) / ((a + b)(b + d) + (a + c)(c + d)). The background is
    left out, as R-NEM does; foreground pixels that the model gives to no slot (0) are a cluster like any other.
    Degenerate frames: equal partitions give 1, also a single object in a single slot, or a single pixel; a single
    object in several slots gives 0; a frame without foreground has no value: NaN, to be left out with ``np.nanmean``.
    Reshape to [S, T*H, W] for one index per sequence, which also asks labels to keep their object over time.

    Args:
      true_groups: [..., H, W], integers >= 0: 0 background, else the ball.
      predicted_segmentation: [..., H, W], integers >= 0: 0 nothing, else slot + 1.

    Returns:
      [...] float64, at most 1, about 0 for chance.

    Raises:
      ValueError: if the shapes differ or a label is negative.
    """
    groups, predicted = np.asarray(true_groups), np.asarray(predicted_segmentation)
    require(groups.ndim >= 2, f"true_groups must be [..., H, W], got {groups.shape}")
    require(
        groups.shape == predicted.shape,
        f"true_groups {groups.shape} and segmentation {predicted.shape} differ",
    )
    shape = groups.shape[:-2]
    foreground = (groups != 0).reshape(int(np.prod(shape)), -1)  # [frames, pixels]
    frames, area = len(foreground), foreground.sum(-1)
    true: np.ndarray = groups.reshape(foreground.shape)[foreground].astype(np.int64)
    found: np.ndarray = predicted.reshape(foreground.shape)[foreground].astype(np.int64)
    require(min(true.min(initial=0), found.min(initial=0)) >= 0, "labels must not be negative")

    rows, columns = true.max(initial=0) + 1, found.max(initial=0) + 1
    cell = (np.repeat(np.arange(frames), area) * rows + true) * columns + found
    table = np.bincount(cell, minlength=frames * rows * columns).reshape(frames, rows, columns)

    def pairs(counts: np.ndarray) -> np.ndarray:
        return counts * (counts - 1) / 2

    a = pairs(table).sum((1, 2))
    b = pairs(table.sum(2)).sum(1) - a
    c = pairs(table.sum(1)).sum(1) - a
    d = pairs(area) - a - b - c
    denominator = (a + b) * (b + d) + (a + c) * (c + d)
    # b = c = 0 means equal partitions; the quotient is 0/0 there if one side has a single cluster or only singletons.
    equal = (b == 0) & (c == 0)
    ari = np.where(equal, 1.0, 2 * (a * d - b * c) / np.where(equal, 1.0, denominator))
    return np.where(area > 0, ari, np.nan).reshape(shape)


# ---------------------------------------------------------------------------------------------------------------
# Rollouts
# ---------------------------------------------------------------------------------------------------------------


class RolloutError(NamedTuple):
    """Position errors by horizon 0..L (0 is the match frame itself); see ``rollout_position_error``.

    Attributes:
      error: [L + 1] float64, pixels: mean distance of the pairs still followed; NaN where there is none.
      lost: [L + 1] float64: of the matched balls still in the crop, the share whose object has vanished.
      balls: [L + 1] int64: the matched balls still in the crop, what ``lost`` is a share of.
      matched: float: of the balls in the crop at the match frame, the share that found an object.
    """

    error: np.ndarray
    lost: np.ndarray
    balls: np.ndarray
    matched: float


def rollout_position_error(
    true_centres: npt.ArrayLike,
    predicted_centres: npt.ArrayLike,
    object_id: npt.ArrayLike,
    match_frame: int,
    image_size: npt.ArrayLike = CROP_SIZE,
) -> RolloutError:
    """Mean distance between balls and the objects matched to them once, by horizon.

    At the match frame (the last one observed) balls whose centre is in the crop and present objects are paired by
    the least total distance (Hungarian algorithm, one sequence at a time). The pairs are never revised: an object
    is followed by its identity, not by its slot, since slots are sorted anew in every frame, so an object that jumps
    to another ball has a large error. A pair ends, in every figure, when its ball's centre first leaves the crop, where
    the model can neither see nor represent it. An object that vanishes before counts as lost and not in the error:
    read the two together. Samples are further sequences to this function: loop over them, or repeat the truth.

    Args:
      true_centres: [S, T, n, 2], (row, column) in pixels; NaN for balls that do not exist.
      predicted_centres: [S, T, N, 2], (row, column) in pixels, from
        ``geometry.boxes_and_centres_from_pixels`` or ``geometry.centres_from_where``; an object without one (NaN)
        counts as absent.
      object_id: [S, T, N], integers; -1 where the slot is absent, else unique in its frame.
      match_frame: index of the last observed frame, in 0..T-1.
      image_size: side of the frame in pixels, or (H, W).

    Returns:
      RolloutError with L = T - 1 - match_frame.

    Raises:
      ValueError: if the shapes do not fit together or match_frame is out of range.
    """
    true_centres, predicted_centres = np.asarray(true_centres, float), np.asarray(predicted_centres, float)
    object_id = np.asarray(object_id)
    for name, shape in (("true_centres", true_centres.shape), ("predicted_centres", predicted_centres.shape)):
        require(len(shape) == 4 and shape[-1] == 2, f"{name} must be [S, T, objects, 2], got {shape}")
    require(
        true_centres.shape[:2] == predicted_centres.shape[:2],
        f"true_centres {true_centres.shape} and predicted_centres {predicted_centres.shape} must share [S, T]",
    )
    require(
        object_id.shape == predicted_centres.shape[:3],
        f"object_id must be [S, T, N] = {predicted_centres.shape[:3]}, got {object_id.shape}",
    )
    last = object_id.shape[1] - 1
    require(0 <= match_frame <= last, f"match_frame must lie in 0..{last}, got {match_frame}")
    object_id = np.where(np.isfinite(predicted_centres).all(-1), object_id, -1)

    true_centres, predicted_centres = true_centres[:, match_frame:], predicted_centres[:, match_frame:]
    object_id = object_id[:, match_frame:]  # [S, L + 1, N]
    inside = centres_inside(true_centres, image_size)  # [S, L + 1, n]
    sequence, ball, slot = _match(true_centres[:, 0], inside[:, 0], predicted_centres[:, 0], object_id[:, 0] >= 0)

    # From here on one row per pair, P pairs.
    playing = np.logical_and.accumulate(inside[sequence, :, ball], axis=1)  # [P, L + 1]
    same = object_id[sequence] == object_id[sequence, 0, slot][:, None, None]  # [P, L + 1, N]
    followed = playing & same.any(-1)
    path = np.take_along_axis(predicted_centres[sequence], same.argmax(-1)[..., None, None], axis=2)[:, :, 0]
    distance = np.linalg.norm(true_centres[sequence, :, ball] - path, axis=-1)  # [P, L + 1]

    balls, pairs = playing.sum(0), followed.sum(0)
    error = divide(np.where(followed, distance, 0.0).sum(0), pairs)
    return RolloutError(error, divide(balls - pairs, balls), balls, float(divide(len(ball), inside[:, 0].sum())))


def _match(
    true_centres: np.ndarray, inside: np.ndarray, predicted_centres: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Pairs of least total distance within each sequence: indices (sequence, ball, slot), each [P]."""
    found = [(np.zeros(0, int),) * 3]
    for s in range(len(true_centres)):
        balls, slots = np.flatnonzero(inside[s]), np.flatnonzero(present[s])
        offsets = true_centres[s, balls][:, None] - predicted_centres[s, slots]  # [balls, slots, 2]
        row, column = linear_sum_assignment(np.linalg.norm(offsets, axis=-1))
        found.append((np.full(len(row), s), balls[row], slots[column]))
    return tuple(np.concatenate(indices) for indices in zip(*found))
