"""Pickles of the SQAIR release, and the user's own digits."""

import gzip
import pickle
import pickletools
import shutil
import struct
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np

from data_gen import hdf5, moving_mnist, release_pickle
from tests.fuzz.damage import damage, damage_file, number
from tests.fuzz.hdf5 import check_members
from tests.mnist_helpers import idx, python2_pickle, release_data, user_digits


def make_pickle(folder):
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
            new += rng.choice(
                [
                    number(rng, 8),
                    b"os\nsystem\n",
                    b"builtins\neval\n",
                    b"numpy\nndarray\n",
                    b"1" * 5000 + b"\n",
                    b"\n",
                    b"nan\n",
                    struct.pack("<I", 2**31 - 1),
                    struct.pack("<Q", 2**62),
                    b"\x05abcde",
                ]
            )
        new = rng.choice(
            [
                new,
                new,
                new * 1000,
                b"cos\nsystem\n(S'touch made'\ntR",
                b"(" * 100_000,
                b"]" * 100_000,
                b"2" * 100_000,
                b"]" + b"2a" * 50,
                b"\x8c\x02os\x8c\x06system\x93",
                b"\x82\x01",
                b"Qx",
            ]
        )
        place = rng.choice(positions)
        content = content[:place] + new + content[place + rng.choice([0, 1]) :]
        said.append(f"{new[:30]!r} x {len(new)} at {place}")
    kept.write_bytes(content)
    return f"{kept.name} {', '.join(said)}"


def read_pickle(folder):
    (path,) = folder.iterdir()
    arrays = release_pickle.read_release_pickle(path)
    t, s, h, w = arrays["imgs"].shape
    assert arrays["imgs"].dtype == np.uint8
    assert arrays["coords"].shape[:2] == (t, s) and np.isfinite(arrays["coords"]).all()
    moving_mnist.convert((path,), folder / "out.h5")
    with hdf5.open_split(folder / "out.h5", "training", optional=hdf5.MEMBERS) as data:
        check_members(data.read(slice(None)), t, s)


def make_digits(folder):
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
        path = rng.choice(sorted(kept.iterdir()))
        content = path.read_bytes()
        if kept.name == "gz":
            path.write_bytes(gzip.compress(damage(rng, gzip.decompress(content))[0], 1))
        elif path.suffix == ".npz":
            with ZipFile(path) as old:
                entries = {name: old.read(name) for name in old.namelist()}
            with ZipFile(path, "w", ZIP_DEFLATED) as new:
                for name, value in entries.items():
                    new.writestr(name, damage(rng, value)[0] if rng.random() < 0.7 else value)
        return f"{kept.name} inside"
    return f"{kept.name} {damage_file(rng, kept)}"


def read_digits(folder):
    (kept,) = folder.iterdir()
    path = kept / ("digits.npz" if (kept / "digits.npz").exists() else "digits")
    digits = moving_mnist.read_digits(path, None if path.suffix else kept / "labels")
    assert digits.images.shape == (len(digits.labels), 28, 28) and digits.labels.max() <= 9
