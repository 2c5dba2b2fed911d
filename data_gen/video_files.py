"""Finds videos in the user's files and folders and reads them frame by frame, with the truth stored beside them.

Arrays (.npz, .npy, HDF5 of any layout), folders of images, GIFs, and whatever video files ffmpeg reads. At most one
frame of a video is held at a time; a compressed .npz is unpacked to the disc first.
"""

import contextlib
import functools
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import h5py
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps, ImageSequence

from data_gen import hdf5
from data_gen.errors import UserError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
FILMS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
HDF5 = (".h5", ".hdf5", ".hdf")
ARRAYS = (".npz", ".npy", *HDF5)
KNOWN = (*ARRAYS, ".gif", *FILMS)

SPLIT_NAMES = {
    "training": "training",
    "train": "training",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
FRAME_NAMES = ("features", "frames", "images", "imgs", "videos", "video", "data", "x")  # looked for in this order
COUNTS = "counts"  # the one array of truth that is not a member of our layout
TRUTH = (*(name for name in hdf5.MEMBERS if name != "features"), COUNTS)

_MOST_PIXELS = 2**26  # of a frame
_CACHE_BYTES = 128 * 2**20  # of unpacked chunks of an HDF5 file


@attrs.frozen
class Video:
    """One video.

    Attributes:
      name: for messages.
      split: named by its folder, group or array; None if by none.
      frames: reads it from the first frame on: [H, W] or [H, W, C] of any type of numbers.
      count: its number of frames; slow for a film, which has to be decoded.
      truth: member, or "counts" -> function of a slice of frames; returns the member's axes of `hdf5.MEMBERS` without
        S ([1, t] for counts).
      box: side of the frame in the units of positions; None if the file does not state it.
      about: size and type, for messages; "" if they are known only after reading.
    """

    name: str
    split: str | None
    frames: Callable[[], Generator[np.ndarray, None, None]]
    count: Callable[[], int]
    truth: Mapping[str, Callable[[slice], np.ndarray]] = attrs.field(factory=dict)
    box: float | None = None
    about: str = ""


class Finder:
    """Finds videos; a context manager, which closes the files and removes what was unpacked."""

    def __init__(self, axes: str, frames_name: str, scratch: str | os.PathLike):
        """Args:
        axes: of arrays, letters of STHWC in their order; "" if there are none.
        frames_name: of the array of frames in files with several; "" to look for the usual names.
        scratch: folder in which a temporary one may be made.
        """
        self._axes, self._frames_name, self._scratch = axes, frames_name, scratch
        self._stack = contextlib.ExitStack()
        self.inputs: list[pathlib.Path] = []  # all files and folders that were looked into
        self.ignored: list[pathlib.Path] = []  # files of other kinds in folders

    def __enter__(self) -> "Finder":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def find(self, paths: Iterable[pathlib.Path]) -> list[Video]:
        """Returns the videos of files and folders, in the order given; within folders in the order of names.

        Images given one by one make one video per folder.

        Raises:
          UserError: something is not there or not readable, or there is no video at all.
        """
        videos: list[Video] = []
        loose: dict[pathlib.Path, list[pathlib.Path]] = {}
        for path in paths:
            if path.is_dir():
                found = self._folder(path, None)
                if not found:
                    raise UserError(
                        f"{path}: no frames and no videos in this folder; expected {_listed(IMAGES)} "
                        f"(frames of one video) or {_listed(KNOWN)}, in it or in folders inside it"
                    )
                videos += found
            elif not path.is_file():
                raise UserError(f"{path}: no such file or folder; name what is to be imported")
            elif path.suffix.lower() in IMAGES:
                loose.setdefault(path.parent, []).append(path)
            elif path.suffix.lower() in KNOWN:
                videos += self._file(path, None)
            else:
                raise UserError(
                    f"{path}: expected {_listed(KNOWN)} or a folder of {_listed(IMAGES)}; convert it to one of these"
                )
        for folder, images in loose.items():
            videos.append(_image_video(folder, sorted(images, key=_natural), None))
            self.inputs += images
        if not videos:
            raise UserError("--inputs: name at least one file or folder")
        return videos

    def _folder(self, path: pathlib.Path, split: str | None, above: tuple[str, ...] = ()) -> list[Video]:
        self.inputs.append(path)
        children = sorted((child for child in path.iterdir() if not child.name.startswith(".")), key=_natural)
        images = [child for child in children if child.suffix.lower() in IMAGES and child.is_file()]
        if images:
            others = [child for child in children if child.is_dir() or child.suffix.lower() in KNOWN]
            if others:
                raise UserError(
                    f"{path}: holds both frames ({images[0].name}) and {others[0].name}; expected one "
                    "video as images, or videos and folders: move the one or the other"
                )
            self.ignored += [child for child in children if child not in set(images)]
            return [_image_video(path, images, split)]
        videos = []
        for child in children:
            real = os.path.realpath(child)
            if child.is_dir() and real not in above:  # links may form a cycle
                videos += self._folder(child, SPLIT_NAMES.get(child.name.lower(), split), (*above, real))
            elif child.is_file() and child.suffix.lower() in KNOWN:
                videos += self._file(child, split)
            else:
                self.ignored.append(child)
        return videos

    def _file(self, path: pathlib.Path, split: str | None) -> list[Video]:
        self.inputs.append(path)
        suffix = path.suffix.lower()
        if suffix in ARRAYS:
            return self._array_videos(path, split)
        read, count = (_gif, _count_gif) if suffix == ".gif" else (_film, _count_film)
        return [Video(str(path), split, functools.partial(read, path), functools.partial(count, path))]

    # -----------------------------------------------------------------------------------------------------------
    # Arrays
    # -----------------------------------------------------------------------------------------------------------

    def _open_arrays(self, path: pathlib.Path) -> tuple[dict[str, Callable[[], Any]], float | None]:
        """Returns the arrays of a file, name -> function that opens it, and the attribute box."""
        with _reading(path, "arrays"):
            if path.suffix.lower() == ".npy":
                return {"": lambda: np.load(path, mmap_mode="r", allow_pickle=False)}, None
            if path.suffix.lower() == ".npz":
                archive = self._stack.enter_context(zipfile.ZipFile(path))
                entries = {
                    entry.filename.removesuffix(".npy"): entry
                    for entry in archive.infolist()
                    if entry.filename.endswith(".npy")
                }
                return {
                    name: functools.partial(self._unpack, path, archive, entry) for name, entry in entries.items()
                }, None
            file = self._stack.enter_context(
                hdf5.open_file(
                    path, "it may be damaged or of another kind", rdcc_nbytes=_CACHE_BYTES, rdcc_nslots=10_007
                )
            )
            found: dict[str, Callable[[], Any]] = {}

            def note(name: str, item: Any) -> None:  # of what the file itself holds: links are not followed
                if isinstance(item, h5py.Dataset):
                    found[name] = lambda: item

            file.visititems(note)
            is_number = "box" in file.attrs and file.attrs.get_id("box").dtype.kind in "iuf"
            return found, float(file.attrs["box"]) if is_number and not np.shape(file.attrs["box"]) else None

    def _unpack(self, path: pathlib.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
        """Unpacks an array of an .npz to the disc, where any part of it can be read."""
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(".part", ".unpacked.", self._scratch))
        if entry.file_size > shutil.disk_usage(folder).free:
            raise UserError(
                f"{path}: {entry.filename} takes {entry.file_size / 2**20:.0f} MiB when unpacked, more "
                f"than is free where --out lies; make room, or write to another disc"
            )
        with archive.open(entry) as packed, open(os.path.join(folder, "array.npy"), "wb") as file:
            shutil.copyfileobj(packed, file, 2**20)
        return np.load(file.name, mmap_mode="r", allow_pickle=False)

    def _array_videos(self, path: pathlib.Path, split: str | None) -> list[Video]:
        arrays, box = self._open_arrays(path)
        by_split: dict[str | None, dict[str, tuple[str, Callable[[], Any]]]] = {}
        for name, opener in arrays.items():
            named, rest = _split_of(name)
            by_split.setdefault(named or split, {})[rest] = (name, opener)
        if len(by_split) > 1:
            by_split.pop(None, None)  # with groups such as train and test, arrays outside of them are ignored
        videos = []
        for named, members in by_split.items():
            key = self._frames_key(path, members)
            data = _Array(path, *members[key], self._axes)
            truth = {
                rest: _Array(path, *members[rest], self._axes, rest, data.sizes)
                for rest in members
                if rest in TRUTH and rest != key
            }
            videos += [
                Video(
                    f"{path}{f': {data.name}' * bool(data.name)}{f', video {s}' * ('S' in data.axes)}",
                    named,
                    functools.partial(data.frames, s),
                    functools.partial(data.sizes.__getitem__, "T"),
                    {rest: functools.partial(array.part, s) for rest, array in truth.items()},
                    box,
                    data.about,
                )
                for s in range(data.sizes["S"])
            ]
        if not videos:
            raise UserError(f"{path}: holds no arrays; expected at least one of frames")
        return videos

    def _frames_key(self, path: pathlib.Path, members: Mapping[str, tuple[str, Any]]) -> str:
        if self._frames_name:
            chosen = [rest for rest, (name, _) in members.items() if self._frames_name in (rest, name)]
        else:
            chosen = [name for name in ("", *FRAME_NAMES) for rest in members if rest.lower() == name][:1]
            others = [rest for rest in members if rest not in TRUTH]
            chosen = chosen or (others if len(others) == 1 else [])
        if len(chosen) != 1:
            wanted = f"{self._frames_name!r}" if self._frames_name else "which holds the frames is not clear"
            names = ", ".join(name for name, _ in members.values()) or "nothing"
            raise UserError(
                f"{path}: {'no array ' * bool(self._frames_name)}{wanted}; it has {names}: name the "
                "frames' with --frames_name"
            )
        return chosen[0]

    def truth(self, paths: Iterable[pathlib.Path], n_videos: int) -> list[dict[str, Callable[[slice], np.ndarray]]]:
        """Opens arrays of truth in separate files.

        Args:
          paths: .npz or HDF5 with arrays named as members or "counts", or .npy named so themselves (groups.npy).
          n_videos: S, of all inputs in their order.

        Returns:
          For each video, name -> function of a slice of frames; see `Video`.

        Raises:
          UserError: a file is not readable, holds no such array, or the sizes do not fit.
        """
        found: list[dict[str, Callable[[slice], np.ndarray]]] = [{} for _ in range(n_videos)]
        for path in paths:
            if path.suffix.lower() not in ARRAYS or not path.is_file():
                raise UserError(f"{path}: no such file; --truth expects {_listed(ARRAYS)}")
            self.inputs.append(path)
            arrays = {name or path.stem: opener for name, opener in self._open_arrays(path)[0].items()}
            if not set(arrays) & set(TRUTH):
                raise UserError(
                    f"{path}: it has {', '.join(arrays) or 'nothing'}; --truth expects arrays (or a .npy) "
                    f"named {_listed(TRUTH)}"
                )
            for name in set(arrays) & set(TRUTH):
                array = _Array(path, name, arrays[name], self._axes or "STHWC", name, {"S": n_videos})
                for s, members in enumerate(found):
                    members[name] = functools.partial(array.part, s)
        return found


def _split_of(name: str) -> tuple[str | None, str]:
    """The split and the rest of an array's name: train, train/frames, train_frames, x_train."""
    for separator in "/_":
        words = name.split(separator)
        for own, rest in ((words[0], words[1:]), (words[-1], words[:-1])):
            if own.lower() in SPLIT_NAMES:
                return SPLIT_NAMES[own.lower()], separator.join(rest)
    return None, name


class _Array:
    """An array of videos, or of one, in a file."""

    def __init__(
        self,
        path: pathlib.Path,
        name: str,
        opener: Callable[[], Any],
        axes: str,
        member: str = "features",
        known: Mapping[str, int] = {},
    ):
        """Args:
        path, name: where it lies.
        opener: opens it.
        axes: of the frames.
        member: what it holds, a name of `TRUTH` or "features".
        known: sizes that its axes must have, as far as they are known.
        """
        self.path, self.name, self.member = path, name, member
        self._where = f"{path}{f': {name}' * bool(name)}"
        with _reading(path, "arrays"):
            data = opener()
            if data.dtype.kind not in "buif":
                raise UserError(f"{self._where}: type {data.dtype}, expected bool, integers or floats")
            if isinstance(data, h5py.Dataset):
                hdf5.check_storage(data, self._where)
        if not axes:
            raise UserError(
                f"{self._where}: shape {data.shape}: say which axis is which, S videos, T frames, H "
                f"height, W width, C channels, for instance --axes {_LIKELY.get(data.ndim, 'STHWC')}"
            )
        self._data, self.axes = data, axes
        stored = _stored_axes(member, axes, data.ndim)
        if len(stored) != data.ndim:
            raise UserError(
                f"{self._where}: shape {data.shape}, but --axes {axes} means {len(stored)} axes here "
                f"({', '.join(stored)}); give one letter for each axis"
            )
        self._stored = stored
        sizes = {"S": 1, **{axis: size for axis, size in zip(stored, data.shape) if not axis.isdigit()}}
        if "S" in known and sizes["S"] != known["S"]:
            raise UserError(
                f"{self._where}: truth of {sizes['S']} videos, there are {known['S']}; give it for all, in "
                "the videos' order"
            )
        for axis, size in zip(stored, data.shape):
            wanted = int(axis) if axis.isdigit() else known.get(axis, size)
            if size != wanted or size == 0:
                raise UserError(
                    f"{self._where}: shape {data.shape}, expected ({', '.join(stored)}) with {axis} = "
                    f"{wanted or 'at least 1'}"
                )
        if member == "features" and not (
            sizes.get("C", 1) in (1, 3, 4) and sizes["H"] * sizes["W"] * sizes.get("C", 1) <= 4 * _MOST_PIXELS
        ):
            raise UserError(
                f"{self._where}: shape {data.shape}, read as {sizes['H']} x {sizes['W']} pixels of "
                f"{sizes.get('C', 1)} channels; expected 1, 3 or 4 channels and at most {_MOST_PIXELS} "
                f"pixels: is --axes {axes} right?"
            )
        self.sizes = sizes
        colours = f" x {sizes['C']}" if "C" in sizes else ""
        self.about = f"{sizes.get('T', 1)} frames of {sizes.get('H', 0)} x {sizes.get('W', 0)}{colours}, {data.dtype}"

    def _read(self, sequence: int, frames: int | slice, want: str) -> np.ndarray:
        index = {"S": sequence, "T": frames}
        with _reading(self.path, "arrays"):
            part = np.asarray(self._data[tuple(index.get(axis, slice(None)) for axis in self._stored)])
        have = [axis for axis in self._stored if axis != "S" and not (axis == "T" and isinstance(frames, int))]
        order: list[int] = []
        for axis in want:
            order += [i for i, a in enumerate(have) if a == axis and i not in order][:1]
        return part.transpose(order)

    def frames(self, sequence: int) -> Generator[np.ndarray, None, None]:
        for t in range(self.sizes["T"]):
            yield self._read(sequence, t, "HWC")

    def part(self, sequence: int, frames: slice) -> np.ndarray:
        if self.member == COUNTS:
            return self._read(sequence, frames, "T").reshape(1, -1)
        wanted = hdf5.MEMBERS[self.member].axes.replace("S", "")
        part = self._read(sequence, frames, wanted)
        return part[..., None] if "H" in wanted and part.ndim == 3 else part


_LIKELY = {3: "THW", 4: "STHW", 5: "STHWC"}


def _stored_axes(member: str, axes: str, n_axes: int) -> str:
    """The axes of an array of truth, given those of the frames."""
    if member == "features":
        return axes
    if member == COUNTS:  # one number per video, or one per frame
        return "".join(a for a in axes if a == "S" or (a == "T" and n_axes == 1 + ("S" in axes)))
    own = hdf5.MEMBERS[member].axes
    if "H" in own:
        stored = axes.replace("C", "1")
        return (
            stored.replace("1", "")
            if n_axes < len(stored)
            else stored
            if "1" in stored
            else (stored + "1" * (n_axes > len(stored)))
        )
    if own == "1SK":
        return "".join("1" if a == "T" else a for a in axes if a in "ST") + "K"
    return "".join(a for a in axes if a in "ST" and a in own) + own.replace("S", "").replace("T", "")


# ---------------------------------------------------------------------------------------------------------------
# Images and films
# ---------------------------------------------------------------------------------------------------------------


def _natural(path: pathlib.Path) -> list[Any]:
    """Orders frame2 before frame10."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"([0-9]+)", path.name)] + [
        (-1, path.name)
    ]


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


@contextlib.contextmanager
def _reading(path: pathlib.Path, what: str) -> Iterator[None]:
    """Turns every exception into a `UserError` about the file: parsers of damaged files raise all types of them."""
    try:
        yield
    except (UserError, PermissionError, MemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as {what} ({type(error).__name__}: {error}); it may be damaged or of another kind"
        ) from None


def _check_pixels(path: pathlib.Path, width: int, height: int) -> None:
    if width * height > _MOST_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels, at most {_MOST_PIXELS} are read; make it smaller")


def _pixels(image: Image.Image) -> np.ndarray:
    """An image as [H, W], or [H, W, 3 or 4] if it has colours."""
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode not in ("1", "L", "I", "F", "RGB", "RGBA") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")  # palettes, CMYK, YCbCr, Lab, HSV
    return np.asarray(image)


def _image_video(folder: pathlib.Path, images: Sequence[pathlib.Path], split: str | None) -> Video:
    return Video(str(folder), split, functools.partial(_images, images), lambda: len(images))


def _images(paths: Sequence[pathlib.Path]) -> Generator[np.ndarray, None, None]:
    for path in paths:
        with _reading(path, "an image"), Image.open(path) as image:
            _check_pixels(path, *image.size)
            pixels = _pixels(ImageOps.exif_transpose(image))
        yield pixels


def _gif(path: pathlib.Path) -> Generator[np.ndarray, None, None]:
    with _reading(path, "a GIF"), Image.open(path) as image:
        _check_pixels(path, *image.size)
        for frame in ImageSequence.Iterator(image):
            yield _pixels(frame)


def _count_gif(path: pathlib.Path) -> int:
    with _reading(path, "a GIF"), Image.open(path) as image:
        _check_pixels(path, *image.size)
        return getattr(image, "n_frames", 1)


def _ffmpeg(path: pathlib.Path, *output: str, stdout: int, stderr: Any) -> subprocess.Popen:
    # Only the protocol `file`: what a file holds cannot make ffmpeg open an address. Frames come as stored, none twice.
    return subprocess.Popen(
        [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-nostdin",
            "-v",
            "error",
            "-protocol_whitelist",
            "file",
            "-i",
            f"file:{os.path.abspath(path)}",
            "-map",
            "0:v:0",
            "-fps_mode",
            "passthrough",
            *output,
        ],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )


def _film(path: pathlib.Path) -> Generator[np.ndarray, None, None]:
    """The frames [H, W, 3] uint8 of a film, which the ffmpeg of the package imageio-ffmpeg decodes."""
    with _reading(path, "a film"), tempfile.TemporaryFile() as errors:
        process = _ffmpeg(
            path,
            "-pix_fmt",
            "rgb24",
            "-c:v",
            "ppm",
            "-f",
            "image2pipe",
            "pipe:1",
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        film = process.stdout
        assert film is not None
        try:
            # Portable pixmaps carry their size: "P6\nwidth height\n255\n" and the pixels.
            while film.readline(8).strip() == b"P6":
                width, height = map(int, film.readline(64).split())
                film.readline(8)
                _check_pixels(path, width, height)
                data = film.read(width * height * 3)
                if len(data) == width * height * 3:
                    yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            process.wait()
            errors.seek(0)
            said = errors.read(1000).decode(errors="replace").strip()
            if process.returncode or said:
                raise UserError(
                    f"{path}: ffmpeg cannot decode all of it ({said or process.returncode}); it is "
                    "damaged, copy it again or convert it"
                )
        finally:
            film.close()
            process.kill()
            process.wait()


def _count_film(path: pathlib.Path) -> int:
    """Decodes a film once and counts its frames."""
    with _reading(path, "a film"):
        process = _ffmpeg(
            path, "-progress", "pipe:1", "-f", "null", "-", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        report = process.stdout
        assert report is not None
        try:
            return max((int(n) for n in re.findall(rb"^frame=(\d+)", report.read(), re.MULTILINE)), default=0)
        finally:
            report.close()
            process.kill()
            process.wait()
