"""The index of a checkpoint, read and checked here: a table of LevelDB's format.

TensorFlow raises an exception for a wrong checksum; but an index with right checksums and wrong content crashes the
whole process. So it is read here first.
"""

import pathlib
import struct
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import tensor_bundle_pb2

_FOOTER_BYTES = 48
_MAX_INDEX_BYTES = 64 * 2**20


def check_index(prefix: str) -> None:
    """Raises one of `DAMAGE` unless the index is sound and every value lies inside the data files."""
    index = pathlib.Path(f"{prefix}.index")
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise ValueError(f"an index of more than {_MAX_INDEX_BYTES // 2**20} MiB")
    entries = _table(index.read_bytes())
    key, value = next(entries, (None, b""))
    header = tensor_bundle_pb2.BundleHeaderProto.FromString(value)
    if key != b"" or header.num_shards < 1 or header.endianness:
        raise ValueError("an index without a sound header")
    for key, value in entries:
        entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
        name, shape = key.decode(), [axis.size for axis in entry.shape.dim]
        data = pathlib.Path(f"{prefix}.data-{entry.shard_id:05d}-of-{header.num_shards:05d}")
        count = int(np.prod(np.array(shape, object))) if min(shape, default=0) >= 0 else -1
        dtype = tf.as_dtype(entry.dtype)
        is_text = dtype == tf.string
        if (
            entry.slices
            or entry.shape.unknown_rank
            or not (is_text or dtype.is_bool or dtype.is_floating or dtype.is_integer or dtype.is_complex)
        ):
            raise ValueError(f"{name} is of a kind that is not supported")
        if not data.exists():
            raise ValueError(f"{data.name} is missing")
        with open(data, "rb"):  # a lack of permission is no damage
            pass
        fits = 0 <= count <= entry.size if is_text else count >= 0 and count * dtype.size == entry.size
        if not fits or len(shape) > 8 or entry.offset < 0 or entry.offset + entry.size > data.stat().st_size:
            raise ValueError(f"{name} of shape {shape} does not lie in {data.name}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    value = shift = 0
    while shift < 64:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a number without end in the index")


def _table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a table: blocks of them, a block that says where these are, and a footer."""
    _, at = _varint(table, len(table) - _FOOTER_BYTES)  # of a block that TensorFlow leaves empty
    _, at = _varint(table, at)
    offset, at = _varint(table, at)
    size, _ = _varint(table, at)
    last = None
    for _, handle in _block(table, offset, size):
        offset, at = _varint(handle, 0)
        size, _ = _varint(handle, at)
        for key, value in _block(table, offset, size):
            if last is not None and key <= last:
                raise ValueError("keys of the index are not in order")
            last = key
            yield key, value


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a block: each key says how much it shares with the one before."""
    if offset + size >= len(table) or table[offset + size]:
        raise ValueError("a block of the index beyond its end, or compressed")
    block = table[offset : offset + size]
    (n_restarts,) = struct.unpack("<I", block[-4:])
    end = size - 4 - 4 * n_restarts
    restarts = set(struct.unpack(f"<{n_restarts}I", block[end:-4]))
    at, key = 0, b""
    while at < end:
        place = at
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + unshared + length > end or (place in restarts and shared):
            raise ValueError("a damaged block of the index")
        restarts.discard(place)
        key = key[:shared] + block[at : at + unshared]
        at += unshared + length
        yield key, block[at - length : at]
    if restarts - {0}:
        raise ValueError("a damaged block of the index")
