"""Draws balls as binary discs (docs/spec/data.md)."""

import numpy as np

FRAMES_AT_ONCE = 16  # keeps the distances of the frames being drawn inside the processor's cache


def render_groups(positions: np.ndarray, radii: np.ndarray, box: float, size: int) -> np.ndarray:
    """Computes which ball owns each pixel.

    A pixel, with its centre at (column + 0.5, row + 0.5), belongs to a ball iff its distance from the ball's centre
    is less than the radius; where balls overlap, to the one with the nearest centre.

    Args:
      positions: [..., N, 2] (column, row) of the centres, box units.
      radii: [..., N] box units, 0 for an absent ball, with the same leading axes.
      box: side of the box, which fills the image.
      size: side of the image, pixels.

    Returns:
      [..., size, size] uint8: 0 background, k + 1 for ball k.
    """
    lead, n_balls = radii.shape[:-1], radii.shape[-1]
    scale = np.float32(size / box)
    centres = positions.reshape(-1, n_balls, 2).astype(np.float32) * scale
    reach = np.square(radii.reshape(-1, n_balls).astype(np.float32) * scale)
    pixels = np.arange(size, dtype=np.float32) + np.float32(0.5)
    squares = np.square(pixels - centres[..., None])  # [F, N, 2, size]

    groups = np.zeros((len(centres), size, size), np.uint8)
    nearest = np.empty((FRAMES_AT_ONCE, size, size), np.float32)
    distance, owned, beyond = np.empty_like(nearest), np.empty(nearest.shape, bool), np.empty(nearest.shape, bool)
    for start in range(0, len(centres), FRAMES_AT_ONCE):
        frames = slice(start, start + FRAMES_AT_ONCE)
        group = groups[frames]
        near, far, on, closer = (a[: len(group)] for a in (nearest, distance, owned, beyond))
        near.fill(np.inf)
        for ball in range(n_balls):
            columns, rows = squares[frames, ball, 0, None, :], squares[frames, ball, 1, :, None]
            np.add(rows, columns, out=far)
            np.less(far, reach[frames, ball, None, None], out=on)
            np.less(far, near, out=closer)
            np.logical_and(on, closer, out=on)
            np.copyto(near, far, where=on)
            np.copyto(group, np.uint8(ball + 1), where=on)
    return groups.reshape(*lead, size, size)


def render_hits(groups: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Marks the visible pixels of the balls that hit another ball.

    Args:
      groups: [T, S, H, W] uint8 owners of the pixels.
      hits: [T, S, N] bool.

    Returns:
      [T, S, H, W] bool.
    """
    marked = np.zeros(groups.shape, bool)
    with_hits = hits.any(-1)  # few frames: only these are looked up
    table = np.pad(hits[with_hits], ((0, 0), (1, 0)))
    marked[with_hits] = table[np.arange(len(table))[:, None, None], groups[with_hits]]
    return marked
