"""The file of predictions: what a model made of a data split, and the truth beside it, for numpy to look at.

HDF5, sequences first. Letters: S sequences, M samples, T frames, N slots, K particles, D numbers of `what`, n the most
true objects, H x W(, C) the frame as the model sees it, A heads, R rows of attention.

Group `rollout`: M samples a sequence, one particle each, frames from `first_generated` on predicted.
Group `inference`: one pass of K particles over all frames, nothing predicted. Group `truth`: from the data file.
The file's attributes are those of `About`.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import attrs
import h5py
import numpy as np

from data_gen.command_line import UserError
from data_gen.hdf5 import NewFile

FORMAT = "r-sqair predictions 1"


class Member(NamedTuple):
    """Axes, one character each (`C` only in colour), type, and whether every file has it."""

    axes: str
    dtype: type
    always: bool = True


MEMBERS = {
    "rollout/what": Member("SMTND", np.float32),             # latents; 0 where the slot is empty
    "rollout/where": Member("SMTN4", np.float32),            # logits (sx, sy, tx, ty); 0 where the slot is empty
    "rollout/presence": Member("SMTN", np.uint8),
    "rollout/object_id": Member("SMTN", np.int16),           # -1 where the slot is empty
    "rollout/data_ll": Member("SMT", np.float32),            # log p(x|z), nats a frame
    "rollout/relational_ll": Member("SMT", np.float32, False),   # its sum over the pixels of colliding objects
    "rollout/object_ll": Member("SMTn", np.float32, False),      # its sum over the visible pixels of each true object
    "rollout/segmentation": Member("SMTHW", np.uint8),       # slot + 1 that explains the pixel, 0 none
    "rollout/log_weights": Member("SMK", np.float32),        # of the inferred frames alone, nats
    "rollout/particle": Member("SM", np.int32),              # the one drawn by them
    "rollout/canvas": Member("SMTHWC", np.uint8, False),     # mean of p(x|z), clipped, 255 is white
    "rollout/attention": Member("SMTARR", np.float16, False),    # of the relation, see relational.Relations
    "inference/log_weights": Member("SK", np.float32),       # summed over the frames, nats
    "inference/data_ll": Member("SKT", np.float32),
    "inference/log_p": Member("SKT", np.float32),            # of the latents, by the prior
    "inference/log_q": Member("SKT", np.float32),            # of the latents, by the posterior; KL = log q - log p
    "inference/count": Member("SKT", np.uint8),              # objects
    "truth/frames": Member("STHWC", np.uint8),               # 255 is white
    "truth/count": Member("ST", np.int16),                   # visible objects; -1 where unknown
    "truth/groups": Member("STHW", np.uint8, False),         # 0 background, 1.. object
    "truth/collisions": Member("STHW", np.bool_, False),     # visible pixels of colliding objects
    "truth/centre": Member("STn2", np.float32, False),       # (row, column) in pixels; NaN: no such object
    "truth/box": Member("STn4", np.float32, False),          # top, left, height, width in pixels; NaN: no such object
    "truth/pixels": Member("STn", np.uint16, False),         # visible pixels of each object
}

_CHUNK_BYTES = 2**20


@attrs.frozen(kw_only=True)
class About:
    """Where predictions come from.

    Attributes:
      run, checkpoint, step: run folder, checkpoint and the training step it is of.
      flags: all flags of the run, as in its flags.json but with the slots and particles used here.
      trained_slots: N in training.
      data, split: data file and its split.
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

    @property
    def model(self) -> str:
        """sqair, rsqair_in, rsqair_rmc or rsqair_rmc_slots."""
        relation = self.flags["relation"]
        return "sqair" if relation == "none" else f"rsqair_{relation}"

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.flags["seed"]

    @property
    def slots(self) -> int:
        """N."""
        return self.flags["n_steps_per_image"]

    @property
    def data_set(self) -> str:
        """The data file's name, with the number of slots where it is not that of training."""
        name = pathlib.Path(self.data).stem
        return name if self.slots == self.trained_slots else f"{name}, {self.slots} slots"


class Writer:
    """Fills an open HDF5 file, a batch of sequences at a time."""

    def __init__(self, file: NewFile, about: About, n_sequences: int, batch_size: int):
        """Args: file: empty. about: see there. n_sequences: S. batch_size: the most sequences of a `write`."""
        self._file, self._n_sequences, self._batch_size = file, n_sequences, batch_size
        self._first = 0
        file.attrs["format"] = FORMAT
        for name, value in attrs.asdict(about, recurse=False).items():
            file.attrs[name] = value if isinstance(value, (str, int)) else json.dumps(value, default=list)

    def write(self, members: Mapping[str, np.ndarray]) -> None:
        """Appends sequences: member -> array, sequences first; the same members in every call.

        Raises:
          OSError: the file cannot be written, for instance because the disc is full.
        """
        for name, array in members.items():
            array = np.asarray(array, MEMBERS[name].dtype)
            if name not in self._file:
                self._create(name, array)
            self._file[name][self._first:self._first + len(array)] = array
        self._first += len(array)
        self._file.check()

    def _create(self, name: str, array: np.ndarray) -> None:
        row = math.prod(array.shape[1:]) * array.itemsize
        # Chunks that divide the batch are compressed once, when they are full.
        chunk = max(d for d in range(1, self._batch_size + 1)
                    if self._batch_size % d == 0 and (d == 1 or d * row <= _CHUNK_BYTES))
        self._file.create_dataset(name, (self._n_sequences, *array.shape[1:]), array.dtype,
                                  chunks=(min(chunk, self._n_sequences), *array.shape[1:]),
                                  compression="gzip", compression_opts=1, shuffle=array.itemsize > 1)


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
          UserError: it is not there or no whole file of predictions.
        """
        self.path = os.fspath(path)
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such file; make it with `python -m eval.predict --out {path} ...`")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise UserError(f"{path}: cannot be read as HDF5 ({error}); make it again with eval.predict") from None
        try:
            self.about, self.sizes = self._about(), {}
            for name, member in MEMBERS.items():
                self._check(name, member)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def __getitem__(self, name: str) -> h5py.Dataset:
        """A member, to be sliced: `predictions["rollout/data_ll"][:]`."""
        if name not in self._file:
            raise UserError(f"{self.path}: no member {name}; make the file again with eval.predict"
                            + (" --canvases" if name == "rollout/canvas" else ""))
        return self._file[name]

    def _about(self) -> About:
        values = dict(self._file.attrs)
        if values.pop("format", None) != FORMAT:
            raise UserError(f"{self.path}: not a file of predictions ({FORMAT}); make it with eval.predict")
        try:
            fields = {field.name: field.type for field in attrs.fields(About)}
            return About(**{name: kind(values[name]) if kind in (str, int) else json.loads(values[name])
                            for name, kind in fields.items()})
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{self.path}: damaged attributes ({error}); make it again with eval.predict") from None

    def _check(self, name: str, member: Member) -> None:
        if name not in self._file:
            if member.always:
                raise UserError(f"{self.path}: no member {name}; make it again with eval.predict")
            return
        shape = self._file[name].shape
        axes = member.axes if len(shape) == len(member.axes) else member.axes.replace("C", "")
        expected = tuple(int(a) if a.isdigit() else self.sizes.setdefault(a, size) for a, size in zip(axes, shape))
        if len(shape) != len(axes) or shape != expected:
            raise UserError(f"{self.path}: {name} has shape {shape}, expected {', '.join(member.axes)} = {expected}; "
                            "make it again with eval.predict")
