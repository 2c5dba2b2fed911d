"""eval.truth and hdf5.OBJECTS: where objects are, according to the file's attributes."""

import attrs
import h5py
import numpy as np
import pytest

from data_gen import bouncing_balls, hdf5, moving_mnist
from data_gen.errors import UserError
from eval.truth import OBJECTS, Source

T = 3


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    path = tmp_path_factory.mktemp("truth") / "balls.h5"
    settings = attrs.evolve(bouncing_balls.PRESETS["balls4mass64"], n_frames=T, training=0, validation=0, test=6)
    bouncing_balls.write(settings, path)
    return path


def read(path, size=50):
    with Source(path, "test", (size, size, 1), T) as source:
        return next(source.batches(source.n_sequences))[1], source.notes


def altered(path, to, change):
    to.write_bytes(path.read_bytes())
    with h5py.File(to, "r+") as file:
        change(file)
    return to


def test_every_kind_of_objects_has_its_geometry():
    assert OBJECTS.keys() == hdf5.OBJECTS.keys()


def test_a_file_says_what_its_objects_are_and_an_older_one_is_recognised(balls, tmp_path):
    with hdf5.open_split(balls, "test") as split:
        assert split.objects == "discs"
    said, _ = read(balls)
    older, notes = read(altered(balls, tmp_path / "older.h5", lambda file: file.attrs.pop("objects")))
    assert np.isfinite(said.box).all() and not notes
    for name in ("centre", "box", "pixels"):
        np.testing.assert_array_equal(getattr(older, name), getattr(said, name))


def test_discs_lie_on_their_pixels_in_frames_of_any_size(balls, tmp_path):
    """The frames without their outermost 8 pixels, in a separate file; without the attribute nothing is known."""

    def cut(file):
        for name in ("features", "groups", "collisions"):
            values = file[f"test/{name}"][:, :, 8:56, 8:56]
            del file[f"test/{name}"]
            file[f"test/{name}"] = values
        file["test/positions"][:] -= 8 * 15 / 64
        file.attrs["box"] = 15 * 48 / 64

    path = altered(balls, tmp_path / "cut.h5", cut)
    found, _ = read(path, 40)
    compared = 0
    for b, t, k in np.ndindex(6, T, 4):
        top, left, height, width = found.box[b, t, k]
        inside = top > 0 and left > 0 and top + height < 39 and left + width < 39
        rows, columns = np.nonzero(found.groups[b, t] == k + 1)
        if inside and len(rows) > 0.7 * height * width:  # hardly covered
            compared += 1
            np.testing.assert_allclose([rows.mean(), columns.mean()], found.centre[b, t, k], atol=0.3)
            assert abs(np.ptp(rows) + 1 - height) < 1.5 and abs(np.ptp(columns) + 1 - width) < 1.5
    assert compared > 5
    unknown, notes = read(altered(path, tmp_path / "unknown.h5", lambda file: file.attrs.pop("objects")), 40)
    assert unknown.box is None and "no positions" in notes[0]


def test_boxes_move_with_the_crop(tmp_path):
    ink = np.zeros((28, 28), np.uint8)
    ink[5:15, 4:16] = 255
    digits = moving_mnist.Digits(np.stack([ink] * 20), np.arange(20) % 10)
    moving_mnist.write(
        moving_mnist.MovingMNIST(n_frames=T, training=0, validation=0, test=8), tmp_path / "digits.h5", digits
    )
    whole, _ = read(tmp_path / "digits.h5")
    cropped, _ = read(tmp_path / "digits.h5", 40)
    np.testing.assert_allclose(cropped.box[..., :2], whole.box[..., :2] - 5)
    start, size = whole.box[..., :2], whole.box[..., 2:]
    seen = np.nan_to_num(np.minimum(start + size, 44.5) - np.maximum(start, 4.5))
    np.testing.assert_array_equal(cropped.pixels, seen.clip(0).prod(-1))
    assert np.isfinite(whole.box).any() and (cropped.pixels < whole.pixels).any()


@pytest.mark.parametrize("value", [np.bytes_("circles"), "discs", 3])
def test_an_unknown_kind_of_objects_is_refused(balls, tmp_path, value):
    path = altered(balls, tmp_path / "odd.h5", lambda file: file.attrs.create("objects", value))
    with pytest.raises(UserError, match="attribute objects is .*expected discs or boxes"):
        read(path)


def test_objects_without_their_members_are_unknown(balls, tmp_path):
    def change(file):
        del file["test/positions"]

    found, notes = read(altered(balls, tmp_path / "less.h5", change))
    assert found.box is None and "no positions" in notes[0]
