"""Makes the bouncing-balls data sets: `python -m data_gen.bouncing_balls --preset balls4mass64 --out FILE.h5`.

The physics, the drawing and the layout are R-NEM's (docs/spec/data.md); see `physics`, `rendering` and `hdf5`.
"""

import os
import pathlib
import sys

import attrs
import numpy as np
import tyro

from data_gen import physics, rendering, writer
from data_gen.console import parse, run_cli, take_preset, within
from data_gen.errors import UserError

IMAGE_SIZE = 64


def _positive(settings: "BouncingBalls", attribute: attrs.Attribute, value: tuple[float, ...]) -> None:
    if not value or not all(np.isfinite(v) and v > 0 for v in value):
        raise UserError(f"--{attribute.name} {value}: expected one or more positive numbers")


@attrs.frozen(kw_only=True)
class BouncingBalls:
    """Settings of a bouncing-balls data set; the defaults are R-NEM's balls4mass64."""

    n_balls: tuple[int, ...] = attrs.field(default=(4,), validator=_positive)
    """Numbers of balls; each sequence draws one of them, all equally likely."""
    radii: tuple[float, ...] = attrs.field(default=(1.2, 1.5), validator=_positive)
    """Radii in box units; each ball draws one of them, all equally likely."""
    masses: tuple[float, ...] = attrs.field(default=(1.0, 6.0), validator=_positive)
    """Masses of balls of these radii, one per radius."""
    box: float = attrs.field(default=15.0, validator=within(4.1, 1000))
    """Side of the box in box units; it fills the image of 64 x 64 pixels."""
    n_frames: int = attrs.field(default=51, validator=within(1, 10_000))
    """T, frames per sequence."""
    curtain: int = attrs.field(default=0, validator=within(0, IMAGE_SIZE))
    """Side in pixels of a square, placed at random for each sequence, that hides what is behind it; 0 for none."""
    training: int = attrs.field(default=50_000, validator=within(0, 10**7))
    """Sequences of the training split; 0 leaves the split out."""
    validation: int = attrs.field(default=10_000, validator=within(0, 10**7))
    """Sequences of the validation split; 0 leaves the split out."""
    test: int = attrs.field(default=10_000, validator=within(0, 10**7))
    """Sequences of the test split; 0 leaves the split out."""
    seed: int = attrs.field(default=0, validator=within(0, 2**63))
    """The same seed and settings give the same data."""

    def __attrs_post_init__(self):
        if len(self.radii) != len(self.masses):
            raise UserError(
                f"--radii has {len(self.radii)} values and --masses {len(self.masses)}; give one mass for each radius"
            )
        if max(self.n_balls) > 255:
            raise UserError(f"--n_balls {max(self.n_balls)}: at most 255, the largest id in `groups`")


PRESETS = {
    "balls4mass64": BouncingBalls(),
    # The model trained on four balls is tested here.
    "balls678mass64": BouncingBalls(n_balls=(6, 7, 8), training=0, validation=0),
    "balls3curtain64": BouncingBalls(n_balls=(3,), radii=(1.2,), masses=(1.0,), box=10.0, curtain=28),
}


def make_block(settings: BouncingBalls, n_sequences: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Simulates and draws some sequences.

    Args:
      settings: of the data set.
      n_sequences: S.
      rng: source of randomness.

    Returns:
      The members of `hdf5.MEMBERS`: features, groups, collisions [T, S, 64, 64, 1], events [T, S, 1, 1, 1],
      positions, velocities [T, S, N, 2], radii, masses [S, N], n [S]; N is the largest number of balls, and the
      values of absent balls are zero.
    """
    n = rng.choice(np.asarray(settings.n_balls, np.uint8), n_sequences)
    present = np.arange(max(settings.n_balls)) < n[:, None]
    size = rng.integers(len(settings.radii), size=present.shape)
    radii = np.where(present, np.asarray(settings.radii)[size], 0.0)
    masses = np.where(present, np.asarray(settings.masses)[size], 0.0)
    motion = physics.simulate(
        physics.place_balls(radii, settings.box, rng),
        physics.draw_velocities(present, rng),
        radii,
        masses,
        settings.box,
        settings.n_frames,
    )

    groups = rendering.render_groups(
        motion.positions, np.broadcast_to(radii, motion.hits.shape), settings.box, IMAGE_SIZE
    )
    corners = rng.integers(IMAGE_SIZE - settings.curtain + 1, size=(n_sequences, 2))
    if settings.curtain:
        for sequence, (row, column) in enumerate(corners):
            groups[:, sequence, row : row + settings.curtain, column : column + settings.curtain] = 0
    collisions = rendering.render_hits(groups, motion.hits)
    return {
        "features": np.greater(groups, 0)[..., None],
        "groups": groups[..., None],
        "collisions": collisions[..., None],
        "events": np.asarray(motion.hits.any(-1))[..., None, None, None],
        "positions": motion.positions,
        "velocities": motion.velocities,
        "radii": radii.astype(np.float32),
        "masses": masses.astype(np.float32),
        "n": n,
    }


def write(settings: BouncingBalls, path: str | os.PathLike, compression: int = 1) -> None:
    """Writes a data set; the file appears only when it is complete.

    Args:
      settings: of the data set.
      path: of the HDF5 file.
      compression: gzip level, 0..9.

    Raises:
      UserError: the balls do not fit into the box, or every split is empty.
    """
    writer.generate(
        path,
        settings,
        compression,
        lambda split, n_sequences, rng: make_block(settings, n_sequences, rng),
        box=settings.box,
        objects="discs",
    )


@attrs.frozen(kw_only=True)
class CommandLine:
    """Makes a bouncing-balls data set (R-NEM's layout, HDF5)."""

    out: pathlib.Path
    """The file to write; it appears when it is complete and replaces an older one."""
    settings: tyro.conf.OmitArgPrefixes[BouncingBalls]
    preset: str = attrs.field(default="balls4mass64")
    """The settings' defaults: balls4mass64, balls678mass64 or balls3curtain64; --help shows their values."""
    compression: int = attrs.field(default=1, validator=within(0, 9))
    """Level of gzip compression: 0 is quickest, 9 smallest."""


def main() -> None:
    arguments = sys.argv[1:]
    preset = take_preset(arguments, PRESETS) or "balls4mass64"
    options = parse(
        CommandLine,
        "data_gen.bouncing_balls",
        arguments,
        default=CommandLine(out=tyro.MISSING, settings=PRESETS[preset], preset=preset),
    )
    write(options.settings, options.out, options.compression)
    print(f"wrote {options.out} ({os.path.getsize(options.out) / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_cli(main)
