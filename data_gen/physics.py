"""Bouncing balls in a box: the start and the motion of many sequences at once (docs/spec/data.md).

S sequences, T frames, N balls at most; a sequence with fewer balls has the last ones absent: everything zero.
Lengths are in box units, speeds in box units per frame.
"""

from typing import NamedTuple

import numpy as np

from data_gen.errors import UserError

STEPS_PER_FRAME = 2
STEP = 0.5  # duration of a sub-step, in frames
TOTAL_SPEED = 0.5  # norm over the velocities of all the balls together
START_MARGIN = 2.0  # centres start at least this far from every wall
PLACEMENT_TRIES = 100  # draws for one ball before its sequence is started again
PLACEMENT_RESTARTS = 10


class Trajectories(NamedTuple):
    """The motion in a block of sequences; `positions` and `velocities` are (column, row)."""

    positions: np.ndarray  # [T, S, N, 2] float32
    velocities: np.ndarray  # [T, S, N, 2] float32
    hits: np.ndarray  # [T, S, N] bool: this ball met another one between frames t-1 and t


def place_balls(radii: np.ndarray, box: float, rng: np.random.Generator) -> np.ndarray:
    """Draws starting positions, uniform on [2, box-2]^2, one ball after another.

    A ball that overlaps an earlier one or crosses a wall is drawn again.

    Args:
      radii: [S, N] box units, 0 for an absent ball.
      box: side of the box.
      rng: source of randomness.

    Returns:
      [S, N, 2] float64.

    Raises:
      UserError: the balls do not fit into the box.
    """
    n_sequences, n_balls = radii.shape
    positions = np.zeros((n_sequences, n_balls, 2))
    pending = np.arange(n_sequences)
    for _ in range(PLACEMENT_RESTARTS):
        stuck = np.zeros(n_sequences, bool)
        for ball in range(n_balls):
            rows = pending[(radii[pending, ball] > 0) & ~stuck[pending]]
            for _ in range(PLACEMENT_TRIES):
                if not rows.size:
                    break
                drawn = rng.uniform(START_MARGIN, box - START_MARGIN, (rows.size, 2))
                radius = radii[rows, ball, None]
                gap = np.linalg.norm(positions[rows, :ball] - drawn[:, None], axis=-1)
                refused = (gap < radii[rows, :ball] + radius).any(1)
                refused |= ((drawn < radius) | (drawn > box - radius)).any(1)
                positions[rows, ball] = drawn
                rows = rows[refused]
            stuck[rows] = True
        pending = np.flatnonzero(stuck)
        if not pending.size:
            return positions
    raise UserError(
        f"{n_balls} balls of these radii do not fit into a box of side {box:g}; "
        "use fewer or smaller balls or a larger box"
    )


def draw_velocities(present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws standard normal velocities, scaled so that the norm over all balls of a sequence is `TOTAL_SPEED`.

    Args:
      present: [S, N] bool.
      rng: source of randomness.

    Returns:
      [S, N, 2] float64.
    """
    velocities = rng.standard_normal((*present.shape, 2)) * present[..., None]
    return velocities * (TOTAL_SPEED / np.linalg.norm(velocities, axis=(1, 2), keepdims=True))


def step(
    positions: np.ndarray, velocities: np.ndarray, radii: np.ndarray, masses: np.ndarray, box: float
) -> np.ndarray:
    """Advances all sequences by one sub-step, in place.

    x += STEP·v; at a wall the velocity is made to point inwards, axis by axis, and the position is left alone;
    then every pair j < i closer than r_i + r_j, in order, exchanges its velocities along the line of centres as in
    an elastic collision, moving apart or not:
    v_j' = (2 m_i v_i + (m_j - m_i) v_j) / (m_i + m_j),  v_i' = v_j' + v_j - v_i.

    Args:
      positions: [S, N, 2] float64, changed.
      velocities: [S, N, 2] float64, changed.
      radii: [S, N], 0 for an absent ball.
      masses: [S, N].
      box: side of the box.

    Returns:
      [S, N] bool: the balls that met another one.
    """
    positions += STEP * velocities
    low = positions - radii[..., None] < 0
    high = positions + radii[..., None] > box
    speed = np.abs(velocities)
    np.copyto(velocities, speed, where=low)
    np.copyto(velocities, -speed, where=high)

    first, second = np.tril_indices(radii.shape[1], -1)  # i, j of every pair j < i, ordered by i, then j
    apart = positions[:, first] - positions[:, second]
    distance = np.linalg.norm(apart, axis=-1)
    touching = distance < radii[:, first] + radii[:, second]
    touching &= (radii[:, first] > 0) & (radii[:, second] > 0)
    hits = np.zeros(radii.shape, bool)
    for pair in np.flatnonzero(touching.any(0)):
        rows, i, j = np.flatnonzero(touching[:, pair]), first[pair], second[pair]
        normal = apart[rows, pair] / distance[rows, pair, None]
        v_i = (normal * velocities[rows, i]).sum(-1)
        v_j = (normal * velocities[rows, j]).sum(-1)
        m_i, m_j = masses[rows, i], masses[rows, j]
        new_j = (2 * m_i * v_i + (m_j - m_i) * v_j) / (m_i + m_j)
        new_i = new_j + v_j - v_i
        velocities[rows, i] += normal * (new_i - v_i)[:, None]
        velocities[rows, j] += normal * (new_j - v_j)[:, None]
        hits[rows, i] = hits[rows, j] = True
    return hits


def simulate(
    positions: np.ndarray, velocities: np.ndarray, radii: np.ndarray, masses: np.ndarray, box: float, n_frames: int
) -> Trajectories:
    """Records `n_frames` frames: each is recorded first, then followed by `STEPS_PER_FRAME` sub-steps.

    Args:
      positions: [S, N, 2] start, box units.
      velocities: [S, N, 2] start.
      radii: [S, N], 0 for an absent ball.
      masses: [S, N].
      box: side of the box.
      n_frames: T.

    Returns:
      `Trajectories`; nothing has hit anything at the first frame.
    """
    positions, velocities = positions.astype(np.float64), velocities.astype(np.float64)
    shape = (n_frames, *radii.shape)
    record = Trajectories(np.empty((*shape, 2), np.float32), np.empty((*shape, 2), np.float32), np.zeros(shape, bool))
    for t in range(n_frames):
        record.positions[t], record.velocities[t] = positions, velocities
        if t + 1 < n_frames:
            for _ in range(STEPS_PER_FRAME):
                record.hits[t + 1] |= step(positions, velocities, radii, masses, box)
    return record
