"""The HDF5 files of sequences, in R-NEM's layout: what they hold, and how they are read and checked.

A file holds one group per split (training, validation, test) and in it the members of `MEMBERS`; only `features` is
required. Other programs' files in this layout (R-NEM's) are read too: their members may be bool, integer or
float, stored in chunks or not, and members that are not listed here are ignored.

Attributes of the file: `white`, the value of a fully lit pixel where features are integers, 1 or 255; `box`, the side
of the box of positions and velocities; `objects`, which members tell where objects are, a key of `OBJECTS`. Without
`white` all integer features of the file are read to find it.
"""

import contextlib
import errno
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import h5py
import numpy as np

from data_gen.console import progress
from data_gen.errors import UserError
from data_gen.files import Kind

SPLITS = ("training", "validation", "test")


class Member(NamedTuple):
    """A member's axes, one character each, and the kind of its values (see `KINDS`).

    T frames, S sequences, H and W image, C channels (1 or 3), N objects, K entries; a digit is a fixed size.
    """

    axes: str
    kind: str


MEMBERS = {
    "features": Member("TSHWC", "image"),
    "groups": Member("TSHW1", "id"),  # owner of each pixel: 0 background, 1.. object
    "collisions": Member("TSHW1", "flag"),  # visible pixels of objects that hit another one since the last frame
    "events": Member("TS111", "flag"),  # 1 if any object did
    "positions": Member("TSN2", "real"),  # (column, row), box units
    "velocities": Member("TSN2", "real"),  # (column, row), box units per frame
    "radii": Member("SN", "real"),  # box units
    "masses": Member("SN", "real"),
    "n": Member("S", "id"),  # number of objects
    "labels": Member("SN", "id"),  # moving MNIST: class of each digit
    "nums": Member("1SK", "flag"),  # moving MNIST: number of digits, unary
    "coords": Member("TSN4", "real"),  # moving MNIST: box of each digit, (y, x, height, width), pixels
}

# Values of the file's attribute `objects`, and the members that then tell where objects are.
OBJECTS = {
    "discs": ("positions", "groups"),  # around their centres; `radii` or else their area gives their size
    "boxes": ("coords",),
}
_DISCS_SIDE = 64  # of frames in R-NEM's files, and in ours that are older than `objects`

# Lowest and highest value, whether it must be whole, and the type that `Split.read` returns.
KINDS = {
    "flag": (0, 1, True, np.bool_),
    "id": (0, 255, True, np.uint8),
    "real": (-1e9, 1e9, False, np.float32),
}

CHUNK_FRAMES = 10  # training reads at most the first ten frames: one chunk along time
CHUNK_SEQUENCES = 50  # about a batch

DEFAULT_BOX = 15.0  # side of the box in R-NEM's files, which do not state it
BOX_MARGIN = 0.25  # of the box: positions beyond it by more are in other units

# Bounds on what a file may declare: a small file must not be able to use up all memory.
_LIMITS = {"T": 10_000, "S": 100_000_000, "H": 1024, "W": 1024, "C": 3, "N": 255, "K": 256}
_MAX_CHUNK_BYTES = 256 * 2**20
_MAX_SEQUENCE_BYTES = 512 * 2**20
_BLOCK_BYTES = 128 * 2**20  # of the images read at once, about
_MAX_RATIO = 2000  # gzip reaches 1030
_SAMPLE_PIXELS = 2**22  # of the frames that `Split.describe` compares
_SILENT_BYTES = 2**30  # progress is shown when more than this is read
_IMPORT = "`python -m data_gen.import_videos` converts such files"
_AS_STATED = "the file's attribute white says so, correct it"
# HDF5's other filters are rare, and those that come as plug-ins unpack without bounds.
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_LZF, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


class Damaged(UserError):
    """A file that is not HDF5, or is truncated or damaged."""


def open_file(path: str | os.PathLike, hint: str = "", **options: Any) -> h5py.File:
    """Opens an HDF5 file for reading.

    Args:
      path: of the file.
      hint: what it should be and what to do if it is damaged, the end of an error message.
      **options: for `h5py.File`.

    Raises:
      UserError: another program is writing it, the disc cannot be read, or permission is missing; `Damaged`.
    """
    try:
        return h5py.File(path, "r", **options)
    except OSError as error:
        raise unreadable(path, error, f"cannot be read as HDF5 ({error})", hint) from None


def unreadable(where: str | os.PathLike, error: Exception, what: str, hint: str) -> UserError:
    """Distinguishes the reasons why a file cannot be read.

    Args:
      where: file and, if known, member.
      error: of h5py.
      what: describes the damage, if it is damage.
      hint: what to do then.

    Returns:
      A `UserError`; of damage a `Damaged`.
    """
    text = str(error)
    found = re.search(r"errno = (\d+)", text)
    number = int(found[1]) if found else getattr(error, "errno", None)
    if "unable to lock file" in text:
        if number in (errno.EAGAIN, errno.EACCES):
            return UserError(f"{where}: another program has it open for writing; wait until it is closed")
        return UserError(
            f"{where}: cannot be locked on this file system ({os.strerror(number or 0)}); if nothing "
            "writes it, set HDF5_USE_FILE_LOCKING=FALSE in the environment"
        )
    if "already open for write" in text:
        return UserError(
            f"{where}: it is marked as open for writing: wait until its writer is done, or, if that was "
            "killed, remove the mark with h5clear -s"
        )
    if isinstance(error, PermissionError) or number in (errno.EACCES, errno.EPERM):
        return UserError(f"{where}: no permission to read it")
    if number:
        return UserError(
            f"{where}: cannot be read ({os.strerror(number)}); this is the disc or the network, not the file"
        )
    return Damaged(f"{where}: {what}; {hint}")


def _is_data_set(path: str | os.PathLike) -> bool:
    try:
        with open_file(path) as file:
            return any(isinstance(file.get(split), h5py.Group) and "features" in file[split] for split in SPLITS)
    except (Damaged, RuntimeError, KeyError, ValueError):
        return False


DATA_SET = Kind("a data set", _is_data_set)


@attrs.frozen
class Split:
    """One split of a file, open for reading; a context manager. Made by `open_split`."""

    path: str
    name: str
    n_sequences: int  # S
    n_frames: int  # T
    image_shape: tuple[int, int, int]  # H, W, C
    box: float  # side of the box of `positions` and `velocities`
    white: int  # value of a fully lit pixel in `read()["features"]`: 1 or 255
    stated: bool  # whether the file states it
    objects: str  # a key of `OBJECTS`, "" if the file does not tell where objects are
    block: int  # sequences that are stored, and so best read, together
    members: Mapping[str, h5py.Dataset]
    _file: h5py.File = attrs.field(alias="file")

    def __enter__(self) -> "Split":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(
        self,
        sequences: slice | Sequence[int] | np.ndarray,
        n_frames: int | None = None,
        members: Iterable[str] | None = None,
        first: int = 0,
    ) -> dict[str, np.ndarray]:
        """Reads some sequences; apart from the result, one block of sequences is in memory at a time.

        Args:
          sequences: which, in the order wanted; quickest in increasing order.
          n_frames: how many frames; None for all there are.
          members: which members; None for all that were opened.
          first: the first of the frames.

        Returns:
          Member name -> array with the axes of `MEMBERS`: features uint8 in 0..`white` or, if the file holds floats,
          float32 in [0, 1]; collisions, events, nums bool; groups, n, labels uint8; the rest float32.

        Raises:
          UserError: fewer frames than asked, a damaged file, values out of range, such as above `white`.
        """
        n_frames = self.n_frames - first if n_frames is None else n_frames
        if not 1 <= n_frames <= self.n_frames - first:
            raise UserError(
                f"{self.path}: {self.name} has {self.n_frames} frames per sequence, {first + n_frames} "
                "were asked for; ask for fewer (--n_frames; in training --max_seq_len) or make longer "
                "sequences"
            )
        if isinstance(sequences, slice):
            sequences = range(*sequences.indices(self.n_sequences))
        sequence_bytes = n_frames * math.prod(self.image_shape) * self.members["features"].dtype.itemsize
        if sequence_bytes > _MAX_SEQUENCE_BYTES:
            raise UserError(
                f"{self.path}: {self.name}: {n_frames} frames of a sequence take "
                f"{sequence_bytes / 2**20:.0f} MiB, at most {_MAX_SEQUENCE_BYTES // 2**20} are read; ask "
                "for fewer (--n_frames; in training --max_seq_len)"
            )
        wanted = np.asarray(sequences, np.int64)
        if wanted.size and not (0 <= wanted.min() and wanted.max() < self.n_sequences):
            raise IndexError(f"{self.path}: {self.name} has {self.n_sequences} sequences")
        return {
            name: self._read_member(name, wanted, slice(first, first + n_frames))
            for name in (self.members if members is None else members)
        }

    def _read_member(self, name: str, wanted: np.ndarray, frames: slice) -> np.ndarray:
        data, axes = self.members[name], MEMBERS[name].axes
        lead = {"S": (), "T": (frames,), "1": (slice(1),)}[axes[0]]
        dtype = result_type(name, data.dtype)
        shape = list(data.shape)
        if axes[0] == "T":
            shape[0] = frames.stop - frames.start
        shape[len(lead)] = len(wanted)
        result: np.ndarray = np.empty(shape, dtype)
        ahead: tuple[Any, ...] = (slice(None),) * len(lead)
        blocks = wanted // self.block
        for block in np.unique(blocks):
            where = np.flatnonzero(blocks == block)
            low, high = wanted[where].min(), wanted[where].max() + 1
            try:
                part = data[(*lead, slice(low, high))]
            except (OSError, RuntimeError) as error:
                raise unreadable(
                    f"{self.path}: {self.name}/{name}",
                    error,
                    f"sequences {low}..{high - 1} cannot be read ({error})",
                    "the file is damaged, make or copy it again",
                ) from None
            self._check_values(part, name)
            result[(*ahead, where)] = part[(*ahead, wanted[where] - low)]
        return result

    def _check_values(self, values: np.ndarray, name: str) -> None:
        """Raises: UserError: values that the member cannot hold."""
        kind, hint = MEMBERS[name].kind, "make the file again"
        low: float
        high: float
        if kind == "image":
            low, high, whole = 0, self.white, False
            hint = _AS_STATED if self.stated else _IMPORT
        else:
            low, high, whole, _ = KINDS[kind]
        if name == "positions":
            low, high = -BOX_MARGIN * self.box, (1 + BOX_MARGIN) * self.box
            hint = f"positions are in units of the box, whose side is {self.box:g} here; state another as attribute box"
        check_range(values, f"{self.path}: {self.name}/{name}", low, high, whole, hint)

    def describe(self, n_sequences: int | None = None) -> list[str]:
        """Returns a line that describes the split, and a warning if its axes seem to be swapped.

        Args:
          n_sequences: at most this many are read for the warning.

        Raises:
          UserError: see `read`.
        """
        size = " x ".join(map(str, self.image_shape if self.image_shape[2] > 1 else self.image_shape[:2]))
        stored = self.members["features"].dtype
        lines = [
            f"{self.path}: {self.name} holds {self.n_sequences:,} sequence{'s' * (self.n_sequences > 1)} of "
            f"{self.n_frames} frame{'s' * (self.n_frames > 1)}, {size}, {stored}"
            + (f" with white {self.white}" if stored.kind in "iu" else "")
        ]
        if self._seems_swapped(min(n_sequences or self.n_sequences, self.n_sequences)):
            lines.append(
                f"warning: {self.path}: {self.name}: frames that follow each other differ as much as those of "
                "different sequences. Features are (T, S, H, W, C): are frames and sequences swapped? "
                "`python -m data_gen.import_videos --axes STHWC` puts them in order"
            )
        return lines

    def _seems_swapped(self, n_sequences: int) -> bool:
        """Whether a sequence changes from frame to frame more than frames differ from sequence to sequence.

        Nearly as much is enough if there are fewer sequences than frames, a sign of swapped axes; it is not otherwise,
        since fast digits change as much.
        """
        most = max(_SAMPLE_PIXELS // math.prod(self.image_shape), 4)  # frames to look at
        n_sequences = min(n_sequences, 16, most // 2)
        n_frames = min(self.n_frames, most // n_sequences)
        if n_sequences < 2 or n_frames < 2:
            return False
        images = self.read(slice(0, n_sequences), n_frames, ["features"])["features"].astype(np.float32)
        in_time, between = (float(np.abs(np.diff(images, axis=axis)).mean()) for axis in (0, 1))
        fewer = self.n_sequences < self.n_frames
        return in_time > (0.8 if fewer else 1.25) * between

    def intensities(self, features: np.ndarray) -> np.ndarray:
        """Returns what `read` gave for features, of any shape, as float32 in [0, 1]."""
        features = features.astype(np.float32)
        return features if self.white == 1 else features / np.float32(self.white)


def check_range(values: np.ndarray, where: str, low: float, high: float, whole: bool, hint: str) -> None:
    """Raises `UserError` if a value lies outside of a range.

    Args:
      values: of any type of numbers.
      where: file and name, the beginning of an error message.
      low, high: the smallest and the largest value that is allowed.
      whole: whether fractions are refused.
      hint: what to do, the end of an error message.
    """
    if values.dtype == bool or not values.size or (values.dtype == np.uint8 and high == 255):
        return
    smallest, largest = values.min(), values.max()  # NaN if there is one
    if not (np.isfinite(smallest) and np.isfinite(largest) and low <= smallest and largest <= high):
        raise UserError(f"{where}: values from {smallest} to {largest}, expected {low:g} to {high:g}; {hint}")
    if whole and values.dtype.kind == "f" and (values != np.round(values)).any():
        raise UserError(f"{where}: fractions, expected whole numbers; {hint}")


def result_type(name: str, stored: np.dtype) -> type:
    """Returns the type in which `Split.read` gives a member that is stored as another."""
    kind = MEMBERS[name].kind
    if kind == "image":
        return np.float32 if stored.kind == "f" else np.uint8
    return KINDS[kind][3]


def open_split(
    path: str | os.PathLike, split: str, members: Iterable[str] = ("features",), optional: Iterable[str] = ()
) -> Split:
    """Opens one split of a file and checks all that can be checked without reading the data.

    Args:
      path: the HDF5 file.
      split: "training", "validation" or "test".
      members: members that must be there, apart from features, which always must.
      optional: members to open if they are there.

    Returns:
      The open split; close it, or use it in a `with` statement.

    Raises:
      UserError: not an HDF5 file, truncated, split or member absent, wrong type or shape, no sequences, a size
        beyond the bounds, data kept outside the file.
    """
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: no such file; make it with `python -m data_gen.bouncing_balls --out {path}`, or of "
            "videos with `python -m data_gen.import_videos`"
        )
    file = open_file(path, "expected a whole file of sequences, make or copy it again")
    try:
        return _open_split(file, path, split, {"features", *members}, optional)
    except UserError:
        file.close()
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, zlib.error) as error:
        # h5py raises many types of exceptions for a damaged or unusual structure.
        file.close()
        raise unreadable(
            path, error, f"{split} cannot be read ({error})", "the file is damaged, make or copy it again"
        ) from None


def _open_split(file: h5py.File, path: str, split: str, required: Iterable[str], optional: Iterable[str]) -> Split:
    if split not in file:
        present = ", ".join(file) or "nothing"
        hint = "" if set(SPLITS) & set(file) else f"; {_IMPORT}"
        raise UserError(f"{path}: no split {split!r}; it has {present}{hint}")
    group = _own(file, split, h5py.Group, path)
    data = {}
    sizes: dict[str, int] = {}  # of every axis, from the first member that has it
    for name in MEMBERS:  # features come first and set the sizes
        if name in required and name not in group:
            raise UserError(f"{path}: {split} has no member {name!r}; it has {', '.join(group) or 'nothing'}")
        if name in required or (name in optional and name in group):
            data[name] = _own(group, name, h5py.Dataset, f"{path}: {split}")
            _check_member(data[name], name, sizes, f"{path}: {split}/{name}")
    features = data["features"]
    stored = features.chunks[1] if features.chunks else CHUNK_SEQUENCES
    # Files stored one sequence at a time, or in one piece, are read in ordinary blocks; large frames in smaller ones.
    block = min(
        stored if 16 <= stored <= 1024 else CHUNK_SEQUENCES,
        max(_BLOCK_BYTES // math.prod(sizes[axis] for axis in "THWC"), 1),
    )
    opened = Split(
        path=path,
        name=split,
        n_sequences=sizes["S"],
        n_frames=sizes["T"],
        image_shape=(sizes["H"], sizes["W"], sizes["C"]),
        box=_box(file, path),
        white=_white(file, path, features),
        stated="white" in file.attrs,
        objects=_objects(file, path, group, sizes),
        block=block,
        members=data,
        file=file,
    )
    return opened


def _own(parent: h5py.Group, name: str, kind: type, where: str) -> Any:
    """Returns the child `name` that the file itself holds; links that lead elsewhere are refused."""
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        raise UserError(f"{where}: {name!r} is a link to another place; copy the data into the file")
    child = parent[name]
    if not isinstance(child, kind):
        raise UserError(
            f"{where}: {name!r} is not a {kind.__name__.lower()}; expected R-NEM's layout, one group "
            "per split with data sets inside"
        )
    return child


def _check_member(data: h5py.Dataset, name: str, sizes: dict[str, int], where: str) -> None:
    """Checks type, storage and shape, and notes the sizes of the axes in `sizes`."""
    if data.dtype.kind not in "buif":
        raise UserError(f"{where}: type {data.dtype}, expected bool, integers or floats")
    axes = MEMBERS[name].axes
    expected = ", ".join(axes)
    if data.ndim != len(axes):
        raise UserError(f"{where}: shape {data.shape}, expected ({expected}); {_IMPORT}")
    for axis, size in zip(axes, data.shape):
        if size == 0:
            raise UserError(f"{where}: shape {data.shape} holds nothing, expected ({expected}) with at least one each")
        known = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
        if size != known:
            raise UserError(f"{where}: shape {data.shape}, expected ({expected}) with {axis} = {known}")
        if size > _LIMITS.get(axis, size) or (axis == "C" and size == 2):
            swapped = ": are frames and sequences swapped?" if axis == "T" else ""
            raise UserError(
                f"{where}: shape {data.shape}, of which {axis} = {size} is not supported "
                f"(at most {_LIMITS[axis]}; 1 or 3 channels){swapped}; {_IMPORT}"
            )
    check_storage(data, where)


def check_storage(data: h5py.Dataset, where: str) -> None:
    """Checks that reading data takes bounded memory: a small damaged file could otherwise use all of it.

    Args:
      data: in a file that is open for reading.
      where: file and name, the beginning of an error message.

    Raises:
      UserError: the data lie in another file, are compressed by filters without bounds, or declare a size far beyond
        what is stored.
    """
    if data.is_virtual or data.external:
        raise UserError(f"{where}: its data lie in another file; copy the data into this one")
    chunk_bytes = math.prod(data.chunks or (1,)) * data.dtype.itemsize
    if chunk_bytes > _MAX_CHUNK_BYTES:
        raise UserError(
            f"{where}: stored in chunks of {chunk_bytes / 2**20:.0f} MiB, at most "
            f"{_MAX_CHUNK_BYTES // 2**20} are read; store it in smaller chunks"
        )
    file_bytes = data.file.id.get_filesize()
    stored = min(data.id.get_storage_size(), file_bytes)
    if data.size * data.dtype.itemsize > _MAX_RATIO * stored:
        raise UserError(
            f"{where}: declares {data.size * data.dtype.itemsize} bytes and stores {stored}; the file is "
            "unfinished or damaged, make it again"
        )
    packing = data.id.get_create_plist()
    filters = [packing.get_filter(number)[0] for number in range(packing.get_nfilters())]
    packers = [number for number in filters if number in _PACKERS]
    if not _FILTERS.issuperset(filters) or len(set(filters)) < len(filters) or len(packers) > 1:
        raise UserError(
            f"{where}: packed by other filters than gzip or lzf, shuffle and fletcher32, or twice; store "
            "it anew, for instance with h5repack -f GZIP=1"
        )
    if packers:
        unpacks_to_more, trusted = _PACKERS[packers[0]]
        left_out = 1 << filters.index(packers[0])  # the bit that marks chunks stored uncompressed
        chunks: list[Any] = []
        data.id.chunk_iter(chunks.append)
        for chunk in chunks:
            # HDF5 unpacks a whole chunk, however far it exceeds the declared size.
            if (
                chunk.size > trusted
                and not chunk.filter_mask & left_out
                and (
                    chunk.byte_offset + chunk.size > file_bytes
                    or unpacks_to_more(data.id.read_direct_chunk(chunk.chunk_offset)[1], chunk_bytes)
                )
            ):
                raise UserError(
                    f"{where}: a compressed chunk holds more than the {chunk_bytes} bytes it declares; the "
                    "file is damaged, make or copy it again"
                )


def _inflates_to_more(data: bytes, size: int) -> bool:
    return len(zlib.decompressobj().decompress(data, size + 1)) > size


def _lzf_unpacks_to_more(data: bytes, size: int) -> bool:
    """Adds up the lengths in an LZF stream: literal runs of up to 32 bytes, and references to earlier bytes."""
    at = 0
    while at + 1 < len(data) and size >= -_LZF_SURPLUS:
        control = data[at]
        length = control >> 5
        if length == 0:
            size -= control + 1
            at += control + 2
        elif length < 7:
            size -= length + 2
            at += 2
        else:
            size -= data[at + 1] + 9
            at += 3
    return size < -_LZF_SURPLUS


# Compressing filters: a test whether a chunk unpacks to more than a size, and a compressed size too small to need it.
_PACKERS = {h5py.h5z.FILTER_DEFLATE: (_inflates_to_more, 2**18), h5py.h5z.FILTER_LZF: (_lzf_unpacks_to_more, 2**17)}
_LZF_SURPLUS = 3 * 264  # the most bytes that a four-byte checksum after the stream could be misread as


def _number(file: h5py.File, path: str, name: str, expected: str, low: float, high: float) -> float | None:
    """Returns an attribute of the file, None if it is missing. Raises: UserError: not a number from low to high."""
    if name not in file.attrs:
        return None
    # Only numbers are read: HDF5 can hang on text in a damaged file.
    attribute = file.attrs.get_id(name)
    is_number = attribute.dtype.kind in "iuf" and attribute.shape == ()
    value = file.attrs[name].item() if is_number else None
    if value is None or not low <= value <= high:
        raise UserError(f"{path}: attribute {name} is {'no number' if value is None else value}, expected {expected}")
    return value


def _box(file: h5py.File, path: str) -> float:
    box = _number(file, path, "box", "the side of the box, a positive number", 1e-3, 1e6)
    return DEFAULT_BOX if box is None else float(box)


def text_attribute(file: h5py.File, name: str) -> str:
    """The text of an attribute that was written as bytes of fixed length, "" if there is none.

    Attributes of other types are not read: HDF5 can hang on them in a damaged file.
    """
    if name not in file.attrs or file.attrs.get_id(name).dtype.kind != "S" or file.attrs.get_id(name).shape:
        return ""
    return bytes(file.attrs[name]).decode()


def _objects(file: h5py.File, path: str, group: h5py.Group, sizes: Mapping[str, int]) -> str:
    """Which members of a split tell where objects are, a key of `OBJECTS`; "" if none does.

    For a file without the attribute (R-NEM's, older ones of ours) its members and the size of its frames decide.
    """
    if "objects" not in file.attrs:
        if all(name in group for name in OBJECTS["discs"]) and sizes["H"] == sizes["W"] == _DISCS_SIDE:
            return "discs"
        return "boxes" if "coords" in group else ""
    stated = text_attribute(file, "objects")
    if stated not in OBJECTS:
        raise UserError(
            f"{path}: attribute objects is {stated or 'no text of fixed length'!r}, expected "
            f"{' or '.join(OBJECTS)}, written as np.bytes_"
        )
    return stated if all(name in group for name in OBJECTS[stated]) else ""


def _white(file: h5py.File, path: str, features: h5py.Dataset) -> int:
    """Returns the value of a fully lit pixel."""
    expected = "the value of a fully lit pixel, 1 or 255"
    stated = _number(file, path, "white", expected, 1, 255)
    if stated not in (None, 1, 255):
        raise UserError(f"{path}: attribute white is {stated}, expected {expected}")
    if features.dtype.kind not in "iu":
        if stated == 255:
            raise UserError(
                f"{path}: attribute white is 255 and {features.name[1:]} holds {features.dtype}, in which "
                "a lit pixel is 1; correct the attribute or the data"
            )
        return 1
    if stated is not None:
        return int(stated)
    status = os.stat(path)
    key = (os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _FOUND_WHITE:
        _FOUND_WHITE[key] = (
            255
            if any(
                _exceeds_one(file[split]["features"], f"{path}: {split}/features")
                for split in SPLITS
                if _holds_integers(file, split)
            )
            else 1
        )
    return _FOUND_WHITE[key]


_FOUND_WHITE: dict[tuple, int] = {}  # of files that do not state it, so that each is read at most once for it


def _holds_integers(file: h5py.File, split: str) -> bool:
    """Whether the file itself, not another one, holds integer features of a split."""
    for parent, name in ((file, split), (file.get(split), "features")):
        if not isinstance(parent, h5py.Group) or not isinstance(parent.get(name, getlink=True), h5py.HardLink):
            return False
    features = file[split]["features"]
    return isinstance(features, h5py.Dataset) and features.dtype.kind in "iu" and features.ndim == 5


def _exceeds_one(features: h5py.Dataset, where: str) -> bool:
    """Whether any value is above 1: then integers are 0..255, otherwise 0 and 1."""
    check_storage(features, where)
    n_frames, n_sequences = features.shape[:2]
    frame = math.prod(features.shape[2:]) * features.dtype.itemsize
    step = features.chunks[1] if features.chunks else CHUNK_SEQUENCES
    step = min(max(step, 16), max(_BLOCK_BYTES // max(n_frames * frame, 1), 1))
    frames = max(_BLOCK_BYTES // max(step * frame, 1), 1)
    large = features.nbytes > _SILENT_BYTES
    with progress(n_sequences, f"{where}: range of values") if large else contextlib.nullcontext(int) as advance:
        for first in range(0, n_sequences, step):
            for start in range(0, n_frames, frames):
                try:
                    part = features[start : start + frames, first : first + step]
                except (OSError, RuntimeError) as error:
                    raise unreadable(
                        where,
                        error,
                        f"sequences from {first} on cannot be read ({error})",
                        "the file is damaged, make or copy it again",
                    ) from None
                if part.max(initial=0) > 1:
                    return True
            advance(min(step, n_sequences - first))
    return False
