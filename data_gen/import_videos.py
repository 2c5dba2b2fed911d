"""Imports your own videos: `python -m data_gen.import_videos --inputs FILE_OR_FOLDER ... --out FILE.h5`.

Arrays (.npz, .npy, HDF5 of other layouts), folders of images, GIFs and films become a data set in the layout of
`hdf5`: frames are cropped, resized and scaled, cut to sequences of one length and divided into training, validation and
test by video. docs/data.md shows how.
"""

import json
import math
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import attrs
import h5py
import numpy as np
from PIL import Image

from data_gen import hdf5
from data_gen import writer as data_gen_writer
from data_gen.console import parse, progress, run_cli, within
from data_gen.errors import UserError
from data_gen.files import check_output
from data_gen.video_files import COUNTS, Finder, Video

_BUFFER_BYTES = 64 * 2**20  # of the sequences that wait to be written, per split
_MOST_SEQUENCE_BYTES = 512 * 2**20  # the longest sequence that `hdf5` reads
_MOST_PIXELS = 1024  # the longest side that `hdf5` reads
_OVERSHOOT = 0.01  # how far resampling may exceed the range of floats, as a fraction of the range
_WHITE = {"bool": 1, "uint8": 255, "uint16": 65535, "float16": 1, "float32": 1, "float64": 1}
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luma, ITU-R BT.601
_BOX_UNITS = ("positions", "velocities", "radii")
_SINCE_LAST_FRAME = ("velocities", "collisions", "events")


# ---------------------------------------------------------------------------------------------------------------
# Intensities
# ---------------------------------------------------------------------------------------------------------------


class Intensities:
    """Maps pixels from `black`..`white` to 0..1 (without `white`: by the type's range) and counts what it maps."""

    def __init__(self, black: float, white: float | None, clip: bool):
        self._black, self._white, self._clip = black, white, clip
        self._seen: dict[str, tuple[float, float]] = {}  # type -> smallest and largest value
        self._clipped = self._values = 0

    def __call__(self, frame: np.ndarray, where: str) -> np.ndarray:
        """Returns a frame of any type of numbers as float32 in [0, 1].

        Raises:
          UserError: values outside of the range; a type without a range of its own.
        """
        kind = frame.dtype.name
        if self._white is None and kind not in _WHITE:
            raise UserError(
                f"{where}: pixels of type {kind}, whose largest value does not tell what white is; say so, "
                "for instance --white 255 or --white 1"
            )
        white = _WHITE[kind] if self._white is None else self._white
        low, high = float(frame.min()), float(frame.max())  # NaN if there is one
        if not math.isfinite(low + high):
            raise UserError(f"{where}: pixels that are not finite numbers; replace them first")
        self._values += frame.size
        known = self._seen.get(kind, (low, high))
        self._seen[kind] = min(low, known[0]), max(high, known[1])
        bottom, top = min(self._black, white), max(self._black, white)
        if low < bottom or high > top:
            allowed = _OVERSHOOT * (top - bottom) if frame.dtype.kind == "f" else 0
            if not self._clip and (low < bottom - allowed or high > top + allowed):
                raise UserError(
                    f"{where}: values from {low:g} to {high:g}, expected {bottom:g} to {top:g}; give the "
                    "range with --black and --white, or --clip to cut off what lies outside"
                )
            self._clipped += int(np.count_nonzero((frame < bottom) | (frame > top)))
        scaled = (frame.astype(np.float32) - np.float32(self._black)) / np.float32(white - self._black)
        return scaled.clip(0, 1, out=scaled)

    def report(self) -> list[str]:
        """Returns lines that describe the scaling.

        Raises:
          UserError: the frames use so little of the range that it must be wrong.
        """
        lines = []
        for kind, (low, high) in self._seen.items():
            white = _WHITE[kind] if self._white is None else self._white
            seen = f"{kind}, from {low:g} to {high:g}"
            if low == high:
                raise UserError(f"every pixel of type {kind} is {low:g}; are these the right frames?")
            if self._white is None and kind in ("uint8", "uint16") and low >= 0 and high <= 1:
                raise UserError(f"pixels are {seen}: say whether white is 1 (--white 1) or {white} (--white {white})")
            lines.append(f"intensities: {seen}; {self._black:g} became black (0) and {white:g} white (255)")
            if self._white is None and kind == "uint16" and high <= white / 4:
                lines.append(
                    f"intensities: {high:g} is dark on a scale to {white}; if it is white, say --white {high:g}"
                )
        if self._clipped:
            lines.append(
                f"intensities: {self._clipped / self._values:.2g} of the values lay beyond black or white and "
                "were cut off"
            )
        return lines


def to_channels(frame: np.ndarray, colour: bool) -> tuple[np.ndarray, bool]:
    """Returns a frame [H, W, C] with 1 or, if `colour`, 3 channels, and whether colours were lost.

    A fourth channel is opacity, on a black background.
    """
    if frame.shape[2] == 4:
        frame = frame[..., :3] * frame[..., 3:]
    if frame.shape[2] == 1:
        return (frame.repeat(3, 2) if colour else frame), False
    if colour:
        return frame, False
    lost = bool((frame != frame[..., :1]).any())
    return (frame @ _GREY)[..., None], lost


# ---------------------------------------------------------------------------------------------------------------
# Cropping and resizing
# ---------------------------------------------------------------------------------------------------------------


class Placement(NamedTuple):
    """How frames of one size are cropped, resized and padded. Positions in pixels, from the frame's edges."""

    box: tuple[float, float, float, float]  # left, top, right, bottom of what is kept
    inner: tuple[int, int]  # height and width to which it is resized
    corner: tuple[int, int]  # row and column of its top left pixel in the result
    outer: tuple[int, int]  # height and width of the result, black around it

    @property
    def scale(self) -> tuple[float, float]:
        """Factors of columns and rows."""
        left, top, right, bottom = self.box
        return self.inner[1] / (right - left), self.inner[0] / (bottom - top)

    def image(self, frame: np.ndarray) -> np.ndarray:
        """Resizes float32 [H, W, C] with anti-aliasing."""
        return np.stack([self._plane(frame[..., c], Image.Resampling.BILINEAR) for c in range(frame.shape[2])], -1)

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Resizes whole numbers [T, H, W, 1] by nearest neighbours."""
        return np.stack([self._plane(frame[..., 0], Image.Resampling.NEAREST) for frame in labels])[..., None]

    def _plane(self, plane: np.ndarray, filter: Image.Resampling) -> np.ndarray:
        left, top, right, bottom = self.box
        whole = all(float(x).is_integer() for x in self.box)
        if whole and self.inner == (bottom - top, right - left):
            part = plane[int(top) : int(bottom), int(left) : int(right)]
        else:
            part = np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(self.inner[::-1], filter, self.box))
        if self.inner == self.outer:
            return part
        result = np.zeros(self.outer, plane.dtype)
        result[self.corner[0] : self.corner[0] + self.inner[0], self.corner[1] : self.corner[1] + self.inner[1]] = part
        return result

    def points(self, points: np.ndarray) -> np.ndarray:
        """Maps points [..., 2] (column, row) to the result."""
        return (points - self.box[:2]) * self.scale + self.corner[::-1]


def place(height: int, width: int, crop: Sequence[int], size: Sequence[int], fit: str, where: str) -> Placement:
    """Computes the placement of frames of a size; see `CommandLine` for crop, size and fit.

    Raises:
      UserError: the crop does not lie within the frame.
    """
    if len(crop) == 4:
        top, left, h, w = crop
    elif crop:
        h, w = crop[0], crop[-1]
        top, left = (height - h) // 2, (width - w) // 2
    else:
        top, left, h, w = 0, 0, height, width
    if top < 0 or left < 0 or top + h > height or left + w > width:
        raise UserError(
            f"{where}: frames of {height} x {width}, from which --crop {' '.join(map(str, crop))} cannot "
            "be cut; choose a smaller one"
        )
    if not size:
        return Placement((left, top, left + w, top + h), (h, w), (0, 0), (h, w))
    outer = (size[0], size[-1])
    inner = outer
    box: tuple[float, float, float, float] = (left, top, left + w, top + h)
    if fit == "crop":  # the largest central part of the right proportions
        factor = max(outer[0] / h, outer[1] / w)
        kept_h, kept_w = min(outer[0] / factor, h), min(outer[1] / factor, w)
        y, x = top + (h - kept_h) / 2, left + (w - kept_w) / 2
        box = (x, y, x + kept_w, y + kept_h)
    elif fit == "pad":
        factor = min(outer[0] / h, outer[1] / w)
        inner = (max(round(h * factor), 1), max(round(w * factor), 1))
    corner = ((outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2)
    return Placement(box, inner, corner, outer)


def move_truth(name: str, truth: np.ndarray, placement: Placement, unit: float, every: int, moved: bool) -> np.ndarray:
    """Applies the placement and subsampling of frames to their truth.

    Args:
      name: member.
      truth: its values, axes of `hdf5.MEMBERS` without S.
      placement: of the frames.
      unit: pixels of the source per unit of positions.
      every: one of this many frames is kept.
      moved: whether --crop or --size is given; positions are then in pixels of the new frames.

    Returns:
      As `truth`.
    """
    scale = np.asarray(placement.scale)
    if name in ("groups", "collisions"):
        return placement.labels(truth.astype(np.uint8))
    if name == "coords" and moved:  # (y, x, height, width) in pixels; without area: absent
        size = truth[..., 2:] * scale[::-1]
        corner = placement.points(truth[..., 1::-1])[..., ::-1]
        return np.where(size.all(-1, keepdims=True), np.concatenate([corner, size], -1), 0)
    if name == "velocities":
        truth = truth * every
    if name in _BOX_UNITS and moved:
        truth = truth * unit
        return (
            placement.points(truth)
            if name == "positions"
            else truth * scale
            if name == "velocities"
            else truth * math.sqrt(scale.prod())
        )
    return truth


# ---------------------------------------------------------------------------------------------------------------
# Splits
# ---------------------------------------------------------------------------------------------------------------


def divide(videos: Sequence[Video], shares: Mapping[str, float], seed: int) -> list[str]:
    """Returns each video's split.

    A video of a named split stays there. For splits that no name gives, videos are drawn from those without a name or
    named training: the split's share of them, at least one.

    Raises:
      UserError: there are fewer videos than splits.
    """
    named = {video.split for video in videos}
    pool = (
        np.random.default_rng(seed)
        .permutation([i for i, video in enumerate(videos) if video.split in (None, "training")])
        .astype(int)
    )
    splits = [video.split or "training" for video in videos]
    sizes = {
        split: max(round(share * len(pool)), 1) for split, share in shares.items() if share > 0 and split not in named
    }
    if sum(sizes.values()) >= max(len(pool), 1) and sizes:
        raise UserError(
            f"{len(pool)} video{'s' * (len(pool) != 1)} for {' and '.join(['training', *sizes])}: a video "
            "goes into one split only; give more, cut each by time (--cut --split_by time), or do without "
            "a split (--validation 0, --test 0)"
        )
    first = 0
    for split, size in sizes.items():
        for i in pool[first : first + size]:
            splits[i] = split
        first += size
    return splits


def divide_by_time(n_sequences: int, shares: Mapping[str, float]) -> list[str]:
    """Returns the split of each sequence of a video: its beginning training, then validation, then test.

    Each gets its share of them, at least one; all are training if there are too few for that.
    """
    sizes = {split: max(round(share * n_sequences), 1) for split, share in shares.items() if share > 0}
    n_training = n_sequences - sum(sizes.values())
    if n_training < 1:
        return ["training"] * max(n_sequences, 1)
    return ["training"] * n_training + [split for split, size in sizes.items() for _ in range(size)]


# ---------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------


class SplitWriter:
    """Writes the sequences of a split as they arrive; at most `_BUFFER_BYTES`, or one sequence, wait in memory."""

    def __init__(self, file: data_gen_writer.NewFile, split: str, compression: int):
        self._file, self._group = file, file.create_group(split)
        self._compression = compression
        self._waiting: list[Mapping[str, np.ndarray]] = []
        self._together = 0
        self.n_sequences = 0

    def add(self, sequence: Mapping[str, np.ndarray]) -> None:
        """Adds a sequence: member -> array with the axes of `hdf5.MEMBERS` without S."""
        if not self._together:
            size = sum(array.nbytes for array in sequence.values())
            self._together = min(max(_BUFFER_BYTES // size, 1), hdf5.CHUNK_SEQUENCES)
        self._waiting.append(sequence)
        self.n_sequences += 1
        if len(self._waiting) == self._together:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        for name in self._waiting[0]:
            axes = hdf5.MEMBERS[name].axes
            along = axes.index("S")
            block = np.stack([sequence[name] for sequence in self._waiting], along)
            if name not in self._group:
                limits = {"T": hdf5.CHUNK_FRAMES, "S": self._together}
                self._group.create_dataset(
                    name,
                    (*block.shape[:along], 0, *block.shape[along + 1 :]),
                    block.dtype,
                    maxshape=(*block.shape[:along], None, *block.shape[along + 1 :]),
                    compression="gzip",
                    compression_opts=self._compression,
                    chunks=tuple(min(n, limits.get(axis, n)) for axis, n in zip(axes, block.shape)),
                )
            data: h5py.Dataset = self._group[name]
            first = data.shape[along]
            data.resize(first + block.shape[along], along)
            data[(*(slice(None),) * along, slice(first, None))] = block
        self._waiting = []
        self._file.check()


# ---------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------


def _numbers(*lengths: int) -> Callable[["CommandLine", attrs.Attribute, tuple[int, ...]], None]:
    def check(settings: "CommandLine", attribute: attrs.Attribute, value: tuple[int, ...]) -> None:
        if len(value) not in lengths or any(x < 0 for x in value) or any(x < 1 for x in value[-2:]):
            words = " ".join(map(str, value))
            raise UserError(f"--{attribute.name} {words}: expected {attribute.metadata['expected']}")

    return check


def _axes(settings: "CommandLine", attribute: attrs.Attribute, value: str) -> None:
    if value and (set(value) - set("STHWC") or len(set(value)) < len(value) or not set("THW") <= set(value)):
        raise UserError(
            f"--axes {value}: expected T (frames), H (height), W (width) and where the array has them S "
            "(videos) and C (channels), each once and in the array's order, for instance STHWC"
        )


@attrs.frozen(kw_only=True)
class CommandLine:
    """Imports videos: .npz, .npy, HDF5 of other layouts, folders of PNG or JPEG frames, GIF, MP4 and other films."""

    inputs: tuple[pathlib.Path, ...]
    """Files and folders. A folder holds the frames of one video, or videos and further folders; folders, groups and
    arrays named train, valid or test give the split."""
    out: pathlib.Path
    """The file to write, HDF5; it appears when it is complete and replaces an older one."""
    axes: str = attrs.field(default="", validator=_axes)
    """The axes of arrays in their order: S videos, T frames, H height, W width, C channels; STHWC, say, or THW."""
    frames_name: str = ""
    """Name of the array of frames in files with several; left out: features, frames, images, videos or the only one."""
    truth: tuple[pathlib.Path, ...] = ()
    """Truth about the videos, in separate files (.npz, HDF5, groups.npy): arrays named groups, positions,
    counts, coords, ..., S counting all videos in their order. Arrays of these names beside the frames are taken too."""
    box: float | None = attrs.field(default=None, validator=attrs.validators.optional(within(1e-3, 1e6)))
    """Width of the frame in the units of positions, velocities and radii: the frame's width if they are pixels."""
    crop: tuple[int, ...] = attrs.field(
        default=(),
        validator=_numbers(0, 1, 2, 4),
        metadata={"expected": "the side, height and width, or top, left, height and width of what is kept, in pixels"},
    )
    """Crop, before --size: the side of a central square, the height and width of the centre, or top, left, height and
    width."""
    size: tuple[int, ...] = attrs.field(
        default=(),
        validator=_numbers(0, 1, 2),
        metadata={"expected": "the side of square frames, or height and width, in pixels"},
    )
    """Resize to a square of this side, or to this height and width."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How frames of other proportions are brought to --size: cropped to the centre, padded with black, or distorted."""
    colour: bool = False
    """Keep colours; otherwise frames become grey."""
    black: float = attrs.field(default=0.0, validator=within(-1e9, 1e9))
    """The value that becomes 0."""
    white: float | None = attrs.field(default=None, validator=attrs.validators.optional(within(-1e9, 1e9)))
    """The value that becomes 1; left out: 1 for bool and floats, 255 for uint8, 65535 for uint16. Below --black
    it inverts the image: the model draws bright objects on black."""
    clip: bool = False
    """Clip values beyond --black and --white instead of refusing them."""
    n_frames: int = attrs.field(default=10, validator=within(1, 10_000))
    """T, frames per sequence; shorter videos are left out."""
    every: int = attrs.field(default=1, validator=within(1, 10_000))
    """Keep one of this many frames, for films in which little moves between frames."""
    cut: bool = False
    """Cut each video into as many sequences as it holds; otherwise each gives one, from its beginning."""
    split_by: Literal["video", "time"] = "video"
    """Divide the videos among the splits, or (with --cut) each video: its beginning for training, its end for test."""
    validation: float = attrs.field(default=0.1, validator=within(0, 0.9))
    """Share of the validation split, if no folder or array has its name; 0 for none."""
    test: float = attrs.field(default=0.1, validator=within(0, 0.9))
    """Share of the test split, if no folder or array has its name; 0 for none."""
    seed: int = attrs.field(default=0, validator=within(0, 2**63))
    """Seed of the division by video."""
    compression: int = attrs.field(default=1, validator=within(0, 9))
    """Level of gzip compression: 0 is quickest, 9 smallest."""

    def __attrs_post_init__(self):
        if self.black == self.white:
            raise UserError(f"--black {self.black:g} --white {self.white:g}: expected two different values")
        if self.split_by == "time" and not self.cut:
            raise UserError("--split_by time divides the sequences of each video; add --cut")
        if self.validation + self.test >= 1:
            raise UserError(f"--validation {self.validation:g} --test {self.test:g} leave nothing to train on")
        if self.size and max(self.size) > _MOST_PIXELS:
            raise UserError(f"--size {max(self.size)}: expected at most {_MOST_PIXELS} pixels per side")

    @property
    def shares(self) -> dict[str, float]:
        return {"validation": self.validation, "test": self.test}


def check_out(out: pathlib.Path, inputs: Sequence[pathlib.Path]) -> None:
    """`check_output`; raises `UserError` too if the output would lie among the videos of an input folder."""
    real = out.resolve()
    for path in inputs:
        if path.is_dir() and path.resolve() in real.parents:
            raise UserError(f"--out {out} lies in the input folder {path}; write it elsewhere")
    check_output(out, hdf5.DATA_SET, inputs)


class _Importer:
    """Turns videos into sequences and writes them."""

    def __init__(
        self,
        options: CommandLine,
        videos: Sequence[Video],
        truths: Sequence[Mapping[str, Callable[[slice], np.ndarray]]],
        file: data_gen_writer.NewFile,
    ):
        self._options, self._file = options, file
        self._scale = Intensities(options.black, options.white, options.clip)
        self._videos, self._truths = videos, truths
        self._writers: dict[str, SplitWriter] = {}
        self._shape: tuple[int, ...] | None = None  # H, W, C of the written frames
        self._first = ""  # the video that set it
        self._members: dict[str, tuple[int, ...]] = {}  # shapes of a sequence's members
        self.lost_colours = False
        self.too_short: list[str] = []
        self.shortened = 0  # videos of which only the beginning was taken
        self.sequences: Counter[str] = Counter()
        self.sources: dict[str, set[str]] = {}
        names = {name for truth in truths for name in truth}
        self.left_out = {name for name in names if not all(name in truth for truth in truths)}
        self._names = sorted(names - self.left_out)
        if options.every > 1:
            self.left_out |= set(self._names) & {"collisions", "events"}
            self._names = [name for name in self._names if name not in ("collisions", "events")]
        self._most = self._most_counted() if COUNTS in self._names else 0
        self.moved = bool(options.crop or options.size)
        if set(self._names) & set(_BOX_UNITS):
            self._check_boxes()

    def _most_counted(self) -> int:
        most = 0
        for video, truth in zip(self._videos, self._truths):
            counts = truth[COUNTS](slice(None))
            if not (
                np.isfinite(counts).all()
                and (counts >= 0).all()
                and (counts <= 255).all()
                and (counts == np.round(counts)).all()
            ):
                raise UserError(
                    f"{video.name}: counts from {counts.min()} to {counts.max()}, expected whole numbers from 0 to 255"
                )
            most = max(most, int(counts.max()))
        return max(most, 1)

    def _check_boxes(self) -> None:
        boxes = {self._options.box or video.box for video in self._videos}
        if None in boxes or (len(boxes) > 1 and not self.moved):
            stated = ", ".join(map(str, sorted(box for box in boxes if box)))
            known = "not stated" if None in boxes else f"different ({stated})"
            names = ", ".join(name for name in _BOX_UNITS if name in self._names)
            raise UserError(
                f"{names}: their units are {known}; say the frame's width in them with --box (in "
                "pixels, if they are pixels)"
            )

    @property
    def box(self) -> float | None:
        """Side of the box of the written data; None if no member needs one."""
        if not set(self._names) & set(_BOX_UNITS):
            return None
        if self.moved:
            assert self._shape is not None
            return float(max(self._shape[:2]))
        box = self._options.box or self._videos[0].box
        return None if box is None else float(box)

    def write(self, splits: Sequence[str], lengths: Sequence[int], advance: Callable[[int], None]) -> None:
        for video, truth, split, length in zip(self._videos, self._truths, splits, lengths):
            self._write_video(video, truth, split, length, advance)
        for writer in self._writers.values():
            writer.flush()

    def _write_video(
        self,
        video: Video,
        truth: Mapping[str, Callable[[slice], np.ndarray]],
        split: str,
        length: int,
        advance: Callable[[int], None],
    ) -> None:
        options = self._options
        by_time = divide_by_time(length // (options.n_frames * options.every), options.shares)
        frames: list[np.ndarray] = []
        n_sequences, placement, source = 0, None, (0, 0)
        reader = video.frames()
        try:
            for t, frame in enumerate(reader):
                if t % options.every:
                    continue
                where = f"{video.name}: frame {t}"
                frame = frame[..., None] if frame.ndim == 2 else frame
                if placement is None or frame.shape[:2] != source:
                    if n_sequences + len(frames) and set(self._names) & {"positions", "coords", "groups", "collisions"}:
                        raise UserError(
                            f"{where}: {frame.shape[0]} x {frame.shape[1]} pixels, those before it "
                            f"{source[0]} x {source[1]}; with truth all must have one size"
                        )
                    source = frame.shape[:2]
                    placement = place(*source, options.crop, options.size, options.fit, where)
                frames.append(self._image(frame, placement, where))
                if len(frames) < options.n_frames:
                    continue
                first = t - (options.n_frames - 1) * options.every
                members = self._truth(video, truth, slice(first, t + 1, options.every), placement, source)
                if options.split_by == "time" and video.split is None:
                    split = by_time[min(n_sequences, len(by_time) - 1)]
                self._add(video, split, {"features": np.stack(frames), **members})
                n_sequences += 1
                frames = []
                advance(options.n_frames)
                if not options.cut:
                    self.shortened += next(reader, None) is not None
                    break
        finally:
            reader.close()
        if not n_sequences:
            self.too_short.append(f"{video.name} ({len(frames)} frames)")

    def _image(self, frame: np.ndarray, placement: Placement, where: str) -> np.ndarray:
        """Returns a frame as it is stored, [H, W, C] uint8."""
        options = self._options
        image, lost = to_channels(self._scale(frame, where), options.colour)
        self.lost_colours |= lost
        image = np.round(placement.image(image).clip(0, 1) * 255).astype(np.uint8)
        if self._shape is None:
            if not all(2 <= side <= _MOST_PIXELS for side in image.shape[:2]):
                raise UserError(
                    f"{where}: {image.shape[0]} x {image.shape[1]} pixels, expected 2 to {_MOST_PIXELS} "
                    "per side; choose --size, 64 for instance"
                )
            if image.nbytes * options.n_frames > _MOST_SEQUENCE_BYTES:
                raise UserError(
                    f"{where}: a sequence of {options.n_frames} frames takes "
                    f"{image.nbytes * options.n_frames / 2**20:.0f} MiB, at most "
                    f"{_MOST_SEQUENCE_BYTES // 2**20} are read; choose a smaller --size or --n_frames"
                )
            self._shape, self._first = image.shape, where
        if image.shape != self._shape:
            raise UserError(
                f"{where}: {image.shape[0]} x {image.shape[1]} pixels, but {self._first} has "
                f"{self._shape[0]} x {self._shape[1]}; bring all to one size with --size, 64 for instance"
            )
        return image

    def _truth(
        self,
        video: Video,
        truth: Mapping[str, Callable[[slice], np.ndarray]],
        frames: slice,
        placement: Placement,
        source: tuple[int, int],
    ) -> dict[str, np.ndarray]:
        """Returns the truth about some frames: member -> array with the axes of `hdf5.MEMBERS` without S."""
        members = {}
        for name in self._names:
            values = truth[name](frames)
            where = f"{video.name}: {name}"
            if name == COUNTS:
                n = np.unique(values)
                if n.size > 1:
                    raise UserError(
                        f"{where}: they change from {n[0]:g} to {n[-1]:g} within a sequence, for which "
                        "there is one number only; give groups, which hold the count per frame, or no counts"
                    )
                members["n"] = np.asarray(n[0], np.uint8)
                members["nums"] = (np.arange(self._most) < n[0])[None].astype(np.uint8)
                continue
            axes = hdf5.MEMBERS[name].axes.replace("S", "")
            expected = {"T": self._options.n_frames, "H": source[0], "W": source[1]}
            for axis, size in zip(axes, values.shape):
                if expected.get(axis, size) != size:
                    raise UserError(
                        f"{where}: {axis} = {size} where the frames have {expected[axis]}; expected truth "
                        "of all the frames, at their size"
                    )
            low, high, whole, _ = hdf5.KINDS[hdf5.MEMBERS[name].kind]
            hdf5.check_range(values, where, low, high, whole, "correct it in the source")
            unit = source[1] / (self._options.box or video.box or 1)
            values = move_truth(name, values, placement, unit, self._options.every, self.moved)
            if name == "positions":
                box = self.box
                assert box is not None
                low, high = -hdf5.BOX_MARGIN * box, (1 + hdf5.BOX_MARGIN) * box
                if self.moved:  # positions far outside of a crop are clipped
                    values = values.clip(low, high)
                hdf5.check_range(
                    values,
                    where,
                    low,
                    high,
                    False,
                    f"--box {box:g} is taken for the frame's width in their units; give another",
                )
            members.setdefault(name, values.astype(hdf5.result_type(name, values.dtype)))
        return members

    def _add(self, video: Video, split: str, sequence: dict[str, np.ndarray]) -> None:
        for name, array in sequence.items():
            shape = self._members.setdefault(name, array.shape)
            if array.shape != shape:
                axes = ", ".join(hdf5.MEMBERS[name].axes.replace("S", ""))
                raise UserError(
                    f"{video.name}: {name} of shape {array.shape}, in the videos before {shape} ({axes}); "
                    "expected one number of objects, fill up with zeros"
                )
        if split not in self._writers:
            self._writers[split] = SplitWriter(self._file, split, self._options.compression)
        self._writers[split].add(sequence)
        self.sequences[split] += 1
        self.sources.setdefault(split, set()).add(video.name)

    @property
    def objects(self) -> str:
        """Which of the members that were written tell where objects are, a key of `hdf5.OBJECTS`; "" if none does."""
        return next((kind for kind, names in hdf5.OBJECTS.items() if set(names) <= set(self._members)), "")

    def report(self, wanted: Iterable[str]) -> list[str]:
        """Returns lines on what was done.

        Raises:
          UserError: a split has no sequences, or the range of intensities must be wrong.
        """
        options = self._options
        lines = []
        if self.too_short:
            more = f" and {len(self.too_short) - 3} more" * (len(self.too_short) > 3)
            lines.append(
                f"left out, shorter than {options.n_frames} frames"
                f"{f' of every {options.every}th' * (options.every > 1)}: "
                f"{', '.join(self.too_short[:3])}{more}"
            )
        empty = [split for split in wanted if not self.sequences[split]]
        if empty:
            raise UserError(
                f"nothing for {' and '.join(empty)}: {'; '.join(lines) or 'too few sequences'}; choose a "
                "smaller --n_frames, give longer or more videos, or do without (--validation 0, --test 0)"
            )
        lines += self._scale.report()
        if self.shortened:
            lines.append(
                f"only the beginning was taken of {self.shortened} videos, which are longer than a sequence; "
                "--cut makes further sequences of the rest, --n_frames longer ones"
            )
        if self.lost_colours:
            lines.append("colours became grey; --colour keeps them")
        if self.left_out:
            lines.append(
                f"truth left out, because not every video has it or frames were skipped: "
                f"{', '.join(sorted(self.left_out))}"
            )
        assert self._shape is not None
        height, width, channels = self._shape
        truth = ", ".join(name for name in self._members if name != "features")
        for split in hdf5.SPLITS:
            if self.sequences[split]:
                n, m = self.sequences[split], len(self.sources[split])
                lines.append(
                    f"{split}: {n} sequence{'s' * (n > 1)} of {options.n_frames} frames, {height} x {width}, "
                    f"{'colour' if channels == 3 else 'grey'}, from {m} video{'s' * (m > 1)}"
                    f"{f'; with {truth}' * bool(truth)}"
                )
        return lines


def convert(options: CommandLine) -> list[str]:
    """Imports videos; the file appears only when it is complete.

    Returns:
      Lines that say what was done.

    Raises:
      UserError: something cannot be read, or does not fit together.
    """
    check_out(options.out, [path for path in (*options.inputs, *options.truth) if path.exists()])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with Finder(options.axes, options.frames_name, options.out.parent) as finder:
        videos = finder.find(options.inputs)
        truths = [{**video.truth, **truth} for video, truth in zip(videos, finder.truth(options.truth, len(videos)))]
        check_out(options.out, finder.inputs)
        by_time = options.split_by == "time"
        splits = (
            [video.split or "training" for video in videos] if by_time else divide(videos, options.shares, options.seed)
        )
        wanted = set(splits)
        if by_time and any(video.split is None for video in videos):
            wanted |= {split for split, share in options.shares.items() if share}
        lines = _found(videos)
        if finder.ignored:
            lines.append(f"ignored: {len(finder.ignored)} other files, {finder.ignored[0]} for instance")
        with data_gen_writer.new_file(options.out) as file:
            settings = attrs.asdict(options, filter=lambda field, _: field.name not in ("inputs", "out", "truth"))
            file.attrs["white"] = 255
            file.attrs["settings"] = json.dumps(settings)
            importer = _Importer(options, videos, truths, file)
            span = options.n_frames * options.every
            lengths = [video.count() if options.cut else span for video in videos]
            with progress(sum(length // span for length in lengths) * options.n_frames, "import", "frames") as advance:
                importer.write(splits, lengths, advance)
            lines += importer.report(split for split in hdf5.SPLITS if split in wanted)
            if importer.box:
                file.attrs["box"] = importer.box
            if importer.objects:
                file.attrs["objects"] = np.bytes_(importer.objects)
    return lines


def _found(videos: Sequence[Video]) -> list[str]:
    """Lines about the videos that were read, one per size and type, so that swapped axes are noticed."""
    lines = []
    for about, n in Counter(video.about for video in videos).items():
        first = next(video.name for video in videos if video.about == about)
        lines.append(f"read: {n} video{'s' * (n > 1)}{f' of {about}' * bool(about)} ({first}{', ...' * (n > 1)})")
    return lines


def main() -> None:
    options = parse(CommandLine, "data_gen.import_videos")
    for line in convert(options):
        print(line)
    print(f"wrote {options.out} ({os.path.getsize(options.out) / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_cli(main)
