"""Streams batches of sequences from an HDF5 file as a tf.data pipeline.

The order of the sequences depends on the file, the split, the batch size and the seed, but not on the number of
frames; batch number i is a pure function of these and i. So the whole state of the pipeline is one integer, and
`start=i` continues exactly where a run stopped, also when the curriculum has changed the number of frames.
"""

import collections
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data_gen import hdf5
from data_gen.console import progress
from data_gen.errors import UserError

WINDOW = 1024  # sequences shuffled together, so the most that are in memory; fewer of large images
_WINDOW_PIXELS = 2**24  # of one frame of each sequence
UNKNOWN_COUNT = -1


class Batch(NamedTuple):
    """T frames of B sequences."""

    observations: tf.Tensor  # [T, B, H, W], or [T, B, H, W, C] if in colour; float32 in [0, 1]
    counts: tf.Tensor  # [T, B] int32: objects that are visible in the crop; -1 where unknown


def crop_slices(height: int, width: int, crop: int | None) -> tuple[slice, slice]:
    """Returns the rows and columns of the central `crop` x `crop` pixels, 7..56 for 50 of 64; None is the whole.

    Raises:
      UserError: the crop is larger than the image.
    """
    if crop is None:
        return slice(0, height), slice(0, width)
    if not 1 <= crop <= min(height, width):
        raise UserError(f"crop {crop}: the images are {height} x {width}; choose a crop from 1 to {min(height, width)}")
    top, left = (height - crop) // 2, (width - crop) // 2
    return slice(top, top + crop), slice(left, left + crop)


def count_visible(groups: np.ndarray) -> np.ndarray:
    """Counts the distinct objects in the images: ids >= 1 that own at least one pixel.

    Args:
      groups: [..., H, W] uint8.

    Returns:
      [...] int32.
    """
    counts = np.zeros(groups.shape[:-2], np.int32)
    for owner in range(1, int(groups.max(initial=0)) + 1):
        counts += (groups == owner).any((-2, -1))
    return counts


def count_objects(members: Mapping[str, np.ndarray], groups: np.ndarray | None, n_frames: int) -> np.ndarray:
    """The numbers of objects: those visible where the data tell each pixel's owner, else those of the sequence.

    Args:
      members: from `hdf5.Split.read`.
      groups: [T, B, H, W], as far as the model sees them; None if the data have none.
      n_frames: T.

    Returns:
      [T, B] int32; -1 where unknown.
    """
    if groups is not None:
        return count_visible(groups)
    n_sequences = members["features"].shape[1]
    counts = members["nums"].sum(-1) if "nums" in members else UNKNOWN_COUNT
    return np.broadcast_to(np.asarray(counts, np.int32), (n_frames, n_sequences))


def _windows(n_sequences: int, block: int, seed: int | None, epoch: int, window: int = WINDOW) -> list[np.ndarray]:
    """Returns the order of the sequences in an epoch, in windows of about `window`.

    Blocks of sequences that are stored together are shuffled and dealt into windows; the sequences of each window
    are shuffled. Every sequence occurs once. Without a seed the order is that of the file.
    """
    blocks = np.split(np.arange(n_sequences), range(block, n_sequences, block))
    per_window = max(window // block, 1)
    if seed is None:
        return [np.concatenate(blocks[i : i + per_window]) for i in range(0, len(blocks), per_window)]
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(blocks))
    return [
        rng.permutation(np.concatenate([blocks[b] for b in order[i : i + per_window]]))
        for i in range(0, len(order), per_window)
    ]


def _read(data: hdf5.Split, sequences: np.ndarray, n_frames: int, crop: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Reads cropped features [T, B, H, W, C], as stored, and counts [T, B]; block by block, to crop early."""
    height, width, channels = data.image_shape
    rows, columns = crop_slices(height, width, crop)
    features: np.ndarray | None = None
    counts = np.empty((n_frames, len(sequences)), np.int32)
    blocks = sequences // data.block
    for block in np.unique(blocks):
        where = np.flatnonzero(blocks == block)
        part = data.read(sequences[where], n_frames)
        images = part["features"][:, :, rows, columns]
        if features is None:
            features = np.empty((n_frames, len(sequences), *images.shape[2:]), images.dtype)
        features[:, where] = images
        groups = part["groups"][:, :, rows, columns, 0] if "groups" in part else None
        counts[:, where] = count_objects(part, groups, n_frames)
    assert features is not None  # there is at least one sequence
    return features, counts


def _read_ahead(items: Iterator) -> Iterator:
    """The same items, made by a thread that is two items ahead.

    At exit Python waits for this thread. tf.data's own prefetching can hang there: its thread, inside of Python code,
    waits for the interpreter's lock, and the exiting program waits for the thread.
    """
    with ThreadPoolExecutor(1) as thread:
        ahead = collections.deque(thread.submit(next, items, None) for _ in range(2))
        while (item := ahead.popleft().result()) is not None:
            ahead.append(thread.submit(next, items, None))
            yield item


def batches(
    path: str | os.PathLike,
    split: str,
    batch_size: int,
    n_frames: int,
    crop: int | None = 50,
    seed: int = 0,
    start: int = 0,
    shuffle: bool = True,
    repeat: bool = True,
) -> tf.data.Dataset:
    """Streams batches of sequences; at most `WINDOW` sequences are in memory.

    Args:
      path: HDF5 file in R-NEM's layout.
      split: "training", "validation" or "test".
      batch_size: B.
      n_frames: T, counted from the first frame.
      crop: side of the central square that is kept, pixels; None for the whole image.
      seed: of the order of the sequences.
      start: number of the batch to begin with.
      shuffle: whether to shuffle, anew in every epoch; otherwise the order is the file's.
      repeat: whether to repeat for ever. Batches do not cross epochs: a remainder smaller than a batch is left out
        if repeating (the shapes are then fixed), and is the last, smaller batch if not.

    Returns:
      A dataset of `Batch`.

    Raises:
      UserError: the file is missing, damaged or of another layout, or is smaller than a batch while repeating. Damage
        that shows only when the data are read is raised as TensorFlow's error, which `console.run_cli` reports as a
        `UserError`.
    """
    path = os.path.abspath(path)
    with hdf5.open_split(path, split, optional=("groups", "nums")) as data:
        data.read(slice(0, 1), n_frames)
        n_sequences, channels = data.n_sequences, data.image_shape[2]
        rows, columns = crop_slices(*data.image_shape[:2], crop)
        image = (rows.stop - rows.start, columns.stop - columns.start) + ((channels,) if channels > 1 else ())
    if repeat and n_sequences < batch_size:
        raise UserError(
            f"{path}: {split} has {n_sequences} sequences, fewer than a batch of {batch_size}; use a "
            "smaller batch or make more"
        )
    per_epoch = n_sequences // batch_size if repeat else -(-n_sequences // batch_size)

    def generate() -> Iterator[Batch]:
        with hdf5.open_split(path, split, optional=("groups", "nums")) as data:
            epoch, first = divmod(start, per_epoch)
            while repeat or epoch == 0:
                yield from _epoch(data, epoch, first)
                epoch, first = epoch + 1, 0

    def _epoch(data: hdf5.Split, epoch: int, first: int) -> Iterator[Batch]:
        skip = first * batch_size
        left = min(per_epoch * batch_size, n_sequences) - skip
        pending: list[tuple[np.ndarray, np.ndarray]] = []  # read, but not yet yielded
        for window in _windows(
            n_sequences, data.block, seed if shuffle else None, epoch, min(WINDOW, _WINDOW_PIXELS // math.prod(image))
        ):
            if skip >= len(window):
                skip -= len(window)
                continue
            pending.append(_read(data, window[skip:], n_frames, crop))
            skip = 0
            features, counts = (np.concatenate(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*pending))
            begin = 0
            while left and counts.shape[1] - begin >= min(batch_size, left):
                size = min(batch_size, left)
                batch = slice(begin, begin + size)
                images = data.intensities(features[:, batch])
                yield Batch(images[..., 0] if channels == 1 else images, counts[:, batch])
                begin, left = begin + size, left - size
            pending = [(features[:, begin:].copy(), counts[:, begin:].copy())]

    size = batch_size if repeat or n_sequences % batch_size == 0 else None
    dataset = tf.data.Dataset.from_generator(
        lambda: _read_ahead(generate()),
        output_signature=Batch(
            tf.TensorSpec((n_frames, size, *image), tf.float32), tf.TensorSpec((n_frames, size), tf.int32)
        ),
    )
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # see _read_ahead
    return dataset.with_options(options)


def mean_image(
    path: str | os.PathLike, split: str = "training", n_frames: int | None = None, crop: int | None = None
) -> np.ndarray:
    """Computes the mean over frames of all sequences, the mean image (docs/spec/sqair.md, "Decoder and likelihood").

    It is read in one pass, with a block of sequences in memory.

    Args:
      path: HDF5 file.
      split: usually the training split.
      n_frames: how many frames of every sequence, from the first; None for all.
      crop: side of the central square, pixels; None for the whole image.

    Returns:
      [H, W, C] float32 in [0, 1].

    Raises:
      UserError: the file is missing, damaged or of another layout.
    """
    with hdf5.open_split(path, split) as data:
        n_frames = n_frames or data.n_frames
        rows, columns = crop_slices(*data.image_shape[:2], crop)
        total = np.zeros((), np.float64)
        with progress(data.n_sequences, "mean image") as advance:
            for first in range(0, data.n_sequences, data.block):
                block = slice(first, min(first + data.block, data.n_sequences))
                features = data.read(block, n_frames, ["features"])["features"]
                total = total + features[:, :, rows, columns].sum((0, 1), np.float64)
                advance(block.stop - first)
        return data.intensities(total / (data.n_sequences * n_frames))
