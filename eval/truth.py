"""Batches of a data file: the frames as a model sees them, and the truth about them.

Letters: B sequences, T frames, n the most objects of the file, H x W(, C) the frame as the model sees it. Coordinates
are those of `eval.geometry`: (row, column) in pixels of that frame, pixel centres at whole numbers.
"""

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from data_gen import hdf5, pipeline
from data_gen.errors import UserError
from eval import geometry

PART = hdf5.CHUNK_FRAMES  # frames that are read, and inferred, at once: those of a sequence of the paper
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
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count
    groups: np.ndarray | None
    collisions: np.ndarray | None
    centre: np.ndarray | None
    box: np.ndarray | None
    pixels: np.ndarray | None


class Source:
    """A split of a data file as a model of a given frame size sees it; a context manager."""

    def __init__(
        self,
        path: str | os.PathLike,
        split: str,
        image_size: tuple[int, int, int],
        n_frames: int,
        n_sequences: int | None = None,
    ):
        """Opens the split.

        Args:
          path: HDF5 file in R-NEM's layout.
          split: "training", "validation" or "test".
          image_size: H, W, C of the model; larger frames of the file are cropped to their middle.
          n_frames: T, from the first frame on.
          n_sequences: how many, from the first on; None for all.

        Raises:
          UserError: the file is missing, damaged or of another layout, or has too few frames, sequences or pixels.
        """
        height, width, channels = image_size
        self._data = hdf5.open_split(path, split, optional=_OPTIONAL)
        try:
            self._data.read(slice(0, 1), 1, ["features"], first=n_frames - 1)
            stored = self._data.image_shape
            if (
                stored[2] != channels
                or height > stored[0]
                or width > stored[1]
                or (height != width and stored != image_size)
            ):
                raise UserError(
                    f"{path}: {split} has frames of {stored[0]} x {stored[1]} x {stored[2]}, from which "
                    f"the model's {height} x {width} x {channels} cannot be cut; use data like those the "
                    "model was trained on"
                )
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

    def __exit__(self, *_: object) -> None:
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
        if not self._data.objects:
            notes.append("the data have no positions: no tracking, no position errors")
        return notes

    def batches(self, batch_size: int) -> Iterator[tuple[int, Truth]]:
        """Yields (number of sequences, `Truth` of batch_size), all frames at once; see `streams`."""
        for stream in self.streams(batch_size):
            yield stream.size, stream.read(0, self.n_frames)

    def streams(self, batch_size: int) -> Iterator["Stream"]:
        """Yields batches of sequences in the file's order.

        The last batch is filled with copies of the last sequence, so that all batches have one shape.
        """
        for first in range(0, self.n_sequences, batch_size):
            yield Stream(self, first, min(batch_size, self.n_sequences - first), batch_size)

    def read(self, wanted: np.ndarray, first: int, n_frames: int, sizes: Mapping[str, np.ndarray]) -> Truth:
        """The frames from `first` on of some sequences; sizes: see `disc_sizes`."""
        members = {**self._data.read(wanted, n_frames, first=first), **sizes}
        rows, columns = self._crop

        def seen(images: np.ndarray) -> np.ndarray:
            images = images[:, :, rows, columns].swapaxes(0, 1)
            return images[..., 0] if images.shape[-1] == 1 else images

        frames = self._data.intensities(seen(members["features"]))
        groups = seen(members["groups"]) if "groups" in members else None
        count = pipeline.count_objects(members, None if groups is None else groups.swapaxes(0, 1), frames.shape[1])
        count = count.T.astype(np.int16)
        centre = box = pixels = None
        if self._data.objects:
            centre, box, pixels = OBJECTS[self._data.objects](self._data, members, self._crop, groups)
        return Truth(
            frames,
            count,
            groups,
            seen(members["collisions"]) if "collisions" in members else None,
            None if centre is None else centre.astype(np.float32),
            None if box is None else box.astype(np.float32),
            None if pixels is None else pixels.astype(np.uint16),
        )

    def disc_sizes(self, wanted: np.ndarray) -> dict[str, np.ndarray]:
        """Those of `n` [B] and `radii` [B, n] that a file of discs lacks, as R-NEM's do, from the pixels of all frames.

        The largest visible area of a disc gives its radius to about 1 %.
        """
        data, most, area = self._data, np.zeros(len(wanted), np.uint8), np.zeros(())
        if data.objects != "discs" or {"n", "radii"} <= set(data.members):
            return {}
        for first in range(0, self.n_frames, PART):
            groups = data.read(wanted, min(PART, self.n_frames - first), ["groups"], first)["groups"][..., 0]
            most = np.maximum(most, groups.max((0, 2, 3)))  # of [T, B, H, W], not cropped
            area = np.maximum(area, geometry.visible_pixels(groups, data.members["positions"].shape[2]).max(0))
        found: dict[str, np.ndarray] = {"n": most, "radii": np.sqrt(area / np.pi) * data.box / data.image_shape[1]}
        return {name: value for name, value in found.items() if name not in data.members}


class Stream:
    """A batch of sequences of a source, to be read some frames at a time, as often as is needed.

    Attributes:
      first, size: the index of the first sequence and how many there are, without the copies that fill up the batch.
      batch_size: B, with them.
      n_frames: T.
    """

    def __init__(self, source: Source, first: int, size: int, batch_size: int):
        """Args: see the class."""
        self.first, self.size, self.batch_size, self.n_frames = first, size, batch_size, source.n_frames
        self._source = source
        self._wanted = np.minimum(np.arange(first, first + batch_size), first + size - 1)
        self._sizes = source.disc_sizes(self._wanted)
        self._last: tuple[tuple[int, int], Truth] | None = None

    def read(self, first: int, n_frames: int) -> Truth:
        """The frames from `first` on. What was read last is kept: a short sequence is read once."""
        if self._last is None or self._last[0] != (first, n_frames):
            self._last = (first, n_frames), self._source.read(self._wanted, first, n_frames, self._sizes)
        return self._last[1]

    def parts(self) -> Iterator[tuple[int, Truth]]:
        """Yields (index of its first frame, `Truth`) of `PART` frames after another; the last part may be shorter."""
        for first in range(0, self.n_frames, PART):
            yield first, self.read(first, min(PART, self.n_frames - first))


# ---------------------------------------------------------------------------------------------------------------
# Where objects are, by the file's attribute `objects` (docs/data.md)
# ---------------------------------------------------------------------------------------------------------------

_Places = tuple[np.ndarray, np.ndarray, np.ndarray]  # centres [B, T, n, 2], boxes [B, T, n, 4], pixels [B, T, n]


def _discs(
    data: hdf5.Split, members: Mapping[str, np.ndarray], crop: tuple[slice, slice], groups: np.ndarray | None
) -> _Places:
    """Discs, such as balls: `positions` are their centres in units of the box, whose side is the frame's width."""
    assert groups is not None  # a file of discs has them (hdf5.py)
    unit = data.image_shape[1] / data.box
    centres = geometry.pixel_centres(members["positions"], members["n"], unit, [part.start for part in crop])
    return (
        centres,
        geometry.boxes_from_discs(centres, members["radii"], unit),
        geometry.visible_pixels(groups, centres.shape[2]),
    )


def _boxes(
    data: hdf5.Split, members: Mapping[str, np.ndarray], crop: tuple[slice, slice], groups: np.ndarray | None
) -> _Places:
    """Objects with boxes in `coords`, such as digits: each is drawn from the pixel nearest to its corner on."""
    coords = members["coords"].swapaxes(0, 1).astype(float)
    start = [part.start for part in crop]
    box = np.where(coords[..., 2:3] > 0, np.round(coords) - [start[0] + 0.5, start[1] + 0.5, 0, 0], np.nan)
    inside = geometry.clip_boxes(box, [part.stop - part.start for part in crop])
    pixels = np.nan_to_num(np.maximum(inside[..., 2:], 0).prod(-1))
    return box[..., :2] + box[..., 2:] / 2, box, pixels


OBJECTS = {"discs": _discs, "boxes": _boxes}  # the kinds of `hdf5.OBJECTS`
