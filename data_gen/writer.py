"""Writes the HDF5 files of sequences in compressed chunks, with one thread per core; a file appears when complete."""

import collections
import concurrent.futures
import contextlib
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import attrs
import h5py
import numpy as np

from data_gen.console import n_cores, progress
from data_gen.errors import UserError
from data_gen.files import Kind, output_path
from data_gen.hdf5 import CHUNK_FRAMES, CHUNK_SEQUENCES, DATA_SET, MEMBERS, SPLITS

BLOCK = 250  # sequences made at once, a multiple of CHUNK_SEQUENCES; each block has its own seed


class Encoded(NamedTuple):
    """Consecutive sequences of one member as compressed HDF5 chunks."""

    shape: tuple[int, ...]  # of the whole member
    chunk: tuple[int, ...]
    dtype: np.dtype
    pieces: list[tuple[tuple[int, ...], bytes]]  # offset inside the block, compressed chunk


def encode(name: str, block: np.ndarray, n_sequences: int, level: int) -> Encoded:
    """Compresses a block of one member. Threads can do this in parallel, which HDF5's own filters cannot.

    Args:
      name: member, a key of `MEMBERS`.
      block: consecutive sequences, with the member's axes.
      n_sequences: S of the whole split.
      level: of gzip compression, 0..9.

    Returns:
      The block as chunks of at most `CHUNK_FRAMES` frames and `CHUNK_SEQUENCES` sequences.
    """
    axes = MEMBERS[name].axes
    shape = tuple(n_sequences if axis == "S" else size for axis, size in zip(axes, block.shape))
    limits = {"T": CHUNK_FRAMES, "S": CHUNK_SEQUENCES}
    chunk = tuple(min(size, limits.get(axis, size)) for axis, size in zip(axes, shape))
    pieces = []
    for number in np.ndindex(*(math.ceil(size / step) for size, step in zip(block.shape, chunk))):
        offset = tuple(i * step for i, step in zip(number, chunk))
        piece = block[tuple(slice(start, start + step) for start, step in zip(offset, chunk))]
        # HDF5 stores chunks at the edges in full size.
        piece = np.pad(piece, [(0, step - size) for step, size in zip(chunk, piece.shape)])
        pieces.append((offset, zlib.compress(piece.tobytes(), level)))
    return Encoded(shape, chunk, block.dtype, pieces)


class _Disc(io.FileIO):
    """The file beneath an HDF5 file. It keeps the first error and discards what is written after it.

    HDF5 must not see the error: it loses errors raised while Python frees its objects, and crashes on closing.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self.error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return self.tell() if self.error else super().truncate(size)
        except OSError as error:
            self.error = error
            return self.tell()


class NewFile(h5py.File):
    """An HDF5 file that is being written."""

    def __init__(self, disc: _Disc):
        super().__init__(disc, "w")
        self._disc = disc

    def check(self) -> None:
        """Raises: OSError: something could not be written, for instance because the disc is full."""
        if self._disc.error:
            raise self._disc.error


@contextlib.contextmanager
def new_file(
    path: str | os.PathLike, kind: Kind = DATA_SET, inputs: Iterable[str | os.PathLike] = ()
) -> Iterator[NewFile]:
    """Opens a new HDF5 file for writing, which gets its name when it is complete (`output_path`).

    Args:
      path, kind, inputs: see `files.check_output`.

    Raises:
      UserError: see `files.check_output`.
      OSError: it cannot be written, for instance because the disc is full.
    """
    with output_path(path, kind, inputs) as temporary, _Disc(temporary, "w+") as disc:
        with NewFile(disc) as file:
            yield file
        if disc.error:
            raise disc.error


def write_split(
    file: NewFile,
    split: str,
    n_sequences: int,
    blocks: Iterable[tuple[int, Mapping[str, Encoded]]],
    advance: Callable[[int], Any] = lambda n: None,
) -> None:
    """Writes one split from blocks of sequences, in order; only one block is held at a time.

    Args:
      file: open for writing.
      split: name of the group.
      n_sequences: S.
      blocks: (number of sequences, member name -> `encode`d block); every block but the last holds a multiple of
        `CHUNK_SEQUENCES` sequences.
      advance: called with the number of sequences after each block.
    """
    group = file.create_group(split)
    first = 0
    for size, members in blocks:
        for name, encoded in members.items():
            if name not in group:
                group.create_dataset(name, encoded.shape, encoded.dtype, chunks=encoded.chunk, compression="gzip")
            sequence_axis = MEMBERS[name].axes.index("S")
            for offset, data in encoded.pieces:
                place = tuple(o + first * (axis == sequence_axis) for axis, o in enumerate(offset))
                group[name].id.write_direct_chunk(place, data)
        file.check()
        first += size
        advance(size)
    if first != n_sequences:
        raise ValueError(f"{split}: {first} sequences came, {n_sequences} were announced")


def _generated_blocks(
    make_block: Callable[[str, int, np.random.Generator], Mapping[str, np.ndarray]],
    split: str,
    n_sequences: int,
    seed: int,
    level: int,
) -> Generator[tuple[int, Mapping[str, Encoded]], None, None]:
    """Yields the encoded blocks of a split in order, computed by one thread per core."""

    def work(number: int) -> tuple[int, Mapping[str, Encoded]]:
        size = min(BLOCK, n_sequences - number * BLOCK)
        # A seed for every block: the data do not depend on how many threads there are.
        block = make_block(split, size, np.random.default_rng([seed, SPLITS.index(split), number]))
        return size, {name: encode(name, array, n_sequences, level) for name, array in block.items()}

    # NumPy and zlib release Python's lock, so threads are enough.
    n_threads = n_cores()
    pool = concurrent.futures.ThreadPoolExecutor(n_threads)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for number in range(math.ceil(n_sequences / BLOCK)):
            waiting.append(pool.submit(work, number))
            if len(waiting) > n_threads:  # finished blocks must not pile up in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def generate(
    path: str | os.PathLike,
    settings: Any,
    level: int,
    make_block: Callable[[str, int, np.random.Generator], Mapping[str, np.ndarray]],
    white: int = 1,
    objects: str | None = None,
    **attributes: Any,
) -> None:
    """Generates a data set in blocks of `BLOCK` sequences; the file appears only when it is complete.

    The same settings give the same data, however many threads there are.

    Args:
      path: the HDF5 file.
      settings: attrs object with the sizes training, validation and test, and the seed; kept as JSON in the file.
      level: of gzip compression, 0..9.
      make_block: (split, number of sequences, source of randomness) -> member name -> array.
      white: value of a fully lit pixel of features, 1 or 255; an attribute of the file.
      objects: a key of `OBJECTS`, an attribute of the file; None if the data do not tell where objects are.
      **attributes: further attributes of the file.

    Raises:
      UserError: every split is empty.
    """
    sizes = {split: getattr(settings, split) for split in SPLITS if getattr(settings, split)}
    if not sizes:
        raise UserError("--training, --validation and --test are all 0; ask for at least one sequence")
    with new_file(path) as file:
        file.attrs.update(settings=json.dumps(attrs.asdict(settings)), white=white, **attributes)
        if objects:
            file.attrs["objects"] = np.bytes_(objects)
        for split, n_sequences in sizes.items():
            blocks = _generated_blocks(make_block, split, n_sequences, settings.seed, level)
            with contextlib.closing(blocks), progress(n_sequences, split) as advance:
                write_split(file, split, n_sequences, blocks, advance)
