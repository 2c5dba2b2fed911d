"""Checkpoints of ours, of the original program and of safetensors."""

import functools
import shutil
import struct

import numpy as np

from data_gen.errors import UserError
from tests.fuzz.damage import damage_file, damage_json


def damage_index(rng, path):
    """Damages a block of a checkpoint's index and corrects its checksum, so that readers see the damage."""
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
    blocks = [(0, min(offset for offset, _ in handles) - 5), *handles]  # one data block, then the two of the footer
    offset, size = rng.choice([blocks[0]] * 5 + blocks[1:])
    block = bytearray(content[offset : offset + size])
    said = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        i, j = rng.randrange(size), rng.choice([1, 1, 2, 4])
        block[i : i + j] = rng.choice([rng.randbytes(j), b"\xff" * j, bytes(j)])[: size - i]
        said.append(f"{i}:{i + j}")
    block = bytes(block) + content[offset + size : offset + size + 1]
    path.write_bytes(content[:offset] + block + struct.pack("<I", masked_crc32c(block)) + content[offset + size + 5 :])
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
            values[name] = np.zeros(
                rng.choice([(), (1,), (0,), (2, 3), (*value.shape, 1), value.shape[1:], (1,) * 8]),
                np.float32 if value.dtype == object else value.dtype,
            )
        elif kind == "value":
            with np.errstate(all="ignore"):
                values[name] = np.full(value.shape, rng.choice([np.nan, np.inf, -np.inf, 1e30, -1, 2.0**62])).astype(
                    value.dtype
                )
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
    (flags,) = folder.rglob("flags.json")
    kind = rng.choice(["bytes"] * 3 + ["index"] * 4 + ["values"] * 4 + ["files", "flags"])
    if kind == "bytes":
        return damage_file(rng, folder)
    if kind == "files":
        return damage_checkpoint_files(rng, folder)
    if kind == "flags":
        return damage_json(rng, flags)
    chosen = indices if rng.random() < 0.5 else [rng.choice(indices)]  # all: no intact one to fall back to
    state, said = rng.getstate(), []
    for index in chosen:
        rng.setstate(state)
        said.append(damage_index(rng, index) if kind == "index" else damage_values(rng, index.with_suffix("")))
    return "; ".join(said)


_KEPT = {}


def _quick_models():
    """Makes a model of a configuration once; loading assigns all its variables anew."""
    from sqair import model as sqair_model
    from sqair.model import SQAIR

    if "models" not in _KEPT:
        sqair_model.SQAIR = _KEPT["models"] = functools.lru_cache(10)(SQAIR)


def make_checkpoint(folder):
    from tests.run_helpers import make_run

    make_run(folder / "run", steps=(5, 8))


def check_model(model):
    for variable in model.trainable_variables:
        assert np.isfinite(variable.numpy()).all(), variable.name


def read_checkpoint(folder):
    from sqair.runs import loading, saving
    from tests.run_helpers import make_state

    (folder,) = folder.iterdir()
    _quick_models()
    if "state" not in _KEPT:
        _KEPT["state"] = make_state()
    state, problem = _KEPT["state"], None
    try:
        saving.RunCheckpoints(folder, state, 2).restore()
        check_model(state.model)
        assert 0 <= int(state.step) < 2**31, int(state.step)
    except UserError as error:
        problem = error
    for which in ("best", "newest"):
        run = loading.load_run(folder, which)
        check_model(run.model)
        assert 0 <= run.step < 2**31
        optimizer = loading.load_optimizer(run)
        for variable in (v for slot in optimizer.slots.values() for v in slot):
            assert np.isfinite(variable.numpy()).all()
    if problem:
        raise problem


def read_checkpoint_values(folder):
    from sqair.runs.values import read_values

    for index in sorted(folder.rglob("*.index")):
        for name, value in read_values(str(index.with_suffix(""))).items():
            assert value.dtype.kind != "f" or np.isfinite(value).all() or "best_bound" in name


def make_original(folder):
    from sqair import export
    from sqair.runs import loading
    from tests.run_helpers import make_run

    make_run(folder / "ours", steps=(5, 8))
    for which in ("5", "8"):
        export.export(loading.load_run(folder / "ours", which), folder / "run")
    shutil.rmtree(folder / "ours")


def read_original(folder):
    from sqair.runs import loading

    (folder,) = folder.iterdir()
    _quick_models()
    run = loading.load_run(folder)
    check_model(run.model)
    assert 0 <= run.step < 2**31
    loading.load_optimizer(run)


def make_safetensors(folder):
    from sqair import export
    from sqair.runs import loading
    from tests.run_helpers import make_run

    make_run(folder / "ours")
    export.save_safetensors(loading.load_run(folder / "ours"), folder / "model")
    shutil.rmtree(folder / "ours")


def damage_safetensors(rng, folder):
    (folder,) = folder.iterdir()
    for name in ("README.md", "card.json"):  # for people; not read where a model is loaded
        (folder / name).unlink()
    kind = rng.choice(["bytes", "bytes", "header", "header", "header", "config", "files"])
    if kind == "bytes":
        return damage_file(rng, folder)
    if kind == "config":
        return damage_json(rng, folder / "config.json")
    if kind == "files":
        return damage_checkpoint_files(rng, folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = folder / "header"
    header.write_bytes(content[8 : 8 + size])
    said = damage_json(rng, header)
    new = header.read_bytes()
    header.unlink()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + size :])
    return said


def read_safetensors(folder):
    from sqair.runs import loading

    (folder,) = folder.iterdir()
    _quick_models()
    run = loading.load_run(folder)
    check_model(run.model)
