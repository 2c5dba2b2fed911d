"""The user's own videos: every format, one or many, becomes sequences that the pipeline reads, with their truth."""

import json
import os
import re
import subprocess
import sys
import tracemalloc

import h5py
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from data_gen import hdf5, pipeline
from data_gen.errors import UserError
from data_gen.import_videos import CommandLine, convert, place
from data_gen.rendering import render_groups
from tests import example_film
from tests.data_helpers import ROOT, interrupt, run_here

S, T, H, W = 10, 12, 24, 32
CASES = ROOT.parent / "shared" / "cases"
SPLITS = {"training": 8, "validation": 1, "test": 1}


def discs(n_videos=S, n_frames=T, height=H, width=W, radius=4.0, seed=0):
    """Bright discs that glide over grey: frames [S, T, H, W] uint8, groups of the same shape, positions [S, T, 2, 2].

    Their centres, (column, row) in pixels, lie well within the frame.
    """
    rng = np.random.default_rng(seed)
    low, high = radius + 1, np.array([width, height]) - radius - 1
    start, end = rng.uniform(low, high, (2, n_videos, 2, 2))
    share = np.linspace(0, 1, n_frames)[None, :, None, None]
    positions = start[:, None] * (1 - share) + end[:, None] * share
    side = max(height, width)
    groups = render_groups(positions, np.full(positions.shape[:-1], radius), side, side)[..., :height, :width]
    frames = np.array([40, 160, 250], np.uint8)[groups]
    for t in range(n_frames):  # no two frames alike: GIFs store those once
        frames[:, t, 0, t % width] = 100
    return frames, groups, positions


def write_film(path, frames, *options, fps=10):
    """Writes frames [T, H, W(, 3)] as a film, lossless unless the options change that."""
    colour = frames.ndim == 4
    options = options or ("-c:v", "libx264", "-crf", "0", "-pix_fmt", "yuv444p")
    subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24" if colour else "gray",
            "-s",
            f"{frames.shape[2]}x{frames.shape[1]}",
            "-r",
            str(fps),
            "-i",
            "pipe:0",
            *options,
            str(path),
        ],
        input=frames.tobytes(),
        check=True,
        timeout=60,
    )


def write_images(folder, frames, suffix, **options):
    folder.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{t}{suffix}", **options)  # frame_10 comes after frame_9


def write_gif(path, frames):
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100)


def read(path, **members):
    """All members of all splits: split -> member -> array; those of `members`, or all if none is given."""
    result = {}
    with h5py.File(path) as file:
        names = {split: list(file[split]) for split in file}
    for split in names:
        with hdf5.open_split(path, split, names[split]) as opened:
            result[split] = opened.read(slice(None))
            result[split]["intensities"] = opened.intensities(result[split]["features"])
    return result


def run_import(folder, *arguments):
    """Runs the command and returns its file's contents and its output."""
    result = run_here("data_gen.import_videos", *arguments, "--out", folder / "out.h5")
    assert result.returncode == 0, result.stderr
    assert not list(folder.glob(".*")), "something was left over"
    return read(folder / "out.h5"), result.stdout


def imported(folder, *inputs, **options):
    """The same within this process."""
    lines = convert(CommandLine(inputs=inputs, out=folder / "out.h5", **options))
    return read(folder / "out.h5"), "\n".join(lines)


def assert_videos(got, frames, n_frames, tolerance=0):
    """The splits hold the beginnings of the videos, each once and whole; returns the videos' numbers by split."""
    found = {}
    for split, members in got.items():
        sequences = members["features"].swapaxes(0, 1)[..., 0].astype(int)  # [S, T, H, W]
        error = [[np.abs(sequence - video[:n_frames]).mean() for video in frames.astype(int)] for sequence in sequences]
        found[split] = [int(np.argmin(row)) for row in error]
        for s, v in enumerate(found[split]):
            if not tolerance:
                np.testing.assert_array_equal(sequences[s], frames[v, :n_frames])
            for t in range(n_frames):  # each frame in its own place
                away = np.abs(sequences[s, t] - frames[v].astype(int)).mean((1, 2))
                assert away[t] <= tolerance and away[t] == away.min()
    everyone = [v for videos in found.values() for v in videos]
    assert sorted(everyone) == sorted(set(everyone)) and len(everyone) == sum(SPLITS.values())
    assert {split: len(videos) for split, videos in found.items()} == SPLITS
    return found


def as_npz(folder, frames):
    np.savez_compressed(folder / "in.npz", frames=frames)
    return [folder / "in.npz"], ["--axes", "STHW"]


def as_npz_time_first(folder, frames):
    np.savez(folder / "in.npz", features=frames.swapaxes(0, 1)[..., None], note=np.arange(3))
    return [folder / "in.npz"], ["--axes", "TSHWC"]


def as_npy(folder, frames):
    np.save(folder / "in.npy", np.asfortranarray(frames.transpose(2, 0, 1, 3)))
    return [folder / "in.npy"], ["--axes", "HSTW"]


def as_npy_each(folder, frames):
    for s, video in enumerate(frames):
        np.save(folder / f"{s}.npy", video[:, None])
    return sorted(folder.glob("*.npy")), ["--axes", "TCHW"]


def as_hdf5(folder, frames):
    with h5py.File(folder / "in.h5", "w") as file:
        file.create_dataset("deep/videos", data=frames, chunks=(3, 5, 8, 8), compression="gzip", shuffle=True)
    return [folder / "in.h5"], ["--axes", "STHW", "--frames_name", "deep/videos"]


def as_images(suffix, **options):
    def write(folder, frames):
        for s, video in enumerate(frames):
            write_images(folder / "in" / f"video {s}", video, suffix, **options)
        (folder / "in" / "Thumbs.db").write_text("none of ours")
        return [folder / "in"], []

    return write


def as_gifs(folder, frames):
    for s, video in enumerate(frames):
        write_gif(folder / f"{s}.gif", video)
    return sorted(folder.glob("*.gif")), []


def as_films(suffix, *options):
    def write(folder, frames):
        (folder / "in").mkdir()
        for s, video in enumerate(frames):
            write_film(folder / "in" / f"{s}{suffix}", video, *options)
        return [folder / "in"], []

    return write


FORMATS = {
    "npz": (as_npz, 0),
    "npz, time first": (as_npz_time_first, 0),
    "npy": (as_npy, 0),
    "npy each": (as_npy_each, 0),
    "hdf5": (as_hdf5, 0),
    "png": (as_images(".png"), 0),
    "bmp": (as_images(".bmp"), 0),
    "tiff": (as_images(".tif"), 0),
    "jpeg": (as_images(".JPG", quality=95), 3),
    "gif": (as_gifs, 0),
    "mp4": (as_films(".mp4"), 1),
    "mp4 as phones write it": (as_films(".MP4", "-c:v", "libx264", "-pix_fmt", "yuv420p"), 5),
    "webm": (as_films(".webm", "-c:v", "libvpx-vp9"), 5),
    "avi": (as_films(".avi", "-c:v", "ffv1"), 1),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_videos_that_were_written(tmp_path, name):
    frames, _, _ = discs()
    write, tolerance = FORMATS[name]
    (tmp_path / "source").mkdir()
    inputs, options = write(tmp_path / "source", frames)
    got, said = run_import(tmp_path, "--inputs", *inputs, *options)
    assert_videos(got, frames, 10, tolerance)
    assert "training: 8 sequences of 10 frames, 24 x 32, grey, from 8 videos" in said
    assert "uint8, from" in said and "255 white" in said
    assert "only the beginning was taken of 10 videos" in said and "Thumbs.db" in said or "images" not in str(inputs)


ONE = {
    "npy": (lambda path, frames: np.save(path.with_suffix(".npy"), frames), 0),
    "png": (lambda path, frames: write_images(path, frames, ".png"), 0),
    "gif": (lambda path, frames: write_gif(path.with_suffix(".gif"), frames), 0),
    "mp4": (lambda path, frames: write_film(path.with_suffix(".mp4"), frames), 1),
}


@pytest.mark.parametrize("name", ONE)
def test_one_long_video_is_cut_and_divided_by_time(tmp_path, name):
    frames = discs(1, 103)[0][0]
    write, tolerance = ONE[name]
    write(tmp_path / "film", frames)
    got, said = imported(
        tmp_path,
        next(tmp_path.iterdir()),
        axes="THW" if name == "npy" else "",
        n_frames=5,
        cut=True,
        split_by="time",
        validation=0.2,
    )
    # 20 sequences, the last 3 frames are too few: 14, 4 and 2.
    assert {split: members["features"].shape[1] for split, members in got.items()} == {
        "training": 14,
        "validation": 4,
        "test": 2,
    }
    together = np.concatenate([got[split]["features"] for split in hdf5.SPLITS], 1).swapaxes(0, 1)[..., 0]
    assert np.abs(together.reshape(100, H, W).astype(int) - frames[:100]).max() <= 2 * tolerance
    assert "from 1 video" in said


def test_films_with_gaps_in_time_give_each_frame_once(tmp_path):
    frames = discs(1, 20)[0][0]
    write_film(
        tmp_path / "in.mkv",
        frames,
        "-vf",
        "setpts='N+10*gt(N,6)+5*gt(N,12)'",
        "-fps_mode",
        "passthrough",
        "-c:v",
        "ffv1",
    )
    got, _ = imported(tmp_path, tmp_path / "in.mkv", n_frames=20, validation=0, test=0)
    assert np.abs(got["training"]["features"][:, 0, ..., 0].astype(int) - frames).max() <= 1


def test_rotated_films_are_turned_upright(tmp_path):
    frames = discs(1)[0][0]
    write_film(tmp_path / "lying.mp4", frames)
    subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            "-display_rotation",
            "90",
            "-i",
            str(tmp_path / "lying.mp4"),
            "-c",
            "copy",
            str(tmp_path / "in.mp4"),
        ],
        check=True,
        timeout=60,
    )
    got, _ = imported(tmp_path, tmp_path / "in.mp4", n_frames=T, validation=0, test=0)
    turned = np.rot90(frames, 1, (1, 2)).astype(int)
    assert np.abs(got["training"]["features"][:, 0, ..., 0] - turned).max() <= 2


def test_all_pieces_of_a_video_are_in_one_split(tmp_path):
    frames = discs(6, 20)[0]
    np.save(tmp_path / "in.npy", frames)
    got, _ = imported(tmp_path, tmp_path / "in.npy", axes="STHW", n_frames=5, every=2, cut=True, test=0.3)
    sequences = {split: members["features"].swapaxes(0, 1)[..., 0] for split, members in got.items()}
    assert {split: len(s) for split, s in sequences.items()} == {"training": 6, "validation": 2, "test": 4}
    expected = frames[:, ::2].reshape(6, 2, 5, H, W)
    everyone = []
    for pieces in sequences.values():
        for first, second in zip(pieces[::2], pieces[1::2]):
            v = next(v for v in range(6) if (expected[v, 0] == first).all())
            np.testing.assert_array_equal(expected[v, 1], second)
            everyone.append(v)
    assert sorted(everyone) == list(range(6))


def test_the_division_depends_on_the_seed_alone(tmp_path):
    np.save(tmp_path / "in.npy", discs(20)[0])
    files = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        convert(CommandLine(inputs=(tmp_path / "in.npy",), out=tmp_path / name, axes="STHW", seed=seed, test=0.3))
        files[name] = read(tmp_path / name)["test"]["features"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert files["a"].shape == files["c"].shape == (10, 6, H, W, 1) and (files["a"] != files["c"]).any()


def test_names_of_groups_arrays_and_folders_give_the_splits(tmp_path):
    frames = discs(7)[0]
    parts = {"training": frames[:4], "validation": frames[4:6], "test": frames[6:]}
    with h5py.File(tmp_path / "in.h5", "w") as file:
        for name, part in zip(("train", "valid", "test"), parts.values()):
            file[f"{name}/images"] = part
        file["unrelated"] = np.zeros(3)
    np.savez(tmp_path / "in.npz", x_train=frames[:4], x_val=frames[4:6], x_test=frames[6:])
    for name, part in zip(("Train", "val", "testing"), parts.values()):
        for s, video in enumerate(part):
            write_images(tmp_path / "in" / name / str(s), video, ".png")
    for source in ("in.h5", "in.npz", "in"):
        got, _ = imported(tmp_path, tmp_path / source, axes="STHW", n_frames=T)
        assert set(got) == set(parts)
        for split, part in parts.items():
            np.testing.assert_array_equal(got[split]["features"][..., 0].swapaxes(0, 1), part)


def test_a_split_without_a_name_gets_a_share_of_the_training_videos(tmp_path):
    frames = discs(12)[0]
    np.savez(tmp_path / "in.npz", train=frames[:10], test=frames[10:])
    got, _ = imported(tmp_path, tmp_path / "in.npz", axes="STHW", validation=0.2)
    assert {split: members["features"].shape[1] for split, members in got.items()} == {
        "training": 8,
        "validation": 2,
        "test": 2,
    }
    np.testing.assert_array_equal(got["test"]["features"][..., 0].swapaxes(0, 1), frames[10:, :10])


@pytest.mark.parametrize(
    "make, options, line",
    [
        (lambda x: x > 100, {}, "bool, from 0 to 1; 0 became black (0) and 1 white"),
        (lambda x: (x / 255).astype(np.float32), {}, "float32, from 0.156863 to 0.980392"),
        (
            lambda x: np.where(x == 250, np.float32(1.0000002), x / np.float32(255)),
            {},
            "of the values lay beyond black or white",
        ),
        (lambda x: x.astype(np.uint16) * 257, {}, "65535 white"),
        (
            lambda x: x.astype(np.uint16) * 16,
            {"white": 4080},
            "uint16, from 640 to 4000; 0 became black (0) and 4080 white",
        ),
        (lambda x: x.astype(np.int64), {"white": 255}, "int64"),
        (lambda x: (x > 100).astype(np.uint8), {"white": 1}, "1 white"),
        (lambda x: x / 127.5 - 1, {"black": -1}, "-1 became black"),
        (lambda x: 255 - x, {"black": 255, "white": 0}, "255 became black (0) and 0 white"),
        (lambda x: x * 2.0 - 100, {"black": 0, "white": 255, "clip": True}, "of the values lay beyond black or white"),
    ],
)
def test_intensities_of_every_type(tmp_path, make, options, line):
    frames = discs()[0]
    np.save(tmp_path / "in.npy", make(frames))
    got, said = imported(tmp_path, tmp_path / "in.npy", axes="STHW", **options)
    expected = frames if not ("bool" in line or options == {"white": 1}) else (frames > 100) * np.uint8(255)
    if "clip" in options:
        expected = (frames * 2.0 - 100).clip(0, 255)
    elif "beyond" in line:
        expected = np.where(frames == 250, 255, frames)
    assert_videos(got, expected, 10)
    assert got["training"]["intensities"].max() <= 1 and line in said


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda x: x.astype(np.int64), {}, "type int64, .* --white 255"),
        (lambda x: (x > 100).astype(np.uint8), {}, r"--white 1\) or 255"),
        (lambda x: x / 200, {}, "values from 0.2 to 1.25, expected 0 to 1; .*--clip"),
        (lambda x: x, {"white": 100}, "values from 40 to 250, expected 0 to 100"),
        (lambda x: np.where(x == 250, np.nan, x), {"white": 255}, "frame 0: pixels that are not finite"),
        (lambda x: x * 0, {}, "every pixel of type uint8 is 0"),
        (lambda x: x.astype(complex), {}, "type complex128"),
        (lambda x: x, {"black": 255}, "--white|two different values|expected"),
    ],
)
def test_intensities_that_do_not_fit_are_refused(tmp_path, make, options, message):
    np.save(tmp_path / "in.npy", make(discs()[0]))
    with pytest.raises(UserError, match=message) as error:
        imported(tmp_path, tmp_path / "in.npy", axes="STHW", **options)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["in.npy"]


def test_uint16_that_uses_little_of_its_range_is_named(tmp_path):
    np.save(tmp_path / "in.npy", discs()[0].astype(np.uint16) * 16)
    assert (
        "4000 is dark on a scale to 65535; if it is white, say --white 4000"
        in imported(tmp_path, tmp_path / "in.npy", axes="STHW")[1]
    )


def test_pixels_of_every_kind_of_image(tmp_path):
    grey = discs(1)[0][0, 0]
    for name, image, expected in (
        ("1", Image.fromarray(grey > 100), (grey > 100) * 255),
        ("I16", Image.fromarray(grey.astype(np.uint16) * 257), grey),
        ("P", Image.fromarray(grey).convert("RGB").quantize(8), grey),
        ("RGBA", Image.merge("RGBA", [Image.fromarray(grey)] * 3 + [Image.fromarray(grey)]), grey / 255.0 * grey),
        ("LA", Image.merge("LA", [Image.fromarray(grey)] * 2), grey / 255.0 * grey),
    ):
        write_images(tmp_path / name, [], ".png")
        for t in range(3):
            image.save(tmp_path / name / f"{t}.png")
        got, said = imported(tmp_path, tmp_path / name, n_frames=3, validation=0, test=0)
        np.testing.assert_allclose(got["training"]["features"][2, 0, ..., 0], expected, atol=1)
        assert "colours" not in said


def test_colours_are_kept_if_asked_for(tmp_path):
    grey = discs()[0]
    rgb = np.stack([grey, 255 - grey, grey // 2], -1)
    write_film(tmp_path / "in.mp4", rgb[0], "-c:v", "libx264rgb", "-crf", "0")
    np.save(tmp_path / "in.npy", rgb.transpose(0, 4, 1, 2, 3))
    got, said = imported(tmp_path, tmp_path / "in.npy", axes="SCTHW", colour=True)
    assert got["training"]["features"].shape == (10, 8, H, W, 3) and "colours became grey" not in said
    film, _ = imported(tmp_path, tmp_path / "in.mp4", colour=True, validation=0, test=0)
    assert np.abs(film["training"]["features"][:, 0].astype(int) - rgb[0, :10]).max() <= 1
    luma, said = imported(tmp_path, tmp_path / "in.npy", axes="SCTHW")
    assert "colours became grey; --colour keeps them" in said
    np.testing.assert_allclose(
        luma["training"]["features"][..., 0], got["training"]["features"] @ [0.299, 0.587, 0.114], atol=0.51
    )
    np.save(tmp_path / "grey.npy", grey)
    lifted, _ = imported(tmp_path, tmp_path / "grey.npy", axes="STHW", colour=True)
    assert (lifted["test"]["features"] == lifted["test"]["features"][..., :1]).all()


# ---------------------------------------------------------------------------------------------------------------
# Cropping, resizing, truth
# ---------------------------------------------------------------------------------------------------------------


def test_crops_are_those_asked_for(tmp_path):
    frames = discs()[0]
    np.save(tmp_path / "in.npy", frames)
    for crop, part in (((20,), np.s_[2:22, 6:26]), ((10, 20), np.s_[7:17, 6:26]), ((0, 3, 10, 20), np.s_[:10, 3:23])):
        got, _ = imported(tmp_path, tmp_path / "in.npy", axes="STHW", crop=crop)
        assert_videos(got, frames[:, :, part[0], part[1]], 10)
    with pytest.raises(UserError, match="24 x 32, from which --crop 25 cannot be cut"):
        imported(tmp_path, tmp_path / "in.npy", axes="STHW", crop=(25,))


def test_shrinking_by_a_whole_factor_averages(tmp_path):
    """With anti-aliasing, a smooth gradient keeps its values at the pixels' centres."""
    gradient = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32)[:, None], (4, 64, 64))
    np.save(tmp_path / "in.npy", gradient)
    got, _ = imported(tmp_path, tmp_path / "in.npy", axes="THW", n_frames=4, size=(16,), validation=0, test=0)
    expected = gradient.reshape(4, 16, 4, 64).mean(2)[..., ::4]
    np.testing.assert_allclose(got["training"]["intensities"][:, 0, 2:-2, :, 0], expected[:, 2:-2], atol=1 / 255)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("crop", [(), (4, 6, 40, 52)])
def test_truth_moves_with_the_pixels(tmp_path, fit, crop):
    """Positions, boxes, masks and the discs that are seen stay together through cropping and resizing."""
    n = 40
    frames, groups, positions = discs(n, height=48, width=64, radius=6.0)
    coords = np.concatenate([positions[..., ::-1] - 6, np.full((n, T, 2, 2), 12.0)], -1)
    coords[:, :, 1] = 0
    np.savez(
        tmp_path / "in.npz",
        features=frames,
        groups=groups,
        positions=positions,
        coords=coords,
        velocities=np.ones((n, T, 2, 2)),
        radii=np.full((n, 2), 6.0),
        counts=np.full(n, 2),
    )
    got, said = imported(
        tmp_path,
        tmp_path / "in.npz",
        axes="STHW",
        size=(36, 36),
        fit=fit,
        crop=crop,
        box=64,
        every=2,
        n_frames=6,
        validation=0,
        test=0,
    )
    members = got["training"]
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["box"] == 36 and file.attrs["white"] == 255
    placement = place(48, 64, crop, (36, 36), fit, "")
    scale = np.array(placement.scale)
    rows, columns = np.mgrid[:36, :36] + 0.5
    errors = []
    for t, s, i in np.ndindex(6, n, 2):
        mask = members["groups"][t, s, ..., 0] == i + 1
        column, row = members["positions"][t, s, i]
        centre = positions[s, 2 * t, i]
        alone = render_groups(centre[None], np.float64([6.0]), 64, 64)[:48] > 0
        inside = (centre - 6 >= placement.box[:2]).all() and (centre + 6 <= placement.box[2:]).all()
        if not inside or (alone & (groups[s, 2 * t] != i + 1)).any():  # partly cut off or hidden
            continue
        errors.append([columns[mask].mean() - column, rows[mask].mean() - row])
        image = members["features"][t, s, ..., 0]
        assert abs(image[int(row), int(column)] - (160, 250)[i]) <= 1
        if i == 0:
            top, left, height, width = members["coords"][t, s, 0]
            np.testing.assert_allclose([left + width / 2, top + height / 2], [column, row], rtol=1e-4)
            np.testing.assert_allclose([width, height], 12 * scale, rtol=1e-4)
    # A mask of the nearest pixels is off by up to half a pixel of the source, on average by nothing.
    assert len(errors) > 20 and np.abs(errors).max() < 0.5 and np.abs(np.mean(errors, 0)).max() < 0.12
    assert not members["coords"][:, :, 1].any()
    assert members["positions"].min() >= -9 and members["positions"].max() <= 45  # 36 and a quarter
    np.testing.assert_allclose(members["velocities"], np.broadcast_to(2 * scale, (6, n, 2, 2)), rtol=1e-6)
    np.testing.assert_allclose(members["radii"], 6 * np.sqrt(scale.prod()), rtol=1e-6)
    assert (members["n"] == 2).all() and (members["nums"].sum(-1) == 2).all()
    batch = next(iter(pipeline.batches(tmp_path / "out.h5", "training", n, 6, crop=None, shuffle=False)))
    np.testing.assert_array_equal(batch.counts, pipeline.count_visible(members["groups"][..., 0]))


def test_truth_from_files_of_its_own(tmp_path):
    frames, groups, positions = discs()
    as_gifs(tmp_path, frames)
    np.save(tmp_path / "groups.npy", groups)
    np.savez(tmp_path / "truth.npz", counts=np.arange(S), positions=positions)
    got, said = run_import(
        tmp_path,
        "--inputs",
        *sorted(tmp_path.glob("*.gif")),
        "--truth",
        tmp_path / "groups.npy",
        tmp_path / "truth.npz",
        "--box",
        32,
    )
    found = assert_videos(got, frames, 10)
    for split, videos in found.items():
        np.testing.assert_array_equal(got[split]["groups"][..., 0].swapaxes(0, 1), groups[videos, :10])
        np.testing.assert_allclose(got[split]["positions"].swapaxes(0, 1), positions[videos, :10], rtol=1e-6)
        np.testing.assert_array_equal(got[split]["nums"][0].sum(-1), videos)
        assert got[split]["nums"].shape[2] == S - 1
    assert "with n, nums, groups, positions" in said


def test_our_own_layout_with_other_axes_keeps_every_member(tmp_path):
    from data_gen.bouncing_balls import BouncingBalls, write

    write(BouncingBalls(n_frames=6, training=7, validation=3, test=2), tmp_path / "balls.h5")
    with h5py.File(tmp_path / "balls.h5") as ours, h5py.File(tmp_path / "other.h5", "w") as other:
        for split, group in ours.items():
            for name, data in group.items():
                axes = hdf5.MEMBERS[name].axes
                other[f"{split}/{name}"] = data[()].swapaxes(0, 1) if axes[0] == "T" else data[()]
        other.attrs["box"] = ours.attrs["box"]
    got, said = imported(tmp_path, tmp_path / "other.h5", axes="STHWC", n_frames=6)
    for split, members in read(tmp_path / "balls.h5").items():
        for name, data in members.items():
            np.testing.assert_array_equal(got[split][name], data * 255 if name == "features" else data)
    shorter, said = imported(tmp_path, tmp_path / "other.h5", axes="STHWC", n_frames=3, every=2)
    assert "truth left out" in said and "collisions, events" in said
    assert set(shorter["test"]) == set(got["test"]) - {"collisions", "events"}


@pytest.mark.parametrize(
    "members, options, message",
    [
        ({"groups": np.zeros((S, T, H, W + 1), np.uint8)}, {}, "groups: shape .* with W = 32"),
        ({"groups": np.zeros((S - 1, T, H, W), np.uint8)}, {}, "truth of 9 videos, there are 10"),
        ({"groups": np.full((S, T, H, W), 300)}, {}, "groups: values from 300"),
        ({"groups": np.full((S, T, H, W), 0.5)}, {}, "groups: fractions"),
        ({"positions": np.zeros((S, T, 2, 3))}, {}, r"positions: shape .* with 2 = 2"),
        ({"positions": np.zeros((S, T, 2, 2))}, {}, "positions: their units are not stated; .*--box"),
        ({"positions": np.full((S, T, 2, 2), np.nan)}, {"box": 32}, "positions: values from nan"),
        ({"positions": np.full((S, T, 2, 2), 30)}, {"box": 15}, "positions: values from 30 .*--box 15"),
        ({"counts": np.arange(S * T).reshape(S, T) % 3}, {}, "counts: they change from 0 to 2"),
        ({"counts": np.full(S, -1)}, {}, "counts from -1"),
    ],
)
def test_truth_that_does_not_fit_is_refused(tmp_path, members, options, message):
    np.savez(tmp_path / "in.npz", features=discs()[0], **members)
    with pytest.raises(UserError, match=message) as error:
        imported(tmp_path, tmp_path / "in.npz", axes="STHW", **options)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["in.npz"]


# ---------------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------------


def bad_inputs(folder):
    """Name -> what is wrong with it; the inputs lie in `folder`."""
    frames = discs(3)[0]
    np.save(folder / "good.npy", frames)
    np.savez(folder / "two.npz", a=frames, b=frames)
    np.savez(folder / "none.npz")
    np.save(folder / "objects.npy", np.array([None, {}], object))
    np.save(folder / "text.npy", np.array(["a", "b"]))
    whole = (folder / "good.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.npz").write_bytes((folder / "two.npz").read_bytes()[:3000])
    (folder / "lie.h5").write_text("hello")
    (folder / "lie.gif").write_text("hello")
    (folder / "lie.mp4").write_text("hello" * 1000)
    write_gif(folder / "whole.gif", frames[0])
    write_film(folder / "whole.mp4", frames[0])
    film = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(film[: len(film) // 2])
    gif = (folder / "whole.gif").read_bytes()
    (folder / "cut.gif").write_bytes(gif[: len(gif) // 2])
    write_images(folder / "cut", frames[0], ".png")
    png = (folder / "cut" / "frame_3.png").read_bytes()
    (folder / "cut" / "frame_3.png").write_bytes(png[: len(png) // 2])
    write_images(folder / "mixed", frames[0], ".png")
    (folder / "mixed" / "also").mkdir()
    write_images(folder / "sizes", frames[0][:5], ".png")
    Image.fromarray(frames[0, 0, :10]).save(folder / "sizes" / "frame_6.png")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("hello")
    with h5py.File(folder / "link.h5", "w") as file:
        file["frames"] = h5py.ExternalLink("other.h5", "/frames")


BAD = {
    "two.npz": "a, b: name the frames' with --frames_name",
    "none.npz": "holds no arrays",
    "objects.npy": "ValueError",
    "text.npy": "type <U1",
    "cut.npy": "cannot be read as arrays",
    "cut.npz": "cannot be read as arrays",
    "lie.h5": "cannot be read as HDF5",
    "lie.gif": "cannot be read as a GIF",
    "lie.mp4": "ffmpeg cannot decode",
    "cut.mp4": "ffmpeg cannot decode",
    "cut.gif": "cannot be read as a GIF",
    "cut": "frame_3.png: cannot be read as an",
    "mixed": "holds both frames",
    "sizes": "10 x 32 pixels, but .* has 24 x 32; .*--size",
    "empty": "no frames and no",
    "text.txt": "expected .npz, .npy",
    "gone.mp4": "no such file or folder",
    "link.h5": "holds no arrays",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    bad_inputs(folder)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_line_that_names_it(bad, tmp_path, name):
    with pytest.raises(UserError, match=BAD[name]) as error:
        imported(tmp_path, bad / name, axes="STHW", validation=0, test=0)
    assert name in str(error.value) and "\n" not in str(error.value) and not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ((), "say which axis is which, .* --axes STHW"),
        (("--axes", ""), "--axes: is empty"),
        (("--axes", "STHWC"), "shape .3, 12, 24, 32., but --axes STHWC means 5 axes"),
        (("--axes", "SHWC"), "--axes SHWC: expected"),
        (("--axes", "TTHW"), "--axes TTHW: expected"),
        (("--axes", "THWC"), "32 channels; .*is --axes THWC right"),
        (
            ("--axes", "STHW", "--n_frames", "13"),
            "nothing for training and validation and test: left out, shorter than 13",
        ),
        (("--axes", "STHW", "--split_by", "time"), "add --cut"),
        (("--axes", "STHW", "--size", "2000"), "--size 2000: expected at most 1024"),
        (("--axes", "STHW", "--size", "1", "2", "3"), "--size 1 2 3: expected the side"),
        (("--axes", "STHW", "--crop", "0"), "--crop 0: expected the side"),
        (("--axes", "STHW", "--validation", "0.5", "--test", "0.5"), "leave nothing to train on"),
        (("--axes", "STHW", "--frames_name", "x"), "no array 'x'"),
        (("--axes", "STHW", "--truth", "nowhere.npz"), "nowhere.npz: no such file"),
    ],
)
def test_options_that_do_not_fit_are_one_line_that_names_them(bad, tmp_path, options, message):
    result = run_here("data_gen.import_videos", "--inputs", bad / "good.npy", "--out", tmp_path / "out.h5", *options)
    assert result.returncode == 1 and result.stderr.count("error:") == 1 and "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error:") and re.search(message, line), line
    assert not os.listdir(tmp_path)


def test_one_video_does_not_fill_three_splits(bad, tmp_path):
    with pytest.raises(UserError, match="1 video for training and validation and test: .*--split_by time"):
        imported(tmp_path, bad / "whole.gif")


def test_an_input_is_never_written_over(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    as_npz(folder, discs()[0])
    content = (folder / "in.npz").read_bytes()
    os.link(folder / "in.npz", tmp_path / "hard.npz")
    os.symlink(folder / "in.npz", tmp_path / "soft.npz")
    np.save(tmp_path / "groups.npy", discs()[1])
    truth = (tmp_path / "groups.npy").read_bytes()
    for inputs, out in (
        (folder / "in.npz", folder / "in.npz"),
        (folder / "in.npz", tmp_path / "hard.npz"),
        (folder / "in.npz", tmp_path / "soft.npz"),
        (folder, folder / "new.h5"),
        (folder, folder / "in.npz"),
        (folder / "in.npz", tmp_path / "groups.npy"),
    ):
        result = run_here(
            "data_gen.import_videos",
            "--inputs",
            inputs,
            "--out",
            out,
            "--axes",
            "STHW",
            "--truth",
            tmp_path / "groups.npy",
        )
        assert result.returncode == 1 and (
            "lies in the input folder" in result.stderr or "is read by this command" in result.stderr
        ), result.stderr
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert (folder / "in.npz").read_bytes() == content and (tmp_path / "groups.npy").read_bytes() == truth
    assert sorted(os.listdir(folder)) == ["in.npz"]


def test_an_interrupted_import_leaves_nothing(tmp_path):
    (tmp_path / "source").mkdir()
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "source" / "in.npz", rng.integers(0, 256, (400, 10, 64, 64), np.uint8))
    (tmp_path / "out").mkdir()
    assert (
        interrupt(
            "SIGTERM",
            tmp_path / "out",
            "data_gen.import_videos",
            "--inputs",
            tmp_path / "source" / "in.npz",
            "--axes",
            "STHW",
            "--out",
            tmp_path / "out" / "out.h5",
            "--compression",
            9,
        )
        == 143
    )
    assert not os.listdir(tmp_path / "out")


def test_a_full_disc_is_one_line_and_leaves_what_was_there(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "in.npy", rng.integers(0, 256, (40, 10, 64, 64), np.uint8))
    imported(tmp_path, tmp_path / "in.npy", axes="STHW", n_frames=1, size=(8,))
    before = (tmp_path / "out.h5").read_bytes()
    result = run_here(
        "data_gen.import_videos",
        "--inputs",
        tmp_path / "in.npy",
        "--axes",
        "STHW",
        "--out",
        tmp_path / "out.h5",
        file_limit=500_000,
    )
    assert result.returncode == 1 and result.stderr.splitlines()[-1] == f"error: {tmp_path / 'out.h5'}: File too large"
    assert (tmp_path / "out.h5").read_bytes() == before and sorted(os.listdir(tmp_path)) == ["in.npy", "out.h5"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_videos(tmp_path):
    """Of 108 MB each, those sequences are held that wait to be written, at most 64 MB, and once more as a block."""
    frames = discs(2, 50, 256, 384)[0]
    np.savez_compressed(tmp_path / "in.npz", np.concatenate([frames] * 11))
    write_film(tmp_path / "in.avi", np.concatenate(list(frames) * 11), "-c:v", "mjpeg")
    for source, options in (("in.npz", {"axes": "STHW"}), ("in.avi", {})):
        tracemalloc.start()
        got = convert(
            CommandLine(inputs=(tmp_path / source,), out=tmp_path / "out.h5", cut=True, split_by="time", **options)
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert any("training: " in line for line in got)
        with hdf5.open_split(tmp_path / "out.h5", "training") as split:
            assert split.image_shape == (256, 384, 1) and split.n_sequences > 60
        assert peak < 150e6
    with h5py.File(tmp_path / "out.h5") as file:
        assert json.loads(file.attrs["settings"])["split_by"] == "time"


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected cases are not here")
def test_the_cases_that_people_ran_into(tmp_path):
    for case, axes, splits in (
        ("own_npz/own.npz", "TSHWC", SPLITS),
        ("sthw_swapped/swapped.h5", "STHWC", dict.fromkeys(hdf5.SPLITS, 40)),
    ):
        got, said = run_import(tmp_path, "--inputs", CASES / case, "--axes", axes)
        assert {split: members["features"].shape for split, members in got.items()} == {
            split: (10, n, 64, 64, 1) for split, n in splits.items()
        }
        assert f"read: {sum(splits.values())} videos of 10 frames of 64 x 64 x 1, bool" in said
        assert set(np.unique(got["training"]["intensities"])) == {0, 1}


# ---------------------------------------------------------------------------------------------------------------
# docs/data.md
# ---------------------------------------------------------------------------------------------------------------


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)


def test_the_ten_lines_of_h5py_make_a_file_that_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (code,) = code_blocks("python")
    assert len(code.splitlines()) <= 10
    exec(compile(code, "docs/data.md", "exec"), {})
    with hdf5.open_split("data/mine.h5", "validation") as split:
        assert (split.n_frames, split.n_sequences, split.image_shape, split.stated) == (10, 32, (50, 50, 1), True)
        images = split.intensities(split.read(slice(None))["features"])
    assert set(np.unique(images)) == {0, 1} and images.mean() == pytest.approx(0.1, abs=0.01)


def test_the_table_of_members_is_complete():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([TSHWCNK0-9, ]+) \|", (ROOT / "docs" / "data.md").read_text(), re.M)
    axes = {name: cells.replace(", ", "") for names, cells in rows for name in re.findall(r"`(\w+)`", names)}
    assert axes == {name: member.axes for name, member in hdf5.MEMBERS.items()}


@pytest.mark.slow
def test_the_example_from_film_to_figure(tmp_path):
    """The commands of docs/data.md as they stand, on a shorter film and with a smaller model."""
    folder, film, *commands = code_blocks("bash")[-1].replace("\\\n", " ").splitlines()
    assert folder == "mkdir -p data" and film == ".venv/bin/python tests/example_film.py data/example.mp4"
    assert len(commands) == 3
    (tmp_path / "data").mkdir()
    groups = example_film.write(tmp_path / "data" / "example.mp4", n_frames=410)
    tiny = {
        "sqair.train": "--train_itr 2 --log_itr 2 --report_loss_every 1 --fig_itr 2 --save_itr 1 --n_units 1 "
        "--glimpse_size 6 --k_particles 2 --n_what 2 --n_steps_per_image 2 --batch_size 4 "
        "--shards 1"
    }
    for command in commands:
        python, *words = command.split()
        assert python == ".venv/bin/python" and words[0] == "-m"
        result = subprocess.run(
            [sys.executable, *words, *tiny.get(words[1], "").split()],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        if words[1] == "data_gen.import_videos":
            check_example(read(tmp_path / "data" / "example.h5"), groups)
    with Image.open(tmp_path / "docs" / "example.png") as figure:
        assert min(figure.size) > 200
    assert (tmp_path / "runs" / "example" / "finished.json").is_file()


def check_example(got, groups):
    """The room is black and the balls are bright, where they are in the film."""
    assert {split: members["features"].shape for split, members in got.items()} == {
        split: (10, n, 50, 50, 1) for split, n in (("training", 33), ("validation", 4), ("test", 4))
    }
    centres = (np.arange(50) * 2.4 + 1.2).astype(int)  # of the square of 120 in the middle
    balls = groups[:330, centres[:, None], centres + 20].reshape(33, 10, 50, 50).swapaxes(0, 1) > 0
    images = got["training"]["intensities"][..., 0]
    assert images[balls].mean() > 0.5 and images[~balls].mean() < 0.02 and 0.1 < balls.mean() < 0.25
