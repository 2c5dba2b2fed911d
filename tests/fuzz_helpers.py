"""Broken files: how every format is broken, what its readers may say of it, and the process that tries it.

A case is a format and a number, which seeds how a small real file is damaged. The last case that was tried is left in
FOLDER/case:

    python tests/fuzz_helpers.py FOLDER CASES FORMAT...

Readers run here, in a process of their own: what they import may crash, hang or swallow memory, which `test_fuzz`
watches from outside. Modules are imported where they are used: TensorFlow is not for every process.
"""

import json
import math
import pathlib
import pickle
import pickletools
import random
import re
import shutil
import struct
import sys
import traceback
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parent)]

from data_gen.command_line import LONGEST_MESSAGE, UserError  # noqa: E402


# --- bytes ---

_NUMBERS = [0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, -2**31, 2**32 - 1, 2**40, 2**62, -2**63]


def _span(rng, size):
    """A stretch of `size` bytes: short ones are likelier, and so are places near the start, where headers are."""
    start = rng.randrange(min(size, rng.choice([512, 4096, size])) or 1)
    return start, min(start + rng.choice([1, 2, 4, 8, 64, 1024]), size)


def _number(rng, size=None):
    content = rng.choice(_NUMBERS).to_bytes(16, rng.choice(["little", "big"]), signed=True)
    return content[:size or rng.choice([1, 2, 4, 8])]


def _swap(rng, b, i, j):
    k = rng.randrange(j, len(b) + 1)
    return b[:i] + b[k:k + j - i] + b[j:k] + b[i:j] + b[k + j - i:]


BYTE_DAMAGE = {
    "flip": lambda rng, b, i, j: b[:i] + bytes([b[i] ^ 1 << rng.randrange(8)]) + b[i + 1:],
    "overwrite": lambda rng, b, i, j: b[:i] + rng.randbytes(j - i) + b[j:],
    "number": lambda rng, b, i, j: b[:i] + (n := _number(rng)) + b[i + len(n):],
    "insert": lambda rng, b, i, j: b[:i] + rng.randbytes(j - i) + b[i:],
    "delete": lambda rng, b, i, j: b[:i] + b[j:],
    "truncate": lambda rng, b, i, j: b[:rng.randrange(len(b))],
    "zeros": lambda rng, b, i, j: b[:i] + bytes(j - i) + b[j:],
    "ones": lambda rng, b, i, j: b[:i] + b"\xff" * (j - i) + b[j:],
    "copy": lambda rng, b, i, j: b[:(k := rng.randrange(len(b)))] + b[i:j] + b[k + j - i:],
    "swap": _swap,
    "repeat": lambda rng, b, i, j: b[:j] + b[i:j] * rng.choice([1, 100]) + b[j:],
}


def damage(rng, content):
    """Damages bytes in one to four ways; says how."""
    said = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        if content:
            kind = rng.choice(list(BYTE_DAMAGE))
            i, j = _span(rng, len(content))
            content = BYTE_DAMAGE[kind](rng, content, i, j)
            said.append(f"{kind} {i}:{j}")
    return content, ", ".join(said)


def damage_file(rng, path):
    """Damages one file, which may be one of a folder."""
    path = rng.choice(sorted(p for p in path.rglob("*") if p.is_file())) if path.is_dir() else path
    content, said = damage(rng, path.read_bytes())
    path.write_bytes(content)
    return f"{path.name}: {said}"


# --- JSON ---

HOSTILE = ["null", "true", "[]", "{}", "0", "-1", "0.5", "-0.0", "NaN", "Infinity", "1e400", "-1e400", "1e308",
           "1e-320", "2147483648", "9223372036854775808", "9" * 400, "9" * 5000, '""', '"x"', '"-2,nan"', '"\\ud800"',
           '"\\u0663"', '"\\u001b[31m\\nred"', f'"{"x" * 3_000_000}"', "[[[1]]]", '{"a": {"b": [null]}}',
           "[" * 100_000 + "]" * 100_000, "[1, [2], 3]", "[4096, 4096, 16]", '["prior", 1]', "256", "4096", "1000000",
           "[" + "0," * 100_000 + "0]", "{\"a\":" * 5_000 + "1" + "}" * 5_000]


def damage_json(rng, path):
    """Replaces, removes or adds values anywhere in a JSON file."""
    content, said, texts = json.loads(path.read_text()), [], []
    for _ in range(rng.choice([1, 1, 2, 3])):
        place, names = content, []
        while isinstance(place, (dict, list)) and place:
            name = rng.choice(sorted(place)) if isinstance(place, dict) else rng.randrange(len(place))
            names.append(name)
            if not isinstance(place[name], (dict, list)) or not place[name] or rng.random() < 0.4:
                break
            place = place[name]
        if not names:
            break
        kind = rng.choice(["replace"] * 5 + ["remove", "add"])
        if kind == "remove":
            del place[names[-1]]
        else:
            texts.append(rng.choice(HOSTILE))
            mark = f"@{len(texts) - 1}@"
            if isinstance(place, dict) and kind == "add":
                place[rng.choice(["", "unknown", "x" * 10_000, "\ud800"])] = mark
            else:
                place[names[-1]] = mark
            kind += f" {texts[-1][:40]}"
        said.append(f"{kind} at {names}"[:200])
    text = json.dumps(content)
    for number, value in enumerate(texts):
        text = text.replace(f'"@{number}@"', value)
    if rng.random() < 0.03:
        text = rng.choice(HOSTILE)
        said = [f"nothing but {text[:40]}"]
    path.write_text(text)
    return f"{path.name}: {', '.join(said)}"


# --- HDF5 ---


def _hostile_array(rng, like):
    """An array that differs from another in type, shape or values; says how."""
    kind = rng.choice(["type", "shape", "values"])
    if kind == "type":
        dtype = rng.choice(["S3", "c8", "f2", "f8", ">f4", ">i2", "i1", "i8", "u8", "?", "f16", "O", "V4",
                            [("a", "i4"), ("b", "f4")]])
        if dtype == "O":
            return np.full(like.shape, "text", object), kind + " O"
        return np.zeros(like.shape, dtype) if not isinstance(dtype, str) or dtype[0] in "SV" else (
            like.astype(dtype)), f"{kind} {dtype}"
    if kind == "shape":
        shape = list(like.shape)
        change = rng.choice(["drop", "add", "zero", "longer", "shorter", "shuffle", "scalar", "many"])
        if not shape or change == "scalar":
            return np.zeros((), like.dtype), "shape ()"
        axis = rng.randrange(len(shape))
        if change == "drop":
            del shape[axis]
        elif change == "add":
            shape.insert(axis, rng.choice([0, 1, 2]))
        elif change in ("zero", "longer", "shorter"):
            shape[axis] = {"zero": 0, "longer": shape[axis] + 1, "shorter": max(shape[axis] - 1, 0)}[change]
        elif change == "many":
            shape = [1] * 30
        rng.shuffle(shape) if change == "shuffle" else None
        return np.zeros(shape, like.dtype), f"shape {shape}"
    value = rng.choice([np.nan, np.inf, -np.inf, -1, 0.5, 2, 255, 256, 65536, 2**40, -2**40, 1e30, 1e-30])
    with np.errstate(all="ignore"):
        dtype = rng.choice([like.dtype, np.dtype("f4"), np.dtype("f8"), np.dtype("i8")])
        array = like.astype(dtype)
        if array.size:
            flat = array.reshape(-1)
            where = slice(None) if rng.random() < 0.3 else rng.randrange(array.size)
            flat[where] = np.array(value, "f8").astype(dtype)
    return array, f"value {value} as {dtype}"


def packed_zeros(size):
    """Zeros as zlib packs them; of many the same piece again and again, with a wrong checksum at the end."""
    piece = 2**24
    packer = zlib.compressobj()
    first, other = (packer.compress(bytes(piece)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return zlib.compress(bytes(size)) if size <= piece else first + other * (size // piece) + packer.flush()


def _storage(rng, file, name, array):
    """Stores an array in an unusual way; says how."""
    import h5py
    kind = rng.choice(["declared only", "huge", "bomb", "overlong chunk", "twice compressed", "filters", "compact",
                       "wide chunks"])
    if kind == "declared only":
        shape = [size * rng.choice([1, 1000, 2**20, 2**40]) for size in array.shape]
        chunks = rng.choice([None, array.shape])
        try:
            file.create_dataset(name, shape, array.dtype, chunks=chunks)
        except (ValueError, OSError, RuntimeError):
            file.create_dataset(name, array.shape, array.dtype)
        return f"{kind} {shape}"
    if kind in ("huge", "bomb", "overlong chunk", "twice compressed"):
        # Chunks of zeros: a few bytes of file that unpack to as much as a reader lets them.
        shape = list(array.shape)
        if kind == "huge":
            for axis in range(min(len(shape), 4)):
                shape[axis] *= rng.choice([1, 8, 16])
        if kind == "twice compressed":
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_chunk(tuple(shape))
            plist.set_deflate(1)
            plist.set_deflate(1)
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(array.dtype, logical=True),
                            h5py.h5s.create_simple(tuple(shape)), plist)
        else:
            file.create_dataset(name, shape, array.dtype, chunks=tuple(shape), compression="gzip")
        nbytes = int(np.prod(shape)) * array.dtype.itemsize
        if nbytes > 2**28:
            return f"{kind} {shape}"
        size = {"bomb": rng.choice([2**28, 3 * 2**30]), "overlong chunk": nbytes + rng.choice([-nbytes, 1, 10**6])
                }.get(kind, nbytes)
        packed = packed_zeros(size)
        if kind == "twice compressed":
            packed = zlib.compress(packed if rng.random() < 0.5 else zlib.compress(bytes(10**8)))
        file[name].id.write_direct_chunk((0,) * len(shape), packed)
        return f"{kind} {shape}, {len(packed)} bytes"
    if kind == "filters":
        options = rng.choice([dict(compression="lzf"), dict(fletcher32=True), dict(shuffle=True, compression="gzip"),
                              dict(maxshape=(None,) * array.ndim),
                              dict(scaleoffset=0 if array.dtype.kind in "iu" else 3)])
        file.create_dataset(name, data=array.astype("f4") if array.dtype == bool else array, chunks=True, **options)
        return f"{kind} {options}"
    if kind == "compact":
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        array = array[(slice(1),) * array.ndim]
        data = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(array.dtype, logical=True),
                               h5py.h5s.create_simple(array.shape), plist)
        if array.nbytes < 60_000:
            data.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(array))
        return kind
    file.create_dataset(name, data=array, chunks=tuple(max(1, size // rng.choice([1, 2, 100])) for size in array.shape))
    return kind


_ATTRIBUTES = [np.nan, -1.0, 0.0, np.inf, "text", b"\xff\xfe", [1.0, 2.0], 1 + 2j, True, "1", 1e-300, "x" * 60_000, [],
               np.array([["a"]], "S1"), 2**63 - 1, "NaN", "[]", "{}", "null", "[" * 5000]


def damage_hdf5(rng, path):
    """Damages the structure of an HDF5 file through h5py: it stays a sound file of another content."""
    import h5py
    if rng.random() < 0.02:
        path.write_bytes(rng.choice([bytes(512), rng.randbytes(512), b"x" * 1024]) + path.read_bytes())
        return "behind a user block"
    with h5py.File(path, "r+") as file:
        data, groups = [], [file]
        file.visititems(lambda name, o: (groups if isinstance(o, h5py.Group) else data).append(o))
        name = rng.choice(data).name
        kind = rng.choice(["array"] * 4 + ["storage"] * 4 + ["attribute"] * 3 + ["delete", "link", "group", "type"])
        if kind == "attribute":
            place = file if file.attrs and rng.random() < 0.8 else rng.choice(groups + data)
            key = rng.choice([*place.attrs, "box"])
            value = rng.choice(_ATTRIBUTES)
            place.attrs[key] = value
            return f"attribute {key} of {place.name} = {str(value)[:40]}"
        if kind == "delete":
            name = rng.choice([name, name, name.rsplit("/", 1)[0] or name])
            del file[name]
            return f"no {name}"
        array = file[name][()]
        del file[name]
        try:
            if kind == "array":
                array, said = _hostile_array(rng, array)
                file.create_dataset(name, data=array, dtype=h5py.string_dtype() if array.dtype == object else None)
            elif kind == "storage":
                said = _storage(rng, file, name, array)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            return f"{kind} {name}: half done, {error}"
        if kind == "link":
            said = rng.choice(["soft", "self", "external", "hard"])
            file[name] = {"soft": h5py.SoftLink("/nowhere"), "self": h5py.SoftLink(name),
                          "external": h5py.ExternalLink(str(path), "/"), "hard": file}[said]
        elif kind == "type":
            said = "named type"
            file[name] = np.dtype("f4")
        elif kind == "group":
            said = "group"
            file.create_group(name)
        return f"{kind} {name}: {said}"


# --- formats ---


class Format(NamedTuple):
    """A format: real files, ways to damage them, and the readers.

    make: (folder) writes small files with the real writers. damage: (rng, folder) -> str changes them and says how.
    read: (folder) reads them with every reader and asserts that what they return is sound. share: part of the cases
    asked for, less where one takes long.
    """

    make: Callable
    damage: Callable
    read: Callable
    share: float = 1.0


def make_hdf5(folder):
    import h5py

    from data_gen import bouncing_balls, moving_mnist
    balls = bouncing_balls.BouncingBalls(n_balls=(2, 3), n_frames=4, training=6, validation=0, test=3, seed=5)
    bouncing_balls.write(balls, folder / "balls.h5")
    rng = np.random.default_rng(0)
    digits = moving_mnist.Digits(np.pad(rng.integers(1, 255, (40, 12, 9), np.uint8), [(0, 0), (8, 8), (9, 10)]),
                                 np.arange(40, dtype=np.uint8) % 10)
    moving_mnist.write(moving_mnist.MovingMNIST(n_frames=3, training=4, validation=0, test=2), folder / "mnist.h5",
                       digits)
    for path, dtype in (("rnem.h5", np.float32), ("integers.h5", np.uint8)):     # as R-NEM wrote them
        with h5py.File(folder / path, "w") as file:
            for split in ("training", "test"):
                features = (rng.random((4, 5, 64, 64, 1)) < 0.1).astype(dtype)
                for name, data in {"features": features, "groups": features * 2, "collisions": features,
                                   "positions": np.float32(rng.random((4, 5, 3, 2)) * 15)}.items():
                    file.create_dataset(f"{split}/{name}", data=data,
                                        compression="gzip" if split == "training" else
                                        "lzf" if path == "integers.h5" else None)


def damage_one_hdf5(rng, folder):
    """Keeps one of the files, damaged."""
    kept = rng.choice(sorted(folder.iterdir()))
    for path in folder.iterdir():
        if path != kept:
            path.unlink()
    how = rng.choice([damage_file, damage_hdf5])
    said = how(rng, kept)
    return f"{kept.name} {said}"


def check_members(read, n_frames, n_sequences):
    from data_gen import hdf5
    for name, array in read.items():
        member = hdf5.MEMBERS[name]
        assert array.ndim == len(member.axes)
        for axis, size in zip(member.axes, array.shape):
            assert size == {"T": n_frames, "S": n_sequences}.get(axis, int(axis) if axis.isdigit() else size), name
        assert np.isfinite(array).all(), name
        if member.kind == "image":
            assert array.dtype == np.uint8 or (array.dtype == np.float32 and 0 <= array.min() and array.max() <= 1)
        else:
            assert array.dtype == {"flag": np.bool_, "id": np.uint8, "real": np.float32}[member.kind], name


def read_hdf5(folder):
    from data_gen import hdf5
    path, = folder.iterdir()
    for split in ("training", "test"):
        with hdf5.open_split(path, split, optional=hdf5.MEMBERS) as data:
            n = min(data.n_sequences, 10)
            check_members(data.read(slice(0, n), min(data.n_frames, 5)), min(data.n_frames, 5), n)


def read_pipeline(folder):
    from data_gen import pipeline
    from eval.truth import Source
    path, = folder.iterdir()
    for batch in pipeline.batches(path, "training", 3, 3, None, repeat=False):
        assert np.isfinite(batch.observations).all() and np.max(batch.observations) <= 1
        assert (batch.counts.numpy() >= -1).all() and batch.counts.shape == batch.observations.shape[:2]
    mean = pipeline.mean_image(path)
    assert np.isfinite(mean).all() and mean.dtype == np.float32
    side = 50 if path.name == "mnist.h5" else 64
    with Source(path, "test", (side, side, 1), 3, 2) as source:
        for _, truth in source.batches(2):
            assert truth.frames.shape == (2, 3, side, side) and np.isfinite(truth.frames).all()
            assert truth.count.shape == (2, 3) and (truth.count >= -1).all()
            for value in (truth.centre, truth.box):
                assert value is None or not np.isinf(value).any()


def make_predictions(folder):
    from test_tables import save
    save(folder / "predictions.h5", **{"rollout/canvas": np.zeros((6, 2, 4, 12, 12))})


def read_predictions(folder):
    from eval import tables
    from eval.predictions import MEMBERS, Predictions
    with Predictions(folder / "predictions.h5") as predictions:
        for name, member in MEMBERS.items():
            if name in predictions:
                predictions[name][:2]
        figures = tables.evaluate(predictions)
    json.dumps(figures, allow_nan=False)
    data_sets = tables.collect([figures])
    tables.markdown(data_sets), tables.latex(data_sets), tables.csv_rows(data_sets)


def make_pickle(folder):
    from test_moving_mnist import python2_pickle, release_data
    data = release_data(3)
    data["imgs"] = data["imgs"][:, :, :5, :5]
    data["imgs"] = np.pad(data["imgs"], [(0, 0), (0, 0), (0, 45), (0, 45)])
    for name, content in {"2": python2_pickle(data), "3": pickle.dumps(data, 2), "4": pickle.dumps(data, 4)}.items():
        (folder / f"{name}.pickle").write_bytes(content)


def damage_pickle(rng, folder):
    """Keeps one of the pickles, with opcodes put in anywhere or bytes damaged."""
    kept = rng.choice(sorted(folder.iterdir()))
    for path in folder.iterdir():
        if path != kept:
            path.unlink()
    if rng.random() < 0.4:
        return damage_file(rng, kept)
    content = kept.read_bytes()
    positions = [position for _, _, position in pickletools.genops(content)]
    said = []
    for _ in range(rng.choice([1, 2, 5])):
        op = rng.choice(pickletools.opcodes)
        new = op.code.encode("latin1")
        if op.arg is not None:
            new += rng.choice([_number(rng, 8), b"os\nsystem\n", b"builtins\neval\n", b"numpy\nndarray\n",
                               b"1" * 5000 + b"\n",
                               b"\n", b"nan\n", struct.pack("<I", 2**31 - 1), struct.pack("<Q", 2**62), b"\x05abcde"])
        new = rng.choice([new, new, new * 1000, b"cos\nsystem\n(S'touch made'\ntR", b"(" * 100_000, b"]" * 100_000,
                          b"2" * 100_000, b"]" + b"2a" * 50, b"\x8c\x02os\x8c\x06system\x93", b"\x82\x01", b"Qx"])
        place = rng.choice(positions)
        content = content[:place] + new + content[place + rng.choice([0, 1]):]
        said.append(f"{new[:30]!r} x {len(new)} at {place}")
    kept.write_bytes(content)
    return f"{kept.name} {', '.join(said)}"


def read_pickle(folder):
    from data_gen import moving_mnist, release_pickle
    path, = folder.iterdir()
    arrays = release_pickle.read_release_pickle(path)
    t, s, h, w = arrays["imgs"].shape
    assert arrays["imgs"].dtype == np.uint8
    assert arrays["coords"].shape[:2] == (t, s) and np.isfinite(arrays["coords"]).all()
    moving_mnist.convert((path,), folder / "out.h5")
    from data_gen import hdf5
    with hdf5.open_split(folder / "out.h5", "training", optional=hdf5.MEMBERS) as data:
        check_members(data.read(slice(None)), t, s)


def make_digits(folder):
    import gzip

    from test_moving_mnist import idx, user_digits
    images, labels = user_digits()
    for name in ("npz", "packed", "idx", "gz"):
        (folder / name).mkdir()
    np.savez(folder / "npz" / "digits", x_train=images, y_train=labels)
    np.savez_compressed(folder / "packed" / "digits", images=images, labels=labels.astype(np.int64))
    for name, pack in (("idx", bytes), ("gz", gzip.compress)):
        (folder / name / "digits").write_bytes(pack(idx(images)))
        (folder / name / "labels").write_bytes(pack(idx(labels)))


def damage_digits(rng, folder):
    kept = rng.choice(sorted(folder.iterdir()))
    for path in folder.iterdir():
        if path != kept:
            shutil.rmtree(path)
    if rng.random() < 0.2:
        import gzip
        path = rng.choice(sorted(kept.iterdir()))
        content = path.read_bytes()
        if kept.name == "gz":
            path.write_bytes(gzip.compress(damage(rng, gzip.decompress(content))[0], 1))
        elif path.suffix == ".npz":
            from zipfile import ZIP_DEFLATED, ZipFile
            with ZipFile(path) as old:
                entries = {name: old.read(name) for name in old.namelist()}
            with ZipFile(path, "w", ZIP_DEFLATED) as new:
                for name, value in entries.items():
                    new.writestr(name, damage(rng, value)[0] if rng.random() < 0.7 else value)
        return f"{kept.name} inside"
    return f"{kept.name} {damage_file(rng, kept)}"


def read_digits(folder):
    from data_gen import moving_mnist
    kept, = folder.iterdir()
    path = kept / ("digits.npz" if (kept / "digits.npz").exists() else "digits")
    digits = moving_mnist.read_digits(path, None if path.suffix else kept / "labels")
    assert digits.images.shape == (len(digits.labels), 28, 28) and digits.labels.max() <= 9


def make_flags(folder):
    from sqair.config import PRESETS, to_flags
    (folder / "flags.json").write_text(json.dumps(to_flags(PRESETS["rsqair_in"])))


def read_flags(folder):
    from sqair.config import Config, from_flags, load_flags, to_flags
    config, unknown = load_flags(folder / "flags.json")
    assert isinstance(config, Config) and unknown == sorted(unknown)
    assert from_flags(json.loads(json.dumps(to_flags(config)))) == (config, [])


def make_csv(folder):
    from sqair.run_folder import MetricsFile
    for name, columns in (("metrics", ["step", "data", "iwae_per_frame", "kl"]),
                          ("resources", ["step", "data", "seconds_per_step"])):
        file = MetricsFile(folder / f"{name}.csv", columns, 0)
        for step in range(10, 400, 10):
            for data in ("batch", "validation", "machine"):
                file.append([step, data, *(step * 0.1 for _ in columns[2:])])


def damage_csv(rng, folder):
    path = rng.choice(sorted(folder.iterdir()))
    if rng.random() < 0.5:
        return damage_file(rng, path)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row = rng.choice(rows)
    cell = rng.choice(["", "nan", "inf", "1e400", "9" * 30, "9" * 5000, "x" * 200_000, '"', "\0", "-1", "\u00b2",
                       "\u0663", "1_0", "\n", "\r", "," * 1000, "True", "\ud800"])
    column = rng.randrange(len(row))
    row[column] = cell
    path.write_bytes("\r\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass"))
    return f"{path.name}: cell {cell[:20]!r} in column {column}"


def read_csv(folder):
    from sqair.run_folder import MetricsFile
    columns = ["step", "data", "iwae_per_frame", "kl"]
    MetricsFile(folder / "metrics.csv", columns, 200)
    kept = (folder / "metrics.csv").read_text()
    MetricsFile(folder / "metrics.csv", columns, 200)
    assert (folder / "metrics.csv").read_text() == kept and kept.startswith("step,data")
    MetricsFile(folder / "resources.csv", ["step", "data", "seconds_per_step"], 10**6)


def read_curves(folder):
    from eval import figures
    for data, names in (("validation", ("iwae_per_frame", "kl")), ("machine", ("seconds_per_step",))):
        for curve in figures.read_curves(folder, data, names).values():
            assert curve.steps.dtype.kind == "i" and curve.values.dtype == float
            assert curve.steps.shape == curve.values.shape and (curve.steps >= 0).all()


def make_metrics_json(folder):
    from eval import tables
    from eval.predictions import Predictions
    from test_tables import save
    for seed in (0, 1):
        save(folder / "p.h5", seed=seed)
        with Predictions(folder / "p.h5") as predictions:
            figures = tables.evaluate(predictions) | {"file": f"sqair_seed{seed}_four.json"}
        (folder / f"sqair_seed{seed}_four.json").write_text(json.dumps(figures))
        (folder / "p.h5").unlink()


def damage_metrics_json(rng, folder):
    path = rng.choice(sorted(folder.iterdir()))
    return rng.choice([damage_json, damage_json, damage_json, damage_file])(rng, path)


def read_metrics_json(folder):
    from eval import figures
    data_sets = figures.read_metrics([folder])
    panels = figures.likelihood_panels(data_sets)
    for panel in (panel for row in panels for panel in row if panel):
        assert panel.bars and all(np.isfinite(bar.values).all() and bar.values.ndim == 2 for bar in panel.bars.values())


def damage_index(rng, path):
    """Damages a block of a checkpoint's index and puts its checksum right, so that what reads it sees the damage."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    def varint(at):
        value = shift = 0
        while True:
            value |= (content[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if content[at - 1] < 128:
                return value, at

    content = path.read_bytes()
    at, handles = len(content) - 48, []
    for _ in range(2):
        offset, at = varint(at)
        size, at = varint(at)
        handles.append((offset, size))
    blocks = [(0, min(offset for offset, _ in handles) - 5), *handles]      # one data block, then the two of the footer
    offset, size = rng.choice([blocks[0]] * 5 + blocks[1:])
    block = bytearray(content[offset:offset + size])
    said = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        i, j = rng.randrange(size), rng.choice([1, 1, 2, 4])
        block[i:i + j] = rng.choice([rng.randbytes(j), b"\xff" * j, bytes(j)])[:size - i]
        said.append(f"{i}:{i + j}")
    block = bytes(block) + content[offset + size:offset + size + 1]
    path.write_bytes(content[:offset] + block + struct.pack("<I", masked_crc32c(block)) + content[offset + size + 5:])
    return f"{path.name}: block at {offset}, bytes {', '.join(said)}, with the right checksum"


def damage_values(rng, prefix):
    """Writes a checkpoint of other values: other types and shapes, not finite, missing, foreign."""
    import tensorflow as tf
    reader = tf.train.load_checkpoint(str(prefix))
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    said = []
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(sorted(values))
        value = np.asarray(values[name])
        kind = rng.choice(["remove", "type", "shape", "value", "foreign", "empty", "text", "big"])
        if value.dtype == object and kind in ("type", "value"):
            kind = "text"
        if kind == "remove":
            del values[name]
        elif kind == "type":
            values[name] = value.astype(rng.choice(["f8", "i4", "i8", "?", "c8", "f2", "u1"]))
        elif kind == "shape":
            values[name] = np.zeros(rng.choice([(), (1,), (0,), (2, 3), (*value.shape, 1), value.shape[1:], (1,) * 8]),
                                    np.float32 if value.dtype == object else value.dtype)
        elif kind == "value":
            with np.errstate(all="ignore"):
                values[name] = np.full(value.shape, rng.choice([np.nan, np.inf, -np.inf, 1e30, -1, 2.0**62])
                                       ).astype(value.dtype)
        elif kind == "foreign":
            values["some/layer/w"] = value
        elif kind == "empty":
            values = {"x": np.float32(0)}
        elif kind == "text":
            values[name] = np.array(rng.choice([b"", b"text", b"\xff" * 100, b"\x0a\x05" * 50]), object)
        else:
            values[name] = np.zeros((300, 300), np.float32)
        said.append(f"{kind} {name}")
        if "empty" in said[-1]:
            break
    names = sorted(values)
    tensors = [tf.constant(values[n], tf.string if np.asarray(values[n]).dtype == object else None) for n in names]
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    return f"{prefix.name}: {', '.join(said)}"


def damage_checkpoint_files(rng, folder):
    """Removes, swaps or empties files of checkpoints."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    one, two = rng.choice(files), rng.choice(files)
    kind = rng.choice(["remove", "swap", "empty", "folder", "copy"])
    first, second = one.read_bytes(), two.read_bytes()
    if kind in ("remove", "folder"):
        one.unlink()
        one.mkdir() if kind == "folder" else None
    elif kind == "swap":
        one.write_bytes(second), two.write_bytes(first)
    else:
        one.write_bytes(second if kind == "copy" else b"")
    return f"{kind} {one.name} {two.name}"


def damage_checkpoint(rng, folder):
    indices = sorted(folder.rglob("*.index"))
    flags, = folder.rglob("flags.json")
    kind = rng.choice(["bytes"] * 3 + ["index"] * 4 + ["values"] * 4 + ["files", "flags"])
    if kind == "bytes":
        return damage_file(rng, folder)
    if kind == "files":
        return damage_checkpoint_files(rng, folder)
    if kind == "flags":
        return damage_json(rng, flags)
    chosen = indices if rng.random() < 0.5 else [rng.choice(indices)]       # all: nothing sound to fall back to
    state, said = rng.getstate(), []
    for index in chosen:
        rng.setstate(state)
        said.append(damage_index(rng, index) if kind == "index" else damage_values(rng, index.with_suffix("")))
    return "; ".join(said)


_KEPT = {}


def _quick_models():
    """Makes a model of a configuration once; loading assigns all its variables anew."""
    import functools

    from sqair import checkpoint_values
    from sqair.model import SQAIR
    if "models" not in _KEPT:
        checkpoint_values.SQAIR = _KEPT["models"] = functools.lru_cache(10)(SQAIR)


def make_checkpoint(folder):
    from run_helpers import make_run
    make_run(folder / "run", steps=(5, 8))


def check_model(model):
    for variable in model.trainable_variables:
        assert np.isfinite(variable.numpy()).all(), variable.name


def read_checkpoint(folder):
    from run_helpers import make_state

    from sqair import checkpoints
    folder, = folder.iterdir()
    _quick_models()
    if "state" not in _KEPT:
        _KEPT["state"] = make_state()
    state, problem = _KEPT["state"], None
    try:
        checkpoints.RunCheckpoints(folder, state, 2).restore()
        check_model(state.model)
        assert 0 <= int(state.step) < 2**31, int(state.step)
    except UserError as error:
        problem = error
    for which in ("best", "newest"):
        run = checkpoints.load_run(folder, which)
        check_model(run.model)
        assert 0 <= run.step < 2**31
        optimizer = checkpoints.load_optimizer(run)
        for variable in (v for slot in optimizer.slots.values() for v in slot):
            assert np.isfinite(variable.numpy()).all()
    if problem:
        raise problem


def read_checkpoint_values(folder):
    from sqair.checkpoint_values import read_values
    for index in sorted(folder.rglob("*.index")):
        for name, value in read_values(str(index.with_suffix(""))).items():
            assert value.dtype.kind != "f" or np.isfinite(value).all() or "best_bound" in name


def make_original(folder):
    from run_helpers import make_run

    from sqair import checkpoints
    make_run(folder / "ours", steps=(5, 8))
    for which in ("5", "8"):
        checkpoints.export(checkpoints.load_run(folder / "ours", which), folder / "run")
    shutil.rmtree(folder / "ours")


def read_original(folder):
    from sqair import checkpoints
    folder, = folder.iterdir()
    _quick_models()
    run = checkpoints.load_run(folder)
    check_model(run.model)
    assert 0 <= run.step < 2**31
    checkpoints.load_optimizer(run)


def make_safetensors(folder):
    from run_helpers import make_run

    from sqair import checkpoints
    make_run(folder / "ours")
    checkpoints.save_safetensors(checkpoints.load_run(folder / "ours"), folder / "model")
    shutil.rmtree(folder / "ours")


def damage_safetensors(rng, folder):
    folder, = folder.iterdir()
    (folder / "README.md").unlink()
    kind = rng.choice(["bytes", "bytes", "header", "header", "header", "config", "files"])
    if kind == "bytes":
        return damage_file(rng, folder)
    if kind == "config":
        return damage_json(rng, folder / "config.json")
    if kind == "files":
        return damage_checkpoint_files(rng, folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size, = struct.unpack("<Q", content[:8])
    header = folder / "header"
    header.write_bytes(content[8:8 + size])
    said = damage_json(rng, header)
    new = header.read_bytes()
    header.unlink()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + size:])
    return said


def read_safetensors(folder):
    from sqair import checkpoints
    folder, = folder.iterdir()
    _quick_models()
    run = checkpoints.load_run(folder)
    check_model(run.model)


FORMATS = {
    "hdf5": Format(make_hdf5, damage_one_hdf5, read_hdf5),
    "pickle": Format(make_pickle, damage_pickle, read_pickle),
    "digits": Format(make_digits, damage_digits, read_digits),
    "flags": Format(make_flags, lambda rng, folder: rng.choice([damage_json, damage_json, damage_json, damage_file])(
        rng, folder / "flags.json"), read_flags),
    "csv": Format(make_csv, damage_csv, read_csv),
    "predictions": Format(make_predictions, lambda rng, folder: rng.choice([damage_file, damage_hdf5])(
        rng, folder / "predictions.h5"), read_predictions),
    "pipeline": Format(make_hdf5, damage_one_hdf5, read_pipeline, 0.5),
    "curves": Format(make_csv, damage_csv, read_curves),
    "metrics": Format(make_metrics_json, damage_metrics_json, read_metrics_json),
    "checkpoint": Format(make_checkpoint, damage_checkpoint, read_checkpoint, 0.25),
    "values": Format(make_checkpoint, damage_checkpoint, read_checkpoint_values),
    "original": Format(make_original, damage_checkpoint, read_original, 0.5),
    "safetensors": Format(make_safetensors, damage_safetensors, read_safetensors),
}


# --- the process ---


def complaint(read, folder):
    """Reads a case: "" if what it says or returns is right, otherwise what is wrong. And whether it was refused."""
    try:
        read(folder)
        return "", False
    except UserError as error:
        message = str(error)
    except OSError as error:            # as in `command_line.run`
        if not error.filename:
            return traceback.format_exc(limit=-6), False
        message = f"{error.filename}: {error.strerror}"
    except Exception as error:
        # An error in a tf.data generator arrives as TensorFlow's own exception, see `command_line.run`.
        quoted = re.search(r"\bUserError: (.*)", str(error))
        if not (quoted and type(error).__module__.startswith("tensorflow")):
            return traceback.format_exc(limit=-6), False
        message = quoted.group(1)
    if not message or "\n" in message or len(message) > LONGEST_MESSAGE or not message.isprintable():
        return f"not one short line: {message[:1000]!r}", True
    if str(folder) not in message and not any(path.name in message for path in folder.rglob("*")):
        return f"does not name the file: {message}", True
    return "", True


def main():
    """Tries cases 0..n-1 of each format and notes them in FOLDER/cases.jsonl; those that are there already are left."""
    work, n, *names = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:]
    log, case = work / "cases.jsonl", work / "case"
    begun = {(row["format"], row["case"]) for row in map(json.loads, log.read_text().splitlines())
             } if log.exists() else set()
    with open(log, "a", buffering=1) as file:
        for name in names:
            format_, whole = FORMATS[name], work / f"{name}_whole"
            if not whole.exists():
                whole.mkdir()
                format_.make(whole)
            for number in range(math.ceil(n * format_.share)):
                if (name, number) in begun:
                    continue
                shutil.rmtree(case, ignore_errors=True)
                shutil.copytree(whole, case)
                said = format_.damage(random.Random(f"{name} {number}"), case)
                print(json.dumps({"format": name, "case": number, "damage": said}), file=file)
                problem, refused = complaint(format_.read, case)
                memory = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
                print(json.dumps({"format": name, "case": number, "refused": refused, "problem": problem,
                                  "memory_mb": memory}), file=file)


if __name__ == "__main__":
    main()
