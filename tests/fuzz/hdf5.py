"""HDF5 files: data sets of ours and of others, damaged in their bytes and in their structure."""

import zlib

import h5py
import numpy as np

from tests.fuzz.damage import damage_file


def _hostile_array(rng, like):
    """An array that differs from another in type, shape or values; says how."""
    kind = rng.choice(["type", "shape", "values"])
    if kind == "type":
        dtype = rng.choice(
            ["S3", "c8", "f2", "f8", ">f4", ">i2", "i1", "i8", "u8", "?", "f16", "O", "V4", [("a", "i4"), ("b", "f4")]]
        )
        if dtype == "O":
            return np.full(like.shape, "text", object), kind + " O"
        return np.zeros(like.shape, dtype) if not isinstance(dtype, str) or dtype[0] in "SV" else (
            like.astype(dtype)
        ), f"{kind} {dtype}"
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
    value = rng.choice([np.nan, np.inf, -np.inf, -1, 0.5, 2, 255, 256, 65536, 2**40, -(2**40), 1e30, 1e-30])
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
    kind = rng.choice(
        ["declared only", "huge", "bomb", "overlong chunk", "twice compressed", "filters", "compact", "wide chunks"]
    )
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
            h5py.h5d.create(
                file.id,
                name.encode(),
                h5py.h5t.py_create(array.dtype, logical=True),
                h5py.h5s.create_simple(tuple(shape)),
                plist,
            )
        else:
            file.create_dataset(name, shape, array.dtype, chunks=tuple(shape), compression="gzip")
        nbytes = int(np.prod(shape)) * array.dtype.itemsize
        if nbytes > 2**28:
            return f"{kind} {shape}"
        size = {"bomb": rng.choice([2**28, 3 * 2**30]), "overlong chunk": nbytes + rng.choice([-nbytes, 1, 10**6])}.get(
            kind, nbytes
        )
        packed = packed_zeros(size)
        if kind == "twice compressed":
            packed = zlib.compress(packed if rng.random() < 0.5 else zlib.compress(bytes(10**8)))
        file[name].id.write_direct_chunk((0,) * len(shape), packed)
        return f"{kind} {shape}, {len(packed)} bytes"
    if kind == "filters":
        options = rng.choice(
            [
                dict(compression="lzf"),
                dict(fletcher32=True),
                dict(shuffle=True, compression="gzip"),
                dict(maxshape=(None,) * array.ndim),
                dict(scaleoffset=0 if array.dtype.kind in "iu" else 3),
            ]
        )
        file.create_dataset(name, data=array.astype("f4") if array.dtype == bool else array, chunks=True, **options)
        return f"{kind} {options}"
    if kind == "compact":
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        array = array[(slice(1),) * array.ndim]
        data = h5py.h5d.create(
            file.id,
            name.encode(),
            h5py.h5t.py_create(array.dtype, logical=True),
            h5py.h5s.create_simple(array.shape),
            plist,
        )
        if array.nbytes < 60_000:
            data.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(array))
        return kind
    file.create_dataset(name, data=array, chunks=tuple(max(1, size // rng.choice([1, 2, 100])) for size in array.shape))
    return kind


_ATTRIBUTES = [
    np.nan,
    -1.0,
    0.0,
    np.inf,
    "text",
    b"\xff\xfe",
    [1.0, 2.0],
    1 + 2j,
    True,
    "1",
    1e-300,
    "x" * 60_000,
    [],
    np.array([["a"]], "S1"),
    2**63 - 1,
    "NaN",
    "[]",
    "{}",
    "null",
    "[" * 5000,
]


def damage_hdf5(rng, path):
    """Damages the structure of an HDF5 file through h5py: it stays a valid file with other content."""
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
            file[name] = {
                "soft": h5py.SoftLink("/nowhere"),
                "self": h5py.SoftLink(name),
                "external": h5py.ExternalLink(str(path), "/"),
                "hard": file,
            }[said]
        elif kind == "type":
            said = "named type"
            file[name] = np.dtype("f4")
        elif kind == "group":
            said = "group"
            file.create_group(name)
        return f"{kind} {name}: {said}"


def make_hdf5(folder):
    from data_gen import bouncing_balls, moving_mnist

    balls = bouncing_balls.BouncingBalls(n_balls=(2, 3), n_frames=4, training=6, validation=0, test=3, seed=5)
    bouncing_balls.write(balls, folder / "balls.h5")
    rng = np.random.default_rng(0)
    digits = moving_mnist.Digits(
        np.pad(rng.integers(1, 255, (40, 12, 9), np.uint8), [(0, 0), (8, 8), (9, 10)]),
        np.arange(40, dtype=np.uint8) % 10,
    )
    moving_mnist.write(
        moving_mnist.MovingMNIST(n_frames=3, training=4, validation=0, test=2), folder / "mnist.h5", digits
    )
    for path, dtype in (("rnem.h5", np.float32), ("integers.h5", np.uint8)):  # as R-NEM wrote them
        with h5py.File(folder / path, "w") as file:
            for split in ("training", "test"):
                features = (rng.random((4, 5, 64, 64, 1)) < 0.1).astype(dtype)
                for name, data in {
                    "features": features,
                    "groups": features * 2,
                    "collisions": features,
                    "positions": np.float32(rng.random((4, 5, 3, 2)) * 15),
                }.items():
                    file.create_dataset(
                        f"{split}/{name}",
                        data=data,
                        compression="gzip" if split == "training" else "lzf" if path == "integers.h5" else None,
                    )


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

    (path,) = folder.iterdir()
    for split in ("training", "test"):
        with hdf5.open_split(path, split, optional=hdf5.MEMBERS) as data:
            n = min(data.n_sequences, 10)
            check_members(data.read(slice(0, n), min(data.n_frames, 5)), min(data.n_frames, 5), n)


def read_pipeline(folder):
    from data_gen import pipeline
    from eval.truth import Source

    (path,) = folder.iterdir()
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
