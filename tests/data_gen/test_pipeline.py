"""The tf.data pipeline: order, resuming, cropping, counts, streaming."""

import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest
import tensorflow as tf

from data_gen import hdf5, pipeline
from data_gen.bouncing_balls import BouncingBalls, write
from data_gen.errors import UserError
from data_gen.pipeline import batches, count_visible, crop_slices, mean_image
from tests.data_helpers import ROOT

S, T = 2230, 4


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Sequence s, frame t shows s in the first pixel, and t in the next, of each image; more than two windows long."""
    path = tmp_path_factory.mktemp("numbered") / "numbered.h5"
    features = np.zeros((T, S, 6, 8, 1), np.float32)
    features[:, :, 2, 3, 0] = np.arange(S) / 4096
    features[:, :, 2, 4, 0] = np.arange(T)[:, None] / 4096
    with h5py.File(path, "w") as file:
        file.create_dataset("training/features", data=features, chunks=(T, 50, 6, 8, 1), compression="gzip")
    return path


def ids(dataset):
    return [(batch.observations.numpy()[0, :, 2, 3] * 4096).astype(int) for batch in dataset]


def stream(path, **changes):
    return batches(path, "training", **{"batch_size": 32, "n_frames": T, "crop": None, "seed": 1} | changes)


def test_elements_have_the_promised_form(numbered):
    batch = next(iter(stream(numbered, n_frames=3)))
    assert isinstance(batch, pipeline.Batch)
    assert batch.observations.shape == (3, 32, 6, 8) and batch.observations.dtype == tf.float32
    assert batch.counts.shape == (3, 32) and batch.counts.dtype == tf.int32
    assert (batch.counts.numpy() == -1).all()  # no groups, no nums
    np.testing.assert_array_equal(batch.observations.numpy()[:, :, 2, 4] * 4096, np.tile(np.arange(3)[:, None], 32))


def test_an_epoch_shows_no_sequence_twice_and_epochs_differ(numbered):
    per_epoch = S // 32
    shown = ids(stream(numbered).take(2 * per_epoch))
    first, second = np.concatenate(shown[:per_epoch]), np.concatenate(shown[per_epoch:])
    for epoch in (first, second):
        assert len(np.unique(epoch)) == len(epoch) == per_epoch * 32
    assert (first != second).any()


def test_every_sequence_is_shown_once_without_repeating(numbered):
    dataset = stream(numbered, repeat=False)
    shown = ids(dataset)
    assert [len(batch) for batch in shown] == [32] * (S // 32) + [S % 32]
    np.testing.assert_array_equal(np.sort(np.concatenate(shown)), np.arange(S))
    np.testing.assert_array_equal(np.concatenate(ids(stream(numbered, repeat=False, shuffle=False))), np.arange(S))


def test_shuffling_mixes_far_places(numbered):
    first = ids(stream(numbered).take(1))[0]
    assert len(np.unique(first // 50)) > 8 and np.ptp(first) > S / 3


def test_same_seed_same_order_and_other_seed_another(numbered):
    one, two, other = (ids(stream(numbered, seed=seed).take(5)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert (np.array(one) != np.array(other)).any()


@pytest.mark.parametrize("start", [1, 31, 33, 68, 69, 70, 141])
def test_resuming_goes_on_exactly_where_it_stopped(numbered, start):
    through = ids(stream(numbered).skip(start).take(3))
    np.testing.assert_array_equal(ids(stream(numbered, start=start).take(3)), through)


def test_resuming_an_evaluation_keeps_its_end(numbered):
    np.testing.assert_array_equal(
        np.concatenate(ids(stream(numbered, repeat=False, shuffle=False, start=68))), np.arange(68 * 32, S)
    )


def test_the_order_does_not_depend_on_the_number_of_frames(numbered):
    short, whole = (ids(stream(numbered, n_frames=n).take(80)) for n in (1, T))
    np.testing.assert_array_equal(short, whole)


def test_reading_does_not_depend_on_the_working_directory(numbered, tmp_path, monkeypatch):
    monkeypatch.chdir(numbered.parent)
    dataset = stream(pathlib.Path(numbered.name))
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(ids(dataset.take(2)), ids(stream(numbered).take(2)))


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    path = tmp_path_factory.mktemp("balls") / "balls.h5"
    write(BouncingBalls(n_balls=(2, 3, 4), n_frames=6, training=70, validation=5, test=0), path)
    return path


def test_crops_and_counts_are_those_of_the_file(balls):
    batch = next(iter(batches(balls, "training", 70, 6, shuffle=False, repeat=False)))
    with h5py.File(balls) as file:
        features, groups = file["training/features"][..., 0], file["training/groups"][..., 0]
    np.testing.assert_array_equal(batch.observations.numpy(), features[:, :, 7:57, 7:57].astype(np.float32))
    counts = batch.counts.numpy()
    for t, s in np.ndindex(6, 70):
        assert counts[t, s] == len(set(groups[t, s, 7:57, 7:57].ravel()) - {0})
    assert len(np.unique(counts)) > 1
    # In a crop as small as this many balls are outside.
    small = next(iter(batches(balls, "training", 70, 6, crop=20, shuffle=False, repeat=False))).counts.numpy()
    assert (small <= counts).all() and (small < counts).any()


def test_distinct_owners_are_counted():
    groups = np.zeros((2, 3, 4, 4), np.uint8)
    groups[0, 0, 0] = 1, 7, 7, 200
    assert count_visible(groups).tolist() == [[3, 0, 0], [0, 0, 0]]


def test_colour_keeps_its_axis(tmp_path):
    with h5py.File(tmp_path / "colour.h5", "w") as file:
        file["training/features"] = np.full((2, 3, 8, 8, 3), 51, np.uint8)
        file["training/nums"] = np.tile(np.uint8([1, 1, 0]), (1, 3, 1))
    batch = next(iter(batches(tmp_path / "colour.h5", "training", 3, 2, crop=4)))
    assert batch.observations.shape == (2, 3, 4, 4, 3)
    np.testing.assert_allclose(batch.observations, 0.2)
    assert (batch.counts.numpy() == 2).all()


def test_central_crop():
    assert crop_slices(64, 64, 50) == (slice(7, 57), slice(7, 57))
    assert crop_slices(64, 48, None) == (slice(0, 64), slice(0, 48))
    assert crop_slices(50, 50, 50) == (slice(0, 50), slice(0, 50))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mean_image_is_the_mean_over_the_first_frames_of_all_sequences(tmp_path, dtype):
    """Intensities change from frame to frame and from sequence to sequence, and there are more than 2,000 sequences."""
    features = np.random.default_rng(0).integers(0, 60, (3, 2100, 6, 4, 1)).astype(np.float64)
    features += 60 * np.arange(3).reshape(3, 1, 1, 1, 1) + np.linspace(0, 70, 2100).reshape(1, -1, 1, 1, 1)
    features = features.astype(np.uint8)
    with h5py.File(tmp_path / "drift.h5", "w") as file:
        file["training/features"] = features if dtype == np.uint8 else features.astype(dtype) / 255
    for n_frames in (1, 2, 3, None):
        mean = mean_image(tmp_path / "drift.h5", n_frames=n_frames, crop=4)
        assert mean.shape == (4, 4, 1) and mean.dtype == np.float32
        np.testing.assert_allclose(mean, features[:n_frames, :, 1:5].mean((0, 1), np.float64) / 255, atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 71}, "70 sequences, fewer than a batch of 71"),
        ({"n_frames": 7}, "6 frames per sequence, 7 were asked for"),
        ({"crop": 65}, "crop 65"),
        ({"crop": 0}, "crop 0"),
        ({"split": "test"}, "no split 'test'"),
        ({"path": "/nowhere/x.h5"}, "/nowhere/x.h5: no such file"),
    ],
)
def test_bad_requests_fail_at_once_in_one_line(balls, changes, message):
    with pytest.raises(UserError, match=message) as error:
        batches(**{"path": balls, "split": "training", "batch_size": 5, "n_frames": 3} | changes)
    assert "\n" not in str(error.value)


def test_a_window_at_most_is_read_ahead(numbered, monkeypatch):
    read = []
    original = hdf5.Split.read
    monkeypatch.setattr(
        hdf5.Split,
        "read",
        lambda self, wanted, *rest: (read.append(len(np.arange(S)[wanted])), original(self, wanted, *rest))[1],
    )
    next(iter(stream(numbered)))
    assert sum(read) <= pipeline.WINDOW + 1 and max(read) <= 50


@pytest.mark.slow
def test_damage_found_while_streaming_is_one_line_for_the_user(tmp_path):
    path = tmp_path / "nan.h5"
    features = np.zeros((2, 40, 8, 8, 1), np.float32)
    features[0, 30] = np.nan
    with h5py.File(path, "w") as file:
        file["training/features"] = features
    program = (
        "import sys; from data_gen.console import run_cli; from data_gen.pipeline import batches\n"
        "run_cli(lambda: [None for _ in batches(sys.argv[1], 'training', 4, 2, crop=None).take(20)] and None)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert result.returncode == 1
    assert f"error: {path}: training/features: values from nan" in result.stderr
    assert "Traceback" not in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_program_may_end_while_batches_are_read_ahead(numbered):
    program = (
        "import sys, time; from data_gen import pipeline; read = pipeline._read\n"
        "def slowly(*arguments):\n"
        "    time.sleep(1)\n"
        "    return read(*arguments)\n"
        "pipeline._read = slowly; data = iter(pipeline.batches(sys.argv[1], 'training', 32, 2, crop=None))\n"
        "for _ in range(31): next(data)     # the next window of 1,024 sequences is being read now\n"
        "print('ended')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, numbered], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert result.stdout == "ended\n" and result.returncode == 0
