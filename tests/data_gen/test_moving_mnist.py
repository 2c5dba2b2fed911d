"""Moving MNIST: digits, motion, drawing, and the reader of the release's pickles."""

import gzip
import os
import pickle
import struct

import h5py
import numpy as np
import pytest

from data_gen import hdf5, moving_mnist
from data_gen.errors import UserError
from data_gen.moving_mnist import Digits, MovingMNIST, crop_tightly, hold_out, make_block, read_digits, write
from data_gen.release_pickle import read_release_pickle
from tests.data_helpers import interrupt, run_command
from tests.mnist_helpers import Danger, idx, python2_pickle, release_data, user_digits


@pytest.fixture(scope="module")
def digits():
    return moving_mnist.packaged_digits()


@pytest.fixture(scope="module")
def block(digits):
    return make_block(hold_out(digits, "training"), 300, 10, np.random.default_rng(0))


def test_packaged_digits_are_mnist(digits):
    assert digits.images.shape == (5000, 28, 28) and digits.images.max() == 255
    np.testing.assert_array_equal(np.bincount(digits.labels), [500] * 10)


def test_no_digit_is_in_two_splits(digits):
    splits = {name: {image.tobytes() for image in hold_out(digits, name).images} for name in hdf5.SPLITS}
    assert [len(hold_out(digits, name).labels) for name in hdf5.SPLITS] == [4000, 500, 500]
    assert not splits["training"] & splits["test"] and not splits["training"] & splits["validation"]
    for name in hdf5.SPLITS:  # shuffled: the package's digits are sorted by class
        assert len(np.unique(hold_out(digits, name).labels)) == 10


def test_counts_are_unary_and_uniform(block):
    assert block["nums"].shape == (1, 300, 3)
    n = block["nums"][0].sum(-1)
    np.testing.assert_array_equal(block["nums"][0], np.arange(3) < n[:, None])
    assert (np.abs(np.bincount(n, minlength=3) - 100) < 4 * (300 * 2 / 9) ** 0.5).all()


def test_first_frame_has_no_overlap_and_lies_inside(block):
    y, x, height, width = np.moveaxis(block["coords"][0].astype(int), -1, 0)  # each [S, 2]
    for s in np.flatnonzero(block["nums"][0, :, 1]):
        covered = np.zeros((50, 50), int)
        for d in range(2):
            covered[y[s, d] : y[s, d] + height[s, d], x[s, d] : x[s, d] + width[s, d]] += 1
        assert covered.max() == 1 and covered.sum() == (height[s] * width[s]).sum()
    assert (y + height).max() <= 50 and (x + width).max() <= 50
    np.testing.assert_array_equal(block["coords"][0], np.round(block["coords"][0]))


def test_boxes_hold_all_the_ink_and_fit_tightly_at_the_start(block):
    n = block["nums"][0].sum(-1)
    for t, s in np.ndindex(10, 300):
        outside = block["features"][t, s, ..., 0].copy()
        for y, x, height, width in np.round(block["coords"][t, s, : n[s]]).astype(int):
            if t == 0:
                box = outside[y : y + height, x : x + width]
                assert crop_tightly(box).shape == (height, width) == box.shape
        for y, x, height, width in np.round(block["coords"][t, s, : n[s]]).astype(int):
            outside[y : y + height, x : x + width] = 0
        assert not outside.any()
    assert not block["coords"][:, np.arange(2) >= n[:, None]].any()
    assert not block["labels"][np.arange(2) >= n[:, None]].any()


def test_labels_name_the_digits_drawn(digits, block):
    known = {}
    for image, label in zip(*hold_out(digits, "training")):
        known.setdefault(image.tobytes(), set()).add(label)
    for s in np.flatnonzero(block["nums"][0, :, 0])[:100]:
        y, x, height, width = block["coords"][0, s, 0].astype(int)
        assert block["labels"][s, 0] in known[block["features"][0, s, y : y + height, x : x + width, 0].tobytes()]


def test_motion_keeps_to_the_canvas_and_the_speed_limit():
    corners = np.random.default_rng(0).uniform(0, 50, (500, 2, 2))
    path = moving_mnist.trajectories(corners, 40, np.random.default_rng(1))
    np.testing.assert_allclose(path[0], corners, rtol=1e-6)
    assert path.min() >= 0 and path.max() <= 50
    assert np.abs(np.diff(path, axis=0)).max() <= 10 + 1e-4
    # Away from the bounds the acceleration is nearly constant, up to 3, as long as the speed is not clipped.
    step = np.diff(path, axis=0)
    free = ((path[:4] > 10) & (path[:4] < 40)).all(0) & (np.abs(step[:4]) < 6).all(0)
    change = np.diff(step, axis=0)[:2, free]
    assert free.sum() > 20 and np.abs(change).max() < 3.1
    np.testing.assert_allclose(change[1], change[0], atol=0.06)  # noise of .01
    assert np.abs(change[1] - change[0]).max() > 1e-3


def test_reflection_mirrors_the_way_beyond_the_bound():
    class Fixed:
        def uniform(self, low, high, shape):
            return np.full(shape, 0.5 if high == 3 else -4.0)

        def normal(self, mean, sd, shape):
            return np.zeros(shape)

    path = moving_mnist.trajectories(np.full((1, 1, 2), 2.0), 4, Fixed())[:, 0, 0, 0]
    # v = -3.5, a = .5: 2 -> -1.5, mirrored 1.5, v = 3, a = -.5: -> 4.5, v = 2.5 -> 7
    np.testing.assert_allclose(path, [2, 1.5, 4.5, 7])


def test_the_brighter_pixel_wins_and_edges_cut():
    canvas = np.zeros((50, 50), np.uint8)
    moving_mnist.draw(canvas, np.full((4, 4), 100, np.uint8), np.array([10.4, 10.6]))
    moving_mnist.draw(canvas, np.array([[50, 200]], np.uint8), np.array([10, 11]))
    moving_mnist.draw(canvas, np.full((4, 4), 9, np.uint8), np.array([48, 50]))
    moving_mnist.draw(canvas, np.full((4, 4), 7, np.uint8), np.array([48, 30]))
    assert canvas[10, 11:15].tolist() == [100, 200, 100, 100] and canvas[13, 11] == 100 and canvas[14, 11] == 0
    assert (canvas == 9).sum() == 0 and (canvas == 7).sum() == 8


def small(**changes):
    return MovingMNIST(**{"training": 260, "validation": 5, "test": 0, "n_frames": 3} | changes)


def test_same_seed_same_bytes(tmp_path, digits):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(small(seed=seed), tmp_path / name, digits)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b and a != c


def test_command_line_writes_what_the_pipeline_reads(tmp_path):
    from data_gen.pipeline import batches

    out = tmp_path / "mnist.h5"
    result = run_command("data_gen.moving_mnist", "--out", out, "--training", "20", "--validation", "4", "--test", "0")
    assert result.returncode == 0, result.stderr
    with hdf5.open_split(out, "training", members=["labels", "nums", "coords"]) as split:
        read = split.read(slice(None))
        assert split.image_shape == (50, 50, 1) and split.n_frames == 10 and split.stated and split.white == 255
    batch = next(iter(batches(out, "training", 20, 10, shuffle=False)))
    np.testing.assert_allclose(batch.observations, read["features"][..., 0] / 255, atol=1e-6)
    np.testing.assert_array_equal(batch.counts, np.tile(read["nums"][0].sum(-1), (10, 1)))


def test_interrupted_run_leaves_nothing(tmp_path):
    assert interrupt("SIGTERM", tmp_path, "data_gen.moving_mnist", "--out", tmp_path / "mnist.h5") == 143
    assert not list(tmp_path.iterdir())


def test_the_users_own_digits_are_read(tmp_path):
    images, labels = user_digits()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    (tmp_path / "i.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "l.gz").write_bytes(gzip.compress(idx(labels)))
    np.savez(tmp_path / "keras.npz", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1])
    np.savez_compressed(tmp_path / "plain.npz", images=images, labels=labels.astype(np.int64))
    for got in (
        read_digits(tmp_path / "train-images-idx3-ubyte"),
        read_digits(tmp_path / "i.gz", tmp_path / "l.gz"),
        read_digits(tmp_path / "keras.npz"),
        read_digits(tmp_path / "plain.npz"),
    ):
        np.testing.assert_array_equal(got.images, images)
        np.testing.assert_array_equal(got.labels, labels)


def test_files_that_are_not_digits_are_one_line(tmp_path):
    images, labels = user_digits()
    np.savez(tmp_path / "names.npz", a=images)
    np.savez(tmp_path / "shape.npz", images=images[:, :9], labels=labels)
    np.savez(tmp_path / "pairs.npz", images=images, labels=labels[:9])
    np.savez(tmp_path / "labels.npz", images=images, labels=labels + 100)
    np.savez(tmp_path / "bits.npz", images=np.minimum(images, 1), labels=labels)
    np.savez(tmp_path / "danger.npz", images=np.array([Danger(tmp_path / "made")]), labels=labels)
    (tmp_path / "cut").write_bytes(idx(images)[:1000])
    (tmp_path / "huge").write_bytes(idx(images)[:4] + b"\xff" * 12)
    (tmp_path / "text").write_text("hello")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(idx(images))[:500])
    (tmp_path / "l").write_bytes(idx(labels))
    cases = [
        "names.npz",
        "shape.npz",
        "pairs.npz",
        "labels.npz",
        "bits.npz",
        "danger.npz",
        "cut",
        "huge",
        "text",
        "cut.gz",
        "gone",
    ]
    for name in cases:
        with pytest.raises(UserError, match=name) as error:
            read_digits(tmp_path / name, tmp_path / "l")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--digit_labels"):
        read_digits(tmp_path / "cut")
    assert not (tmp_path / "made").exists()
    with pytest.raises(UserError, match="expected at least 2"):
        hold_out(Digits(images[:10], labels[:10]), "test")


@pytest.mark.parametrize(
    "dump",
    [
        python2_pickle,
        lambda data: python2_pickle(data, "F"),
        lambda data: pickle.dumps(data, 2),
        lambda data: pickle.dumps(data, 4),
        lambda data: python2_pickle(
            data | {"coords": data["coords"].astype(">f8"), "nums": data["nums"].astype("<f4")}
        ),
    ],
    ids=["python2", "fortran", "python3 protocol 2", "python3 protocol 4", "other types"],
)
def test_release_pickles_are_read(tmp_path, dump):
    data = release_data()
    (tmp_path / "train.pickle").write_bytes(dump(data))
    got = read_release_pickle(tmp_path / "train.pickle")
    assert set(got) == set(data)
    for name in data:
        np.testing.assert_array_equal(got[name], data[name])


def test_release_pickles_become_one_hdf5_file(tmp_path):
    train, valid = release_data(260), release_data(3)
    (tmp_path / "train.p").write_bytes(python2_pickle(train))
    (tmp_path / "valid.p").write_bytes(python2_pickle(valid))
    result = run_command(
        "data_gen.moving_mnist",
        "--from_pickle",
        tmp_path / "train.p",
        tmp_path / "valid.p",
        "--out",
        tmp_path / "out.h5",
    )
    assert result.returncode == 0, result.stderr
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == ["training", "validation"]
    for split, data in (("training", train), ("validation", valid)):
        with hdf5.open_split(tmp_path / "out.h5", split, members=["labels", "nums", "coords"]) as opened:
            read = opened.read(slice(None))
            assert opened.stated and opened.white == 255
        np.testing.assert_array_equal(read["features"][..., 0], data["imgs"])
        np.testing.assert_array_equal(read["labels"], data["labels"])
        np.testing.assert_array_equal(read["nums"], data["nums"])
        np.testing.assert_allclose(read["coords"], data["coords"], rtol=1e-6)


MALICIOUS = {
    "system": b"cos\nsystem\n(S'touch made'\ntR.",
    "eval": b"\x80\x02c__builtin__\neval\n(X\x04\x00\x00\x00exittR.",
    "numpy's own load": b"cnumpy\nload\n(S'made'\ntR.",
    "an attribute of an allowed name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
    "inst": b"(S'touch made'\nios\nsystem\n.",
    "too long a string": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "too long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.",
    "a byte array of protocol 5": b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b"abc.",
    "a huge memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "nothing": b"",
    "text": b"hello, world",
    "not a dictionary": pickle.dumps([1, 2], 2),
    "a dictionary of something else": pickle.dumps({"imgs": 1}, 2),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_pickles_are_refused_in_one_line_without_running(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pickle").write_bytes(MALICIOUS[name])
    with pytest.raises(UserError, match="bad.pickle: refused") as error:
        read_release_pickle("bad.pickle")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["bad.pickle"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"imgs": Danger("made")}, "mkdir"),
        ({"labels": np.array([[Danger("made"), 1]] * 7)}, "mkdir"),
        ({"labels": np.array([["a", None]] * 7, object)}, "not an array of numbers"),
        ({"imgs": np.zeros((4, 7, 50, 50))}, "imgs of type float64"),
        ({"imgs": np.zeros((4, 6, 50, 50), np.uint8)}, "labels of shape"),
        ({"nums": np.zeros((1, 3, 7), np.uint8)}, "nums of shape"),
        ({"nums": np.full((1, 7, 3), 2, np.uint8)}, "nums outside"),
        ({"coords": np.full((4, 7, 2, 4), np.nan)}, "coords is not finite"),
        ({"coords": [1, 2, 3]}, "not an array"),
    ],
)
def test_wrong_contents_of_a_pickle_are_one_line(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pickle").write_bytes(pickle.dumps(release_data() | change, 2))
    result = (
        run_command("data_gen.moving_mnist", "--from_pickle", tmp_path / "bad.pickle", "--out", tmp_path / "out.h5")
        if "mkdir" in message
        else None
    )
    if result:
        assert result.returncode == 1
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and message in result.stderr
    with pytest.raises(UserError, match=message):
        read_release_pickle("bad.pickle")
    assert os.listdir(tmp_path) == ["bad.pickle"]


def test_a_shape_that_the_bytes_do_not_fill_is_refused(tmp_path):
    data = python2_pickle(release_data())
    (tmp_path / "bad.pickle").write_bytes(data.replace(b"J\x07\x00\x00\x00", b"J\x07\x00\x00\x7f"))
    with pytest.raises(UserError, match="bytes"):
        read_release_pickle(tmp_path / "bad.pickle")
