"""The user's own digits, pickles in the form of the SQAIR release's, and a malicious one."""

import os
import struct

import numpy as np


def user_digits():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 28, 28), np.uint8)
    images[:, :4] = 0
    return images, rng.integers(0, 10, 40).astype(np.uint8)


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


class Danger:
    """Makes a folder if it is unpickled without protection."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def python2_pickle(arrays, order="C"):
    """The bytes of Python 2's cPickle with protocol 2 for a dictionary of arrays: all strings are byte strings.

    Written out by hand, as Python 3 cannot make them.
    """

    def string(value):
        return b"T" + struct.pack("<i", len(value)) + value

    def integer(value):
        return b"J" + struct.pack("<i", value)

    def array(value):
        shape = b"(" + b"".join(map(integer, value.shape)) + b"t"
        dtype = (
            b"cnumpy\ndtype\n("
            + string(value.dtype.str[1:].encode())
            + integer(0)
            + integer(1)
            + b"tR("
            + integer(3)
            + string(value.dtype.str[:1].encode())
            + b"NNN"
            + integer(-1)
            + integer(-1)
            + integer(0)
            + b"tb"
        )
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n("
            + integer(0)
            + b"t"
            + string(b"b")
            + b"tR("
            + integer(1)
            + shape
            + dtype
            + (b"\x89" if order == "C" else b"\x88")
            + string(value.tobytes(order))
            + b"tb"
        )

    items = b"".join(string(name.encode()) + array(value) for name, value in arrays.items())
    return b"\x80\x02}(" + items + b"u."


def release_data(n_sequences=7, n_frames=4):
    rng = np.random.default_rng(0)
    n = rng.integers(0, 3, n_sequences)
    return {
        "imgs": rng.integers(0, 256, (n_frames, n_sequences, 50, 50), np.uint8),
        "labels": rng.integers(0, 10, (n_sequences, 2), np.uint8),
        "nums": (np.arange(3) < n[:, None])[None].astype(np.uint8),
        "coords": rng.uniform(0, 50, (n_frames, n_sequences, 2, 4)),
    }
