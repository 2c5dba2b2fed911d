"""The file of predictions: a model's inferences and predictions on a data split, and the truth, for use with NumPy.

HDF5, sequences first. Letters: S sequences, M samples, T frames, N slots, K particles, D numbers of `what`, n the most
true objects, H x W(, C) the frame as the model sees it, A heads, R rows of attention.

Group `rollout`: M samples per sequence, one particle each, frames from `first_generated` on predicted.
Group `inference`: one pass of K particles over all frames, nothing predicted. Group `truth`: from the data file.
The file's attributes are those of `About`.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, get_origin

import attrs
import h5py
import numpy as np

from data_gen.errors import UserError
from data_gen.files import Kind
from data_gen.hdf5 import Damaged, check_storage, open_file, text_attribute, unreadable
from data_gen.writer import NewFile
from sqair.config import from_flags, model_name, to_flags

FORMAT = "r-sqair predictions 2"


def _is_predictions(path: str | os.PathLike) -> bool:
    try:
        with open_file(path) as file:
            return text_attribute(file, "format").startswith(FORMAT.rstrip("0123456789"))
    except (Damaged, RuntimeError, KeyError, ValueError):
        return False


PREDICTIONS = Kind("a file of predictions", _is_predictions)


class Member(NamedTuple):
    """Axes, one character each (`C` only in colour), type, whether every file has it, and the highest value."""

    axes: str
    dtype: type
    always: bool = True
    highest: float = math.inf


MEMBERS = {
    "rollout/what": Member("SMTND", np.float32),  # latents; 0 where the slot is empty
    "rollout/where": Member("SMTN4", np.float32),  # logits (sx, sy, tx, ty); 0 where the slot is empty
    "rollout/box": Member("SMTN4", np.float32, False),  # of what it draws: top, left, height, width in pixels;
    "rollout/centre": Member("SMTN2", np.float32, False),  # (row, column); NaN where the slot is empty or black
    "rollout/presence": Member("SMTN", np.uint8, highest=1),
    "rollout/object_id": Member("SMTN", np.int16),  # -1 where the slot is empty
    "rollout/data_ll": Member("SMT", np.float32),  # log p(x|z), nats per frame
    "rollout/relational_ll": Member("SMT", np.float32, False),  # its sum over the pixels of colliding objects
    "rollout/object_ll": Member("SMTn", np.float32, False),  # its sum over the visible pixels of each true object
    "rollout/segmentation": Member("SMTHW", np.uint8),  # slot + 1 that explains the pixel, 0 none
    "rollout/log_weights": Member("SMK", np.float32),  # of the inferred frames alone, nats
    "rollout/particle": Member("SM", np.int32),  # the one drawn by them
    "rollout/canvas": Member("SMTHWC", np.uint8, False),  # mean of p(x|z), clipped, 255 is white
    "rollout/attention": Member("SMTARR", np.float16, False),  # of the relation, see relational.Relations
    "inference/log_weights": Member("SK", np.float32),  # summed over the frames, nats
    "inference/data_ll": Member("SKT", np.float32),
    "inference/log_p": Member("SKT", np.float32),  # of the latents, by the prior
    "inference/log_q": Member("SKT", np.float32),  # of the latents, by the posterior; KL = log q - log p
    "inference/count": Member("SKT", np.uint8),  # objects
    "truth/frames": Member("STHWC", np.uint8),  # 255 is white
    "truth/count": Member("ST", np.int16, highest=255),  # visible objects; -1 where unknown
    "truth/groups": Member("STHW", np.uint8, False),  # 0 background, 1.. object
    "truth/collisions": Member("STHW", np.bool_, False),  # visible pixels of colliding objects
    "truth/centre": Member("STn2", np.float32, False),  # (row, column) in pixels; NaN: no such object
    "truth/box": Member("STn4", np.float32, False),  # top, left, height, width in pixels; NaN: no such object
    "truth/pixels": Member("STn", np.uint16, False),  # visible pixels of each object
}

_CHUNK_BYTES = 2**20
# Bounds on what a file may declare: large members are read one sequence at a time, all others in one piece.
_BY_SEQUENCE = frozenset("HDA")
_MAX_BYTES = {True: 64 * 2**20, False: 256 * 2**20}


def data_set_name(data: str | os.PathLike, slots: int, trained_slots: int) -> str:
    """A data file's name, with the number of slots where it is not that of training."""
    name = pathlib.Path(data).stem
    return name if slots == trained_slots else f"{name}, {slots} slots"


@attrs.frozen(kw_only=True)
class About:
    """Where predictions come from.

    Attributes:
      run, checkpoint, step: run folder, checkpoint and the training step it is of.
      flags: all flags of the run, as in its flags.json but with the slots and particles used here.
      trained_slots: N in training.
      data, split: data file and its split.
      checkpoint_fingerprint, data_fingerprint: SHA-256 of the checkpoint's files and the data file; "" in older files.
      first_generated: index of the first frame that is predicted; T if none is.
      settings: the command's options.
      notes: what is missing, and why.
      versions: of the packages.
    """

    run: str
    checkpoint: str
    step: int
    flags: Mapping[str, Any]
    trained_slots: int
    data: str
    split: str
    first_generated: int
    settings: Mapping[str, Any]
    notes: list[str]
    versions: Mapping[str, Any]
    checkpoint_fingerprint: str = ""
    data_fingerprint: str = ""

    @property
    def model(self) -> str:
        """See `sqair.config.model_name`."""
        return model_name(self.flags["relation"])

    @property
    def seed(self) -> int:
        """The training's seed."""
        return self.flags["seed"]

    @property
    def slots(self) -> int:
        """N."""
        return self.flags["n_steps_per_image"]

    @property
    def data_set(self) -> str:
        """See `data_set_name`."""
        return data_set_name(self.data, self.slots, self.trained_slots)


class Writer:
    """Writes to an open HDF5 file, some sequences, samples and frames at a time."""

    def __init__(self, file: NewFile, about: About, sizes: Mapping[str, int], at_once: Mapping[str, int]):
        """Args: file: empty. about: see there. sizes: S, M and T. at_once: the most of each that a `write` has."""
        self._file, self._sizes, self._at_once = file, sizes, at_once
        for name, value in {"format": FORMAT, **attrs.asdict(about, recurse=False)}.items():
            text = value if isinstance(value, str) else json.dumps(value, default=list)
            file.attrs[name] = np.bytes_(text.encode())

    def write(self, members: Mapping[str, np.ndarray], place: Mapping[str, int]) -> None:
        """Writes a part of some members: member -> array; place: where it begins along S, M and T.

        Raises:
          OSError: the file cannot be written, for instance because the disc is full.
        """
        for name, array in members.items():
            array = np.asarray(array, MEMBERS[name].dtype)
            axes = MEMBERS[name].axes
            axes = axes if len(axes) == array.ndim else axes.replace("C", "")
            if name not in self._file:
                self._create(name, array, axes)
            self._file[name][
                tuple(
                    slice(place[axis], place[axis] + size) if axis in place else slice(None)
                    for axis, size in zip(axes, array.shape)
                )
            ] = array
        self._file.check()

    def _create(self, name: str, array: np.ndarray, axes: str) -> None:
        shape = tuple(self._sizes.get(axis, size) for axis, size in zip(axes, array.shape))
        # Chunks that divide what is written at once are compressed once, when they are full.
        chunk = [min(self._at_once.get(axis, size), size) for axis, size in zip(axes, shape)]
        batch, row = self._at_once["S"], math.prod(chunk[1:]) * array.itemsize
        chunk[0] = min(
            self._sizes["S"],
            max(d for d in range(1, batch + 1) if batch % d == 0 and (d == 1 or d * row <= _CHUNK_BYTES)),
        )
        self._file.create_dataset(
            name,
            shape,
            array.dtype,
            chunks=tuple(chunk),
            compression="gzip",
            compression_opts=1,
            shuffle=array.itemsize > 1,
        )


class Stored:
    """A member of a file. Slicing it reads an array; a `UserError` says that this part of the file is damaged."""

    def __init__(self, path: str, name: str, data: h5py.Dataset):
        """Args: path, name: of the file and the member. data: what the file holds."""
        self._where, self._member, self._data = f"{path}: {name}", MEMBERS[name], data
        self.shape, self.dtype = data.shape, data.dtype

    def __getitem__(self, where: Any) -> np.ndarray:
        try:
            values = self._data[where]
        except (OSError, RuntimeError) as error:
            raise unreadable(
                self._where, error, f"cannot be read ({error})", "make it again with eval.predict"
            ) from None
        if np.size(values) and np.max(values) > self._member.highest:
            raise UserError(
                f"{self._where} has values up to {np.max(values)}, at most {self._member.highest} are "
                "possible; make it again with eval.predict"
            )
        return values


class Predictions:
    """A file of predictions, open for reading; a context manager.

    Attributes:
      path: of the file.
      about: `About`.
      sizes: axis letter -> size, for S, M, T, N, K, H, W.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a file.

        Raises:
          UserError: the file is missing or not a complete file of predictions.
        """
        self.path = os.fspath(path)
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such file; make it with `python -m eval.predict --out {path} ...`")
        self._file = open_file(path, "make it again with eval.predict")
        try:
            self.about = self._about()
            self.sizes: dict[str, int] = {}
            for name, member in MEMBERS.items():
                self._check(name, member)
            if not 1 <= self.about.first_generated <= self.sizes["T"]:
                raise ValueError(f"attribute first_generated is {self.about.first_generated}")
        except (OSError, RuntimeError, LookupError, ValueError, TypeError, OverflowError) as error:
            self._file.close()
            raise UserError(f"{self.path}: damaged ({error}); make it again with eval.predict") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def __getitem__(self, name: str) -> Stored:
        """A member, to be sliced: `predictions["rollout/data_ll"][:]`."""
        if name not in self._file:
            raise UserError(
                f"{self.path}: no member {name}; make the file again with eval.predict"
                + (" --canvases" if name == "rollout/canvas" else "")
            )
        return Stored(self.path, name, self._file[name])

    def _about(self) -> About:
        if self._attribute("format") != FORMAT:
            raise UserError(f"{self.path}: not a file of predictions ({FORMAT}); make it with eval.predict")
        about: dict[str, Any] = {}
        for field in attrs.fields(About):
            text = self._attribute(field.name)
            kind: Any = get_origin(field.type) or field.type
            about[field.name] = text if kind is str else json.loads(text)
            if not isinstance(about[field.name], kind):
                raise ValueError(f"attribute {field.name} is {text}")
        try:
            return About(**about | {"flags": to_flags(from_flags(about["flags"])[0])})
        except UserError as error:
            raise UserError(f"{self.path}: {error}; make it again with eval.predict") from None

    def _attribute(self, name: str) -> str:
        return text_attribute(self._file, name)

    def _check(self, name: str, member: Member) -> None:
        if name not in self._file:
            if member.always:
                raise UserError(f"{self.path}: no member {name}; make it again with eval.predict")
            return
        data = self._file[name]
        if not isinstance(data, h5py.Dataset) or data.dtype != member.dtype:
            raise UserError(
                f"{self.path}: {name} is not a data set of {np.dtype(member.dtype)}; make it again with eval.predict"
            )
        check_storage(data, f"{self.path}: {name}")
        by_sequence = not _BY_SEQUENCE.isdisjoint(member.axes)
        n_bytes = data.nbytes // max(len(data), 1) if by_sequence and data.ndim else data.nbytes
        if not data.size or n_bytes > _MAX_BYTES[by_sequence]:
            raise UserError(
                f"{self.path}: {name} of {n_bytes / 2**20:.0f} MiB{' per sequence' * by_sequence}, "
                f"expected at least one value and at most {_MAX_BYTES[by_sequence] // 2**20} MiB; predict "
                "fewer sequences or samples"
            )
        shape = data.shape
        axes = member.axes if len(shape) == len(member.axes) else member.axes.replace("C", "")
        expected = tuple(int(a) if a.isdigit() else self.sizes.setdefault(a, size) for a, size in zip(axes, shape))
        if len(shape) != len(axes) or shape != expected:
            raise UserError(
                f"{self.path}: {name} has shape {shape}, expected {', '.join(member.axes)} = {expected}; "
                "make it again with eval.predict"
            )
