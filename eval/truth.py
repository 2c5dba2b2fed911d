"""What a model is shown of a data file, and what is known about it, a batch at a time.

Letters: B sequences, T frames, n the most objects of the file, H x W(, C) the frame as the model sees it. Coordinates
are those of `eval.metrics`: (row, column) in pixels of that frame, pixel centres at whole numbers.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_gen import hdf5, pipeline
from data_gen.command_line import UserError
from eval import metrics, tracking

_OPTIONAL = ("groups", "collisions", "positions", "radii", "n", "nums", "coords")


class Truth(NamedTuple):
    """Some sequences and the truth about them; None where the file does not tell.

    Attributes:
      frames: [B, T, H, W(, C)] float32 in [0, 1], what the model sees.
      count: [B, T] int16, visible objects; -1 where unknown.
      groups: [B, T, H, W] uint8, owner of each pixel: 0 background, 1.. object.
      collisions: [B, T, H, W] bool, visible pixels of colliding objects.
      centre: [B, T, n, 2] float32, (row, column) in pixels; NaN for objects that do not exist.
      box: [B, T, n, 4] float32, top, left, height, width in pixels; NaN for objects that do not exist.
      pixels: [B, T, n] uint16, visible pixels of each object (the pixels of its box where there are no groups).
    """

    frames: np.ndarray
    count: np.ndarray
    groups: np.ndarray | None
    collisions: np.ndarray | None
    centre: np.ndarray | None
    box: np.ndarray | None
    pixels: np.ndarray | None


class Source:
    """A split of a data file as a model of a given frame size sees it; a context manager."""

    def __init__(self, path: str | os.PathLike, split: str, image_size: tuple[int, int, int], n_frames: int,
                 n_sequences: int | None = None):
        """Opens the split.

        Args:
          path: HDF5 file in R-NEM's layout.
          split: "training", "validation" or "test".
          image_size: H, W, C of the model; larger frames of the file are cropped to their middle.
          n_frames: T, from the first frame on.
          n_sequences: how many, from the first on; None for all.

        Raises:
          UserError: the file is not what it should be, or has too few frames, sequences or pixels.
        """
        height, width, channels = image_size
        self._data = hdf5.open_split(path, split, optional=_OPTIONAL)
        try:
            self._data.read(slice(0, 1), n_frames, ["features"])
            stored = self._data.image_shape
            if stored[2] != channels or height > stored[0] or width > stored[1] or (
                    height != width and stored != image_size):
                raise UserError(f"{path}: {split} has frames of {stored[0]} x {stored[1]} x {stored[2]}, from which "
                                f"the model's {height} x {width} x {channels} cannot be cut; use data like those the "
                                "model was trained on")
            if n_sequences is not None and not 1 <= n_sequences <= self._data.n_sequences:
                raise UserError(f"{path}: {split} has {self._data.n_sequences} sequences, {n_sequences} were asked for")
        except BaseException:
            self._data.close()
            raise
        self.n_sequences = n_sequences or self._data.n_sequences
        self.n_frames = n_frames
        self._crop = pipeline.crop_slices(*stored[:2], None if stored == image_size else height)
        self.notes = self._missing()

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_) -> None:
        self._data.close()

    def describe(self) -> list[str]:
        """Lines that say what was opened; see `hdf5.Split.describe`."""
        return self._data.describe(self.n_sequences)

    def _missing(self) -> list[str]:
        members = self._data.members
        notes = []
        if "collisions" not in members:
            notes.append("the data have no collisions: no relational log-likelihood")
        if "groups" not in members:
            notes.append("the data have no groups: no segmentation index, no log-likelihood by object")
        if "coords" not in members and not self._balls:
            notes.append("the data have no positions: no tracking, no position errors")
        return notes

    @property
    def _balls(self) -> bool:
        return ("positions" in self._data.members and "groups" in self._data.members
                and self._data.image_shape[:2] == (metrics.FRAME_SIZE, metrics.FRAME_SIZE))

    def batches(self, batch_size: int) -> Iterator[tuple[int, Truth]]:
        """Yields (number of sequences, `Truth` of batch_size) in the file's order.

        The last batch is filled up with copies of the last sequence, so that all are of one shape.
        """
        for first in range(0, self.n_sequences, batch_size):
            wanted = np.minimum(np.arange(first, first + batch_size), self.n_sequences - 1)
            yield min(batch_size, self.n_sequences - first), self._truth(self._data.read(wanted, self.n_frames))

    def _truth(self, members: dict[str, np.ndarray]) -> Truth:
        rows, columns = self._crop

        def seen(images):
            images = images[:, :, rows, columns].swapaxes(0, 1)
            return images[..., 0] if images.shape[-1] == 1 else images

        frames = self._data.intensities(seen(members["features"]))
        groups = seen(members["groups"]) if "groups" in members else None
        count = np.full(frames.shape[:2], pipeline.UNKNOWN_COUNT, np.int16)
        if groups is not None:
            count = pipeline.count_visible(groups).astype(np.int16)
        elif "nums" in members:
            count[:] = members["nums"].sum(-1).T
        centre = box = pixels = None
        if self._balls:
            centre, box = self._ball_boxes(members)
            pixels = metrics.visible_pixels(groups, centre.shape[2]).astype(np.uint16)
        elif "coords" in members and self._crop == (slice(frames.shape[2]), slice(frames.shape[3])):
            # A digit is drawn from the pixel nearest to its corner (y, x) on.
            box = members["coords"].swapaxes(0, 1).astype(float)
            box = np.where(box[..., 2:3] > 0, np.round(box) - [0.5, 0.5, 0, 0], np.nan)
            centre = box[..., :2] + box[..., 2:] / 2
            inside = tracking.clip_boxes(box, frames.shape[2:4])
            pixels = np.nan_to_num(np.maximum(inside[..., 2:], 0).prod(-1)).astype(np.uint16)
        return Truth(frames, count, groups, seen(members["collisions"]) if "collisions" in members else None,
                     *(None if x is None else x.astype(np.float32) for x in (centre, box)), pixels)

    def _ball_boxes(self, members: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Centres [B, T, n, 2] and boxes [B, T, n, 4] of balls."""
        side, positions = self._data.box, members["positions"]
        groups = members["groups"][..., 0]                                           # [T, B, 64, 64]
        n = members["n"] if "n" in members else groups.max((0, 2, 3))
        radii = members.get("radii")
        if radii is None:
            # R-NEM's own files do not say: a disc's area at its most visible gives the radius to about 1 %.
            area = metrics.visible_pixels(groups, positions.shape[2]).max(0)
            radii = np.sqrt(area / np.pi) * side / metrics.FRAME_SIZE
        centres = metrics.pixel_centres(positions, n, side)
        centres += metrics.CROP_START - np.array([part.start or 0 for part in self._crop])
        return centres, metrics.boxes_from_balls(centres, radii, side)
