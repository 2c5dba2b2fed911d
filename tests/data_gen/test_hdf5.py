"""The HDF5 layout: what is written is read back, R-NEM's own files are read, all others end in a one-line error."""

import ctypes
import os
import re
import subprocess
import sys

import attrs
import h5py
import numpy as np
import pytest

from data_gen import hdf5
from data_gen import writer as data_gen_writer
from data_gen.bouncing_balls import BouncingBalls, make_block, write
from data_gen.errors import UserError
from data_gen.files import atomic_path
from eval.predictions import Predictions
from tests.data_helpers import ROOT

T, S = 23, 120
CASES = ROOT.parent / "shared" / "cases"


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    path = tmp_path_factory.mktemp("balls") / "balls.h5"
    write(BouncingBalls(n_balls=(2, 3), n_frames=T, training=S, validation=3, test=0, seed=5), path)
    return path


def rnem_file(path, features, **members):
    """A file as R-NEM wrote them: plain members in groups, whatever the types."""
    with h5py.File(path, "w") as file:
        group = file.create_group("training")
        for name, data in {"features": features, **members}.items():
            if data is not None:
                group.create_dataset(name, data=data, compression="gzip")
    return path


def test_every_member_is_read_back_as_it_was_made(balls):
    made = make_block(BouncingBalls(n_balls=(2, 3), n_frames=T, seed=5), S, np.random.default_rng([5, 0, 0]))
    with hdf5.open_split(balls, "training", members=made) as split:
        assert (split.n_sequences, split.n_frames, split.image_shape) == (S, T, (64, 64, 1))
        assert split.box == 15.0
        whole = split.read(slice(None))
    assert set(whole) == set(made)
    for name, data in made.items():
        np.testing.assert_array_equal(whole[name], data)


def test_parts_are_those_of_the_whole_in_any_order(balls):
    with hdf5.open_split(balls, "training", members=["groups", "positions", "n"]) as split:
        whole = split.read(slice(None))
        chosen = [118, 3, 51, 3, 49, 50]
        part = split.read(chosen, n_frames=11)
        for name in ("features", "groups", "positions"):
            np.testing.assert_array_equal(part[name], whole[name][:11, chosen])
        np.testing.assert_array_equal(part["n"], whole["n"][chosen])
        assert list(split.read(slice(40, 70, 7), 2, ["n"])) == ["n"]
        with pytest.raises(IndexError):
            split.read([S])
        with pytest.raises(UserError, match="23 frames.*24 were asked"):
            split.read([0], n_frames=24)


def test_ten_frames_are_stored_apart_from_the_rest(balls):
    with h5py.File(balls) as file:
        for name in ("features", "groups", "collisions"):
            assert file["training"][name].chunks == (10, 50, 64, 64, 1)
            assert file["validation"][name].chunks == (10, 3, 64, 64, 1)


def test_any_program_can_read_the_file_without_ours(balls):
    with h5py.File(balls) as file:
        assert list(file) == ["training", "validation"]
        features = file["training/features"][:, 118, ..., 0]
        np.testing.assert_array_equal(features > 0, file["training/groups"][:, 118, ..., 0] > 0)
        assert features.mean() == pytest.approx(0.07, abs=0.04)
        assert "n_balls" in file.attrs["settings"]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_rnem_files_of_any_type_give_the_same_images(tmp_path, dtype):
    rng = np.random.default_rng(0)
    features = rng.random((6, 5, 8, 8, 1)) < 0.3
    path = rnem_file(
        tmp_path / "r.h5",
        features.astype(dtype),
        groups=(features * 2).astype(np.float32),
        collisions=features.astype(np.float32),
        unheard_of=np.zeros(3),
    )
    with hdf5.open_split(path, "training", members=["groups", "collisions"], optional=["positions"]) as split:
        assert split.box == 15.0 and set(split.members) == {"features", "groups", "collisions"}
        read = split.read(slice(1, 4), n_frames=3)
        images = split.intensities(read["features"])
    assert images.dtype == np.float32 and read["groups"].dtype == np.uint8 and read["collisions"].dtype == bool
    np.testing.assert_array_equal(images, features[:3, 1:4])
    np.testing.assert_array_equal(read["groups"], features[:3, 1:4] * 2)
    np.testing.assert_array_equal(read["collisions"], features[:3, 1:4])


def test_bytes_up_to_255_become_intensities(tmp_path):
    features = np.zeros((2, 100, 4, 4, 3), np.uint8)
    features[0, 1, 0, 0] = 51, 102, 255
    with hdf5.open_split(rnem_file(tmp_path / "r.h5", features), "training") as split:
        np.testing.assert_allclose(split.intensities(split.read([1])["features"])[0, 0, 0, 0], [0.2, 0.4, 1])


def late_objects(dtype=np.uint8, highest=255):
    """More sequences and frames than any block, all black but the last frame of the last sequence."""
    features = np.zeros((25, 130, 4, 4, 1), dtype)
    features[24, 129, 1, 1] = highest
    return features


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("chunks", [None, (4, 8, 2, 4, 1), (25, 130, 4, 4, 1)])
def test_the_scale_is_that_of_the_whole_file_wherever_it_shows(tmp_path, monkeypatch, dtype, chunks):
    monkeypatch.setattr(hdf5, "_BLOCK_BYTES", 3000)  # a few frames of a few sequences at once
    for highest, white in ((255, 255), (2, 255), (1, 1), (0, 1)):
        path = tmp_path / f"{highest}.h5"
        with h5py.File(path, "w") as file:  # the split that is read lacks such values, another one has them
            file.create_dataset("training/features", data=np.ones((3, 4, 4, 4, 1), dtype))
            file.create_dataset("validation/features", data=np.ones((3, 4, 4, 4, 1), np.float32))
            file.create_dataset("test/features", data=late_objects(dtype, highest), chunks=chunks)
        for split, expected in (("training", 1 / white), ("validation", 1.0), ("test", highest / white)):
            with hdf5.open_split(path, split) as data:
                assert data.intensities(data.read(slice(None))["features"]).max() == np.float32(expected), split


def test_a_file_that_does_not_say_its_scale_is_read_once_until_it_changes(tmp_path, monkeypatch):
    path, read = tmp_path / "r.h5", []
    real = hdf5._exceeds_one
    monkeypatch.setattr(hdf5, "_exceeds_one", lambda *a: read.append(1) or real(*a))
    for n, highest in enumerate((1, 200)):
        rnem_file(path, np.full((3, 4, 4, 4, 1), highest, np.uint8))
        os.utime(path, (n, n))
        for _ in range(3):
            with hdf5.open_split(path, "training") as split:
                assert split.white == (255 if highest > 1 else 1)
        assert len(read) == n + 1


def stating(path, white, features):
    rnem_file(path, features)
    with h5py.File(path, "r+") as file:
        file.attrs["white"] = white
    return path


def test_the_scale_that_a_file_states_holds_and_a_value_beyond_it_is_refused(tmp_path):
    dark = stating(tmp_path / "dark.h5", 255, np.ones((3, 4, 4, 4, 1), np.uint8))
    with hdf5.open_split(dark, "training") as split:
        assert split.intensities(split.read([0])["features"]).max() == np.float32(1 / 255)
    wrong = stating(tmp_path / "wrong.h5", 1, late_objects())
    with hdf5.open_split(wrong, "training") as split:
        split.read(slice(0, 129))
        with pytest.raises(UserError, match="wrong.h5: training/features.*from 0 to 255, expected 0 to 1;.*white"):
            split.read([129])


@pytest.mark.parametrize(
    "white, dtype, message",
    [
        (7, np.uint8, "white is 7"),
        (255, np.float32, "holds float32"),
        ("255", np.uint8, "white is no number"),
        ([1, 1], np.uint8, "no number"),
    ],
)
def test_impossible_scales_are_one_line(tmp_path, white, dtype, message):
    path = stating(tmp_path / "r.h5", white, np.zeros((3, 4, 4, 4, 1), dtype))
    with pytest.raises(UserError, match=message):
        hdf5.open_split(path, "training")


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases here")
@pytest.mark.parametrize("split", hdf5.SPLITS)
def test_a_video_that_begins_black_is_not_taken_for_zeros_and_ones(split):
    with hdf5.open_split(CASES / "late_objects" / "late.h5", split) as data:
        images = data.intensities(data.read(slice(None))["features"])
    assert 0.5 < images.max() <= 1 and not images[:10].any()


def moving(n_sequences=20, n_frames=12, digits=False):
    """Squares [T, S, 16, 16, 1] of random places that move on by a pixel per frame, or jump anywhere as digits may."""
    rng = np.random.default_rng(0)
    places = (
        rng.integers(16, size=(n_frames, n_sequences, 2))
        if digits
        else (rng.integers(16, size=(n_sequences, 2)) + np.arange(n_frames)[:, None, None])
    )
    features = np.zeros((n_frames, n_sequences, 16, 16, 1), bool)
    for t, s in np.ndindex(n_frames, n_sequences):
        rows, columns = ((place + np.arange(4)) % 16 for place in places[t, s])
        features[t, s, rows[:, None], columns] = True
    return features


@pytest.mark.parametrize(
    "features, n_sequences, swapped",
    [
        (moving(), 20, False),
        (moving(12, 20), 12, False),
        (moving(200, 4), 200, False),
        (moving(20, 12, True), 20, False),
        (moving().swapaxes(0, 1), 12, True),
        (moving(12, 20).swapaxes(0, 1), 20, True),
        (moving(200, 4).swapaxes(0, 1), 4, True),
        (moving(20, 12, True).swapaxes(0, 1), 12, True),
        (np.tile(moving(20, 1), (12, 1, 1, 1, 1)), 20, False),  # nothing moves
        (np.tile(moving(20, 1), (12, 1, 1, 1, 1)).swapaxes(0, 1), 12, True),
        (np.zeros((12, 20, 16, 16, 1)), 20, False),
        (moving(1, 12), 1, False),
        (moving(20, 1), 20, False),
    ],
)
def test_what_was_read_is_said_and_a_warning_if_the_axes_seem_swapped(tmp_path, features, n_sequences, swapped):
    path = rnem_file(tmp_path / "r.h5", features)
    with hdf5.open_split(path, "training") as split:
        said, *warnings = split.describe()
    plural = f"{n_sequences} sequence{'s' * (n_sequences > 1)} of {len(features)} frame{'s' * (len(features) > 1)}"
    assert said == f"{path}: training holds {plural}, 16 x 16, {features.dtype}"
    assert len(warnings) == swapped and all("are frames and sequences swapped?" in line for line in warnings)


def test_the_scale_and_the_channels_are_said_too(tmp_path):
    path = rnem_file(tmp_path / "r.h5", np.full((3, 4, 8, 6, 3), 9, np.uint8))
    with hdf5.open_split(path, "training") as split:
        assert split.describe() == [f"{path}: training holds 4 sequences of 3 frames, 8 x 6 x 3, uint8 with white 255"]


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases here")
def test_the_swapped_file_is_noticed():
    for split in hdf5.SPLITS:
        with hdf5.open_split(CASES / "sthw_swapped" / "swapped.h5", split) as data:
            said, warning = data.describe()
        assert "10 sequences of 40 frames, 64 x 64, bool" in said and "swapped" in warning


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"fletcher32": True}])
@pytest.mark.parametrize("chunks", [True, (3, 40, 64, 64, 1)])
def test_lzf_is_read(tmp_path, options, chunks):
    """h5py's own filter, in small chunks and in chunks that are followed to their end."""
    rng = np.random.default_rng(0)
    features = rng.random((3, 40, 64, 64, 1)) < 0.3
    with h5py.File(tmp_path / "r.h5", "w") as file:
        data = file.create_dataset(
            "training/features", data=features.astype(np.uint8), chunks=chunks, compression="lzf", **options
        )
        size = data.id.get_storage_size()
        assert data.compression == "lzf" and (chunks is True or 2**17 < size < features.size)
    with hdf5.open_split(tmp_path / "r.h5", "training") as split:
        np.testing.assert_array_equal(split.read(slice(None))["features"], features)


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases here")
def test_the_lzf_file_is_read():
    path = CASES / "lzf" / "lzf.h5"
    with hdf5.open_split(path, "training", members=("groups", "collisions", "positions", "n")) as data:
        read = data.read(slice(None))
    with h5py.File(path) as file:
        for name, values in read.items():
            np.testing.assert_array_equal(values, file["training"][name][...])


GOOD = np.zeros((3, 4, 8, 8, 1), np.float32)


def with_value(value, dtype=np.float32):
    data = np.zeros((3, 4, 8, 8, 1), dtype)
    data[1, 2, 3, 4, 0] = value
    return data


@pytest.mark.parametrize(
    "members, message",
    [
        ({"features": None, "groups": GOOD}, "no member 'features'; it has groups"),
        ({"features": GOOD.astype("S1")}, "type"),
        ({"features": GOOD.astype(complex)}, "type complex128"),
        ({"features": GOOD[..., 0]}, r"expected \(T, S, H, W, C\); `python -m data_gen.import_videos`"),
        ({"features": np.zeros((3, 4, 8, 8, 2))}, "1 or 3 channels"),
        ({"features": np.zeros((3, 0, 8, 8, 1))}, "holds nothing"),
        ({"features": np.zeros((0, 4, 8, 8, 1))}, "holds nothing"),
        ({"features": np.zeros((1, 1, 1025, 8, 1), bool)}, "H = 1025 is not supported"),
        ({"features": with_value(np.nan)}, "nan"),
        ({"features": with_value(1.5)}, "1.5"),
        ({"features": with_value(-1, np.int8)}, "-1"),
        ({"features": with_value(300, np.int32)}, "300"),
        ({"features": GOOD, "groups": GOOD[:, :3]}, "S = 4"),
        ({"features": GOOD, "groups": GOOD[:2]}, "T = 3"),
        ({"features": GOOD, "groups": GOOD[:, :, :4]}, "H = 8"),
        ({"features": GOOD, "groups": with_value(0.5)}, "fractions"),
        ({"features": GOOD, "groups": with_value(-1)}, "-1"),
        ({"features": GOOD, "groups": np.zeros((3, 4, 8, 8))}, "groups: shape"),
        ({"features": GOOD, "collisions": with_value(2)}, "2.0"),
        ({"features": GOOD, "positions": np.full((3, 4, 2, 2), np.inf)}, "inf"),
        ({"features": GOOD, "positions": np.full((3, 4, 2, 2), 40.0)}, "40.0.*units of the box, whose side is 15"),
        ({"features": with_value(1.0000002)}, "1.0000002.*data_gen.import_videos"),
        ({"features": with_value(60_000, np.uint16)}, "60000.*data_gen.import_videos"),
        ({"features": GOOD, "positions": np.zeros((3, 4, 2, 2)), "velocities": np.zeros((3, 4, 3, 2))}, "N = 2"),
        ({"features": GOOD, "positions": np.zeros((3, 4, 2, 3))}, "with 2 = 2"),
    ],
)
def test_wrong_members_are_one_line_that_names_the_file(tmp_path, members, message):
    path = rnem_file(tmp_path / "wrong.h5", **members)
    with pytest.raises(UserError, match=message) as error:
        with hdf5.open_split(path, "training", optional=hdf5.MEMBERS) as split:
            split.read(slice(None))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def outside_link(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["training/features"] = GOOD
    file["training"] = h5py.ExternalLink(str(folder / "other.h5"), "/training")


def outside_data(file, folder):
    (folder / "raw").write_bytes(b"\0" * 768)
    file.create_group("training").create_dataset("features", GOOD.shape, bool, external=[(str(folder / "raw"), 0, 768)])


def virtual_data(file, folder):
    outside_link(file, folder)
    del file["training"]
    layout = h5py.VirtualLayout(GOOD.shape, GOOD.dtype)
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "training/features", GOOD.shape)
    file.create_group("training").create_virtual_dataset("features", layout)


def soft_link(file, folder):
    file["else/features"] = GOOD
    file["training"] = h5py.SoftLink("/else")


def not_a_group(file, folder):
    file["training"] = GOOD


def huge_chunks(file, folder):
    shape = (100, 1000, 64, 64, 1)
    file.create_group("training").create_dataset("features", shape, bool, chunks=shape, compression="gzip")


def nothing_stored(file, folder):
    file.create_group("training").create_dataset(
        "features", (10_000, 10**8, 64, 64, 1), bool, chunks=(10, 50, 64, 64, 1), compression="gzip"
    )


def lzf_bomb(file, folder):
    """512 KiB that would become 44 MiB, in a chunk of 2 MiB."""
    data = file.create_group("training").create_dataset(
        "features", (1, 512, 64, 64, 1), np.uint8, compression="lzf", chunks=(1, 512, 64, 64, 1)
    )
    data.id.write_direct_chunk((0,) * 5, b"\0a" + b"\xe0\xff\0" * (2**19 // 3))


def packed_twice(file, folder):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((3, 4, 8, 8, 1))
    plist.set_deflate(1)
    plist.set_filter(h5py.h5z.FILTER_LZF)
    group = file.create_group("training").id
    space = h5py.h5s.create_simple(GOOD.shape)
    data = h5py.h5d.create(group, b"features", h5py.h5t.IEEE_F32LE, space, plist)
    data.write(h5py.h5s.ALL, h5py.h5s.ALL, GOOD)


def many_frames(file, folder):
    file.create_group("training").create_dataset("features", data=np.zeros((10_001, 2, 4, 4, 1), bool))


def bad_box(file, folder):
    file["training/features"] = GOOD
    file.attrs["box"] = -1.0


@pytest.mark.parametrize(
    "build, message",
    [
        (outside_link, "is a link to another place"),
        (soft_link, "is a link to another place"),
        (outside_data, "lie in another file"),
        (virtual_data, "lie in another file"),
        (not_a_group, "is not a group"),
        (huge_chunks, "chunks of 391 MiB"),
        (nothing_stored, "unfinished or damaged"),
        (lzf_bomb, "holds more than the 2097152 bytes"),
        (packed_twice, "or twice"),
        (many_frames, "T = 10001 is not supported.*are frames and sequences swapped"),
        (bad_box, "attribute box"),
        (lambda file, folder: file.create_group("test"), "no split 'training'; it has test$"),
        (lambda file, folder: file.create_group("train"), "it has train; `python -m data_gen.import_videos` converts"),
    ],
)
def test_unsafe_structures_are_refused_before_any_data_are_read(tmp_path, build, message):
    path = tmp_path / "wrong.h5"
    with h5py.File(path, "w") as file:
        build(file, tmp_path)
    with pytest.raises(UserError, match=message) as error:
        hdf5.open_split(path, "training")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_not_whole_hdf5_are_one_line(tmp_path, balls):
    whole = balls.read_bytes()
    cases = {"text": b"hello\n" * 100, "empty": b"", "truncated": whole[: len(whole) // 2]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: cannot be read as HDF5"):
            hdf5.open_split(tmp_path / name, "training")
    for missing in (tmp_path / "missing.h5", tmp_path):
        with pytest.raises(UserError, match="no such file; make it with"):
            hdf5.open_split(missing, "training")


WRITER = """
import h5py, sys
with h5py.File(sys.argv[1], "w", libver=sys.argv[2]) as file:
    file["training/features"] = [[[[[0.0]]]]]
    if sys.argv[2] == "latest":
        file.swmr_mode = True
    file.flush()
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    "version, message",
    [("earliest", "another program has it open for writing"), ("latest", "is marked as open for writing.*h5clear")],
)
def test_a_file_that_another_program_holds_is_not_called_damaged(tmp_path, version, message):
    path = tmp_path / "held.h5"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path, version], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"open\n"
        for open_it in (
            lambda: hdf5.open_split(path, "training"),
            lambda: Predictions(path),
            lambda: data_gen_writer.new_file(path).__enter__(),
        ):
            with pytest.raises(UserError, match=message) as error:
                open_it()
            assert "damage" not in str(error.value) and "again" not in str(error.value)
        writer.communicate(b"")
    with hdf5.open_split(path, "training") as split:
        assert split.n_frames == 1


def test_missing_permission_disc_and_damage_are_told_apart(tmp_path):
    path = rnem_file(tmp_path / "r.h5", GOOD)
    path.chmod(0)
    script = (
        "import sys\nfrom data_gen import hdf5\ntry: hdf5.open_split(sys.argv[1], 'training')\n"
        "except hdf5.UserError as error: print(error)"
    )

    def without_privileges():  # of root to read everything: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)

    said = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, cwd=ROOT, preexec_fn=without_privileges
    )
    assert said.stdout == f"{path}: no permission to read it\n", said.stderr
    for error, message in (
        (OSError("unable to lock file, errno = 37, error message"), "HDF5_USE_FILE_LOCKING=FALSE"),
        (OSError("file read failed: errno = 5, error message"), "Input/output error.*the disc"),
        (OSError("file read failed: errno = 116, error message"), "the disc or the network"),
        (OSError("inflate() failed"), "x: broken; mend it"),
    ):
        found = hdf5.unreadable("x", error, "broken", "mend it")
        assert re.search(message, str(found)) and isinstance(found, hdf5.Damaged) == ("broken" in message)


def test_damage_inside_the_data_is_one_line(tmp_path, balls):
    damaged = bytearray(balls.read_bytes())
    with h5py.File(balls) as file:
        chunk = file["training/features"].id.get_chunk_info(0)
    damaged[chunk.byte_offset + 20 : chunk.byte_offset + chunk.size] = b"\xff" * (chunk.size - 20)
    path = tmp_path / "damaged.h5"
    path.write_bytes(damaged)
    with hdf5.open_split(path, "training") as split:
        with pytest.raises(UserError, match="features: sequences 0..4 cannot be read"):
            split.read(slice(0, 5), 1)


def test_a_whole_file_or_none(tmp_path):
    target = tmp_path / "folder" / "file"
    with pytest.raises(KeyError):
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyError
    assert not target.parent.exists()  # a folder made for it is removed too
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and os.listdir(target.parent) == ["file"]


def test_a_split_cannot_be_changed(balls):
    with hdf5.open_split(balls, "training") as split, pytest.raises(attrs.exceptions.FrozenInstanceError):
        split.n_frames = 3
