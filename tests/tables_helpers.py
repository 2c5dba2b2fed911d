"""Small made-up files of predictions."""

import attrs
import numpy as np

from data_gen.writer import new_file
from eval.predictions import About, Writer
from sqair.config import PRESETS, to_flags

S, M, T, N, K, FIRST, H = 6, 2, 4, 4, 3, 2, 12
SIZES = {"S": S, "M": M, "T": T}


def made_up(seed, n=4):
    """Random members; objects 0..n-1 sit exactly on their balls in the inferred frames, 1 pixel beside them later."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(2, H - 3, (S, 1, n, 2)) + 0.5 * np.arange(T)[:, None, None]
    centre = np.minimum(centre, H - 2).astype(np.float32)
    groups = np.zeros((S, T, H, H), np.uint8)
    for s, t, ball in np.ndindex(S, T, n):
        row, column = np.round(centre[s, t, ball]).astype(int)
        groups[s, t, row, column] = ball + 1
    collisions = (groups > 0) & (rng.random(groups.shape) < 0.3)
    pixels = np.stack([(groups == ball).sum((2, 3)) for ball in range(1, n + 1)], -1)
    shown = centre[:, None, :, :N] + np.array([0, 0, 1, 1])[:, None, None] * [0, 1]  # [S, 1, T, N, 2]
    # The window lies two pixels above what the object draws.
    shift = np.arctanh(np.clip((shown - [2, 0])[..., ::-1] * 2 / (H - 1) - 1, -0.999, 0.999))
    where = np.broadcast_to(np.concatenate([np.full(shift.shape, -1.0), shift], -1), (S, M, T, N, 4))
    object_id = np.broadcast_to(np.arange(N), (S, M, T, N)).copy()
    object_id[0, 1, 3, 2] = -1  # one object vanishes at the end
    return {
        "rollout/what": rng.normal(size=(S, M, T, N, 2)),
        "rollout/where": where,
        "rollout/box": np.broadcast_to(np.concatenate([shown - 2, np.full_like(shown, 4)], -1), (S, M, T, N, 4)),
        "rollout/centre": np.broadcast_to(shown, (S, M, T, N, 2)),
        "rollout/presence": object_id >= 0,
        "rollout/object_id": object_id,
        "rollout/data_ll": rng.normal(400, 50, (S, M, T)),
        "rollout/relational_ll": rng.normal(0, 5, (S, M, T)),
        "rollout/segmentation": np.broadcast_to(groups[:, None], (S, M, T, H, H)),
        "rollout/log_weights": np.zeros((S, M, K)),
        "rollout/particle": np.zeros((S, M)),
        "inference/log_weights": rng.normal(4 * 400, 3, (S, K)),
        "inference/data_ll": np.zeros((S, K, T)),
        "inference/log_p": rng.normal(-9, 1, (S, K, T)),
        "inference/log_q": rng.normal(9, 1, (S, K, T)),
        "inference/count": np.full((S, K, T), N),
        "truth/frames": 255 * (groups > 0),
        "truth/count": (pixels > 0).sum(-1),
        "truth/groups": groups,
        "truth/collisions": collisions,
        "truth/centre": centre,
        "truth/pixels": pixels,
        "truth/box": np.concatenate([centre - 2, np.full_like(centre, 4)], -1),
    }


TRUTH = made_up(0)


def save(path, relation="none", seed=0, slots=N, data="data/four.h5", **changes):
    """Writes a file of predictions; all show the same sequences."""
    config = PRESETS["sqair_balls"]
    config = attrs.evolve(
        config,
        model=attrs.evolve(config.model, relation=relation, n_steps_per_image=slots),
        train=attrs.evolve(config.train, seed=seed),
    )
    members = made_up(1 + 10 * seed + len(relation)) | {k: v for k, v in TRUTH.items() if k.startswith("truth")}
    for name in ("where", "box", "centre", "object_id", "presence", "segmentation"):
        members[f"rollout/{name}"] = TRUTH[f"rollout/{name}"]
    members |= changes
    about = About(
        run=f"runs/{path.stem}",
        checkpoint="step-1",
        step=1,
        flags=to_flags(config),
        trained_slots=4,
        data=data,
        split="test",
        first_generated=FIRST,
        settings={},
        notes=[],
        versions={},
    )
    with new_file(path) as file:
        Writer(file, about, SIZES, SIZES | {"S": 4}).write(members, dict.fromkeys(SIZES, 0))
    return members
