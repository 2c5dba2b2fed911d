"""Reads the moving-MNIST pickles of the SQAIR release (Python 2, protocol 2) without trusting them.

A pickle is a program that may call anything. Here it may only name NumPy's array, dtype and scalar, and even these
names stand for inert records: no function of NumPy, or of anything else, is applied to the contents until the records
have been checked.
"""

import io
import math
import os
import pathlib
import pickle
import pickletools
import re
from typing import Any

import numpy as np

from data_gen.errors import UserError

MAX_BYTES = 8 * 2**30
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
AXES = {"imgs": "TSHW", "labels": "SN", "nums": "1SK", "coords": "TSN4"}


class _Record:
    """An inert record of the arguments with which the pickle would construct an object."""

    def __init__(self, *arguments: Any):
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Record):
    pass


class _Dtype(_Record):
    pass


class _Text(_Record):
    """`_codecs.encode(text, "latin1")`, which is how Python 3 writes bytes for Python 2; encoded only when needed."""


_NAMES = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _Text}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _NAMES |= {(_module, "_reconstruct"): _Array, (_module, "scalar"): _Array}


class _Source(io.BufferedReader):
    """A reader that never allocates more bytes than the file has."""

    def __init__(self, path: pathlib.Path):
        super().__init__(io.FileIO(path))
        self._left = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self._left:
            raise EOFError("an object is longer than the file")
        self._left -= size
        return super().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self._left -= len(line)
        return line


# The unpickler written in Python: in the one written in C a short file can ask for a memo of any size. Protocol 5 is
# left out for the same reason: its byte arrays are allocated before they are read.
class _Unpickler(pickle._Unpickler):
    dispatch = {ord(op.code): pickle._Unpickler.dispatch[ord(op.code)] for op in pickletools.opcodes if op.proto < 5}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {f'{module}.{name}'!r}, which a data set has no use for") from None


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _array(record: Any) -> np.ndarray:
    """Builds the array that a record describes."""
    if not (isinstance(record, _Array) and isinstance(record.state, tuple) and len(record.state) == 5):
        raise ValueError("not an array")
    _, shape, dtype, fortran, data = record.state
    data = data.arguments[0].encode("latin1") if isinstance(data, _Text) else data
    if not (isinstance(dtype, _Dtype) and isinstance(dtype.state, tuple) and isinstance(data, bytes)):
        raise ValueError("not an array of numbers")
    code, order = _text(dtype.arguments[0]), _text(dtype.state[1])
    if not (_DTYPE.fullmatch(code) and order in ("<", ">", "|", "=")):
        raise ValueError(f"numbers of type {code!r}")
    if not (isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)):
        raise ValueError(f"shape {shape!r}")
    numbers = np.dtype(code).newbyteorder(order)
    if math.prod(shape) * numbers.itemsize != len(data):
        raise ValueError(f"shape {shape} and {len(data)} bytes")
    return np.frombuffer(data, numbers).reshape(shape, order="F" if fortran else "C")


def read_release_pickle(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads one of the release's moving-MNIST files, or one in the same form; it must fit into memory.

    Args:
      path: the pickle: a dictionary of arrays.

    Returns:
      imgs [T, S, H, W] uint8; labels [S, N]; nums [1, S, K] unary counts, 0 or 1; coords [T, S, N, 4] (y, x, height,
      width), zero for an absent digit. Other entries are left out.

    Raises:
      UserError: not such a pickle, one that would call something, damaged, or too large. Nothing in it has run.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a pickle of the SQAIR release")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES // 2**30} GiB; not a file of the SQAIR release")
    try:
        with _Source(path) as source:
            # encoding="bytes": Python 2's strings are the arrays' raw data too.
            content = _Unpickler(source, encoding="bytes").load()
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
        records = {_text(key): value for key, value in content.items()}
        missing = [name for name in AXES if name not in records]
        if missing:
            raise ValueError(f"no {', '.join(missing)}")
        arrays = {name: _array(records[name]) for name in AXES}
        _check(arrays)
        return arrays
    except PermissionError:
        raise
    # Any exception: parsers of damaged files raise exceptions of every type.
    except Exception as error:
        raise UserError(
            f"{path}: refused ({type(error).__name__}: {error}); expected a pickled dictionary of arrays "
            "imgs, labels, nums and coords, as the SQAIR release makes it"
        ) from None


def _check(arrays: dict[str, np.ndarray]) -> None:
    sizes: dict[str, int] = {}
    for name, axes in AXES.items():
        shape = arrays[name].shape
        expected = [int(a) if a.isdigit() else sizes.setdefault(a, s) for a, s in zip(axes, shape)]
        if list(shape) != expected or len(shape) != len(axes) or 0 in shape:
            raise ValueError(f"{name} of shape {shape}, expected ({', '.join(axes)}) with {sizes}")
        if arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} is not finite")
    if arrays["imgs"].dtype != np.uint8:
        raise ValueError(f"imgs of type {arrays['imgs'].dtype}, expected uint8")
    for name, highest in (("nums", 1), ("labels", 255)):
        if arrays[name].min() < 0 or arrays[name].max() > highest:
            raise ValueError(f"{name} outside 0..{highest}")
