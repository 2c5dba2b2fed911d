"""Figures: what is drawn where, and the real commands at tiny size."""

import csv
import json
import sys
import weakref

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image

from data_gen.console import run_cli
from data_gen.errors import UserError
from eval import drawing, figures, predict, truth
from eval.truth import Source
from sqair.config import Config, to_flags
from tests.data_helpers import make_test_balls, run_command
from tests.eval_helpers import save_original, save_run

T, SIDE = 4, 50


# ---------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------


def where_of(top, left, height, width):
    """The logits of the box [top, left, height, width] pixels: the inverse of the original's formulas."""
    sy, sx = height / (SIDE + 1), width / (SIDE + 1)
    ty, tx = 2 * top / (SIDE - 1) + sy - 1, 2 * left / (SIDE - 1) + sx - 1
    return [np.log(sx / (1 - sx)), np.log(sy / (1 - sy)), np.arctanh(tx), np.arctanh(ty)]


FIRST_BOX, SECOND_BOX = (5, 20, 12, 8), (30, 10, 10, 10)


def make_scene(first_generated=T, **changes):
    """Two objects that swap their slots in every frame; the input is bright at the top, the canvas at the left."""
    frames, canvas = np.zeros((T, SIDE, SIDE)), np.zeros((T, SIDE, SIDE))
    frames[:, :3], canvas[:, :, :3] = 1, 1
    where = np.tile(np.array([where_of(*FIRST_BOX), where_of(*SECOND_BOX), where_of(1, 1, 5, 5)]), (T, 1, 1))
    object_id = np.tile([0, 4, -1], (T, 1))
    for t in range(1, T, 2):
        where[t, :2], object_id[t, :2] = where[t, 1::-1], object_id[t, 1::-1]
    return drawing.Scene(frames, canvas, where, (object_id >= 0).astype(int), object_id, first_generated, **changes)


def boxes_on(figure):
    """[(x, y, width, height, colour)] of the coloured boxes, in the sheet's pixels."""
    found = [patch for patch in figure.axes[0].patches if to_hex(patch.get_edgecolor()).upper() in drawing.COLOURS]
    return [
        (*patch.get_xy(), patch.get_width(), patch.get_height(), to_hex(patch.get_edgecolor()).upper())
        for patch in found
    ]


def test_boxes_are_where_the_objects_are_and_keep_their_colour():
    figure = drawing.draw_scenes({"title": [make_scene()]})
    images = figure.axes[0].images
    assert len(images) == 2 * T
    models = [image.get_extent() for image in images[1::2]]  # left, right, bottom, top
    found = boxes_on(figure)
    assert len(found) == 2 * T
    for t, (left, _, _, top) in enumerate(models):
        for object_id, (y, x, height, width) in ((0, FIRST_BOX), (4, SECOND_BOX)):
            # The middle of pixel 0 is half a pixel from the frame's edge.
            expected = (left + x + 0.5, top + y + 0.5, width, height)
            assert any(np.allclose(box[:4], expected) and box[4] == drawing.colour(object_id) for box in found), t


def test_inputs_stand_above_the_model_s_frames_row_0_on_top(tmp_path):
    figure = drawing.draw_scenes({"title": [make_scene()]})
    first, second = figure.axes[0].images[:2]
    assert first.get_extent()[0] == second.get_extent()[0] and first.get_extent()[2] < second.get_extent()[3]
    # In the file: the sheet's pixel (x, y) is at this place of the picture.
    drawing.save(figure, [tmp_path / "a.png"], "t", "d")
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    width, height = figure.axes[0].get_xlim()[1], figure.axes[0].get_ylim()[0]

    def at(image, row, column):
        left, _, _, top = image.get_extent()
        return picture.getpixel(
            (round((left + column + 0.5) * picture.width / width), round((top + row + 0.5) * picture.height / height))
        )

    assert at(first, 1, 25) == (255, 255, 255) and at(first, 48, 25) == at(first, 25, 1) == (0, 0, 0)
    assert at(second, 25, 1) == (255, 255, 255) and at(second, 1, 25) == at(second, 25, 48) == (0, 0, 0)
    top, left, _, box_width = FIRST_BOX
    assert "#{:02X}{:02X}{:02X}".format(*at(second, top, left + box_width / 2)) == drawing.colour(0)


def test_a_box_surrounds_its_ball():
    y, x = np.mgrid[:SIDE, :SIDE]
    ball = (y - 20) ** 2 + (x - 31) ** 2 < 6**2
    scene = make_scene()
    scene.where[0, 0] = where_of(13.5, 24.5, 13, 13)
    (_, (top, left, height, width)), *_ = drawing.boxes(scene, 0)
    rows, columns = np.nonzero(ball)
    assert top - 0.5 < rows.min() and rows.max() < top + height + 0.5
    assert left - 0.5 < columns.min() and columns.max() < left + width + 0.5
    assert abs(rows.min() - top) < 2 and abs(left + width - columns.max()) < 2


def test_a_box_of_what_is_drawn_leaves_a_pixel_free_and_black_objects_have_none():
    box = np.tile([[4.5, 19.5, 12.0, 8.0], [np.nan] * 4, [1, 1, 5, 5]], (T, 1, 1))
    scene = make_scene(box=box)
    for t in range(T):
        ((object_id, found),) = drawing.boxes(scene, t)  # the second draws nothing, the third slot is empty
        assert object_id == scene.object_id[t, 0]
        np.testing.assert_array_equal(found, [3.5, 18.5, 14, 10])


def test_absent_slots_have_no_box_and_predicted_frames_a_dashed_border():
    for first_generated in (T, 1):
        scene = make_scene(first_generated)
        figure = drawing.draw_scenes({"title": [scene, scene]})
        borders = [
            patch
            for patch in figure.axes[0].patches
            if to_hex(patch.get_edgecolor()) == "#000000" and patch.get_linestyle() != "-"
        ]
        assert len(borders) == 2 * (T - first_generated)
        captions = " ".join(text.get_text() for text in figure.axes[0].texts)
        assert ("Dashed border" in captions) == (first_generated < T)


@pytest.mark.parametrize("relation, heads, rows", [("in", 1, 3), ("rmc", 2, 4), ("rmc_slots", 2, 6)])
def test_attention_has_a_matrix_a_frame_whose_rows_are_coloured_by_the_frame_before(relation, heads, rows):
    attention = np.random.default_rng(0).random((T, heads, rows, rows))
    scene = make_scene(relation=relation, attention=attention)
    figure = drawing.draw_scenes({"title": [scene]}, show_attention=True)
    matrices = [image.get_array() for image in figure.axes[0].images if image.get_array().shape == (rows, rows)]
    assert len(matrices) == T - 1  # nothing came before the first frame
    for t, matrix in enumerate(matrices, 1):
        shown = ~np.ma.getmaskarray(matrix)
        np.testing.assert_allclose(matrix[shown], attention[t].mean(0)[shown])
        colours = drawing.attention_rows(scene, t)
        assert len(colours) == rows
        if relation != "rmc":
            assert colours[:2] == [drawing.colour(i) for i in scene.object_id[t - 1, :2]]
            assert not shown[2].any() and not shown[:, 2].any()  # the empty slot
            assert shown[0, 1] and shown[0, 0] == (relation != "in")  # an object does not attend to itself there
    chips = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_fill()]
    assert len(chips) == 2 * rows * (T - 1)


def test_animation(tmp_path):
    scene = make_scene()
    drawing.save_gif(drawing.animate([[scene, scene._replace(first_generated=2)]] * 2), tmp_path / "a.gif", "t", "d")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == T
        for t in range(T):
            gif.seek(t)
            frame = np.asarray(gif.convert("RGB")).astype(int)
            scale, gap, side = 3, 12, 3 * SIDE
            left, top = gap + side + gap, gap + 40
            assert frame.shape[:2] == (top + 2 * (side + gap), gap + 3 * (side + gap))
            # Input above: bright at the top; the reconstruction at the left; boxes in their colours.
            assert (frame[top + 4, gap + 75] == 255).all() and (frame[top + 75, gap + 4] == 0).all()
            assert (frame[top + 75, left + 4] == 255).all()
            for object_id, (y, x, _, _) in ((0, FIRST_BOX), (4, SECOND_BOX)):
                pixel = frame[round(top + scale * (y + 3)), round(left + scale * (x + 0.5))]
                assert "#{:02X}{:02X}{:02X}".format(*pixel) == drawing.colour(object_id)
            border = frame[top + 75, left + side + gap - 4]
            assert (border == 0).all() == (t >= 2)


def test_bars_show_means_spreads_and_every_sample():
    values = np.array([[1.0, 2, 3], [4, 5, 9]])
    figure = drawing.draw_bars([[drawing.Panel("balls", "nats", {"rsqair_in": drawing.Bar(values, 7.0)}, 11.0), None]])
    axes = figure.axes[0]
    (bar,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert bar.get_height() == 4.0
    segments = axes.containers[-1].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(segments[:, 1], 4 + np.array([-1, 1]) * values.std(ddof=1))
    points = sorted(len(c.get_offsets()) for c in axes.collections if len(c.get_offsets()))
    assert points[-1] == 6
    assert not figure.axes[1].get_visible()
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {"the paper's figure"}


def test_band_is_over_the_steps_that_two_runs_share():
    curves = [
        drawing.Curve(np.array([1, 2, 3]), np.array([1.0, 2, 3])),
        drawing.Curve(np.array([2, 3, 4]), np.array([6.0, np.nan, 5])),
    ]
    np.testing.assert_array_equal(drawing.band(curves), [[2], [4], [2], [6]])


# ---------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def data(folder):
    return make_test_balls(folder / "balls.h5", 8, T)


@pytest.fixture(scope="module")
def tiny_run(folder):
    return save_run(folder / "in_0", relation="in")


@pytest.fixture(scope="module")
def loaded(tiny_run):
    """The tiny run with 3 particles; its compiled frames serve several tests."""
    return predict.load(str(tiny_run), "best", 3)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs eval.figures in this process (TensorFlow starts slowly): exit code and error output."""

    def call(*arguments, main=figures.main):
        monkeypatch.setattr(sys, "argv", ["figures", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_cli(main)
        return stop.value.code or 0, capsys.readouterr().err

    return call


def description(path):
    with Image.open(path) as image:
        image.verify()
        return image.info["Description"]


@pytest.mark.slow
def test_figure_3_of_a_run_as_a_user_asks_for_it(folder, data, tiny_run):
    out = folder / "new" / "figure3.png"
    done = run_command(
        "eval.figures",
        "--run",
        tiny_run,
        "--data",
        data,
        data,
        "--n_sequences",
        2,
        "--n_frames",
        T,
        "--generate_after",
        1,
        "--attention",
        "--gif",
        "--out",
        out,
        out.with_suffix(".pdf"),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.parent.iterdir()) == ["figure3.gif", "figure3.pdf", "figure3.png"]
    assert "2 sequences of 4 frames" in description(out) and "frames 2 to 3 are predicted" in description(out)
    assert out.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    with Image.open(out.with_suffix(".gif")) as gif:
        assert gif.n_frames == T
        assert b"input, reconstruction, rollout" in gif.info["comment"]
        assert b"python -m eval.figures --run" in gif.info["comment"]


@pytest.mark.slow
def test_an_original_run(folder, data, command):
    original = save_original(folder / "original", (3,))
    out = folder / "original.png"
    assert command("--run", original, "--data", data, "--n_sequences", 1, "--n_frames", 2, "--out", out)[0] == 0
    assert "SQAIR on balls: 1 sequence of 2 frames" in description(out) and "inferred" in description(out)


@pytest.mark.slow
def test_a_reconstruction_and_a_rollout_begin_alike(data, loaded):
    with Source(data, "test", (SIDE, SIDE, 1), T, 4) as source:
        whole, rollout = (drawing.join(figures.scene_parts_from_run(loaded, source, first, seed=1)) for first in (T, 2))
    for a, b in zip(whole, rollout):
        inferred = (a.frames, a.where[:2], a.object_id[:2], a.canvas[:2])
        for one, two in zip(inferred, (b.frames, b.where[:2], b.object_id[:2], b.canvas[:2])):
            np.testing.assert_array_equal(one, two)
    assert any((a.where[2:] != b.where[2:]).any() for a, b in zip(whole, rollout))


def test_boxes_are_of_what_is_drawn_unless_windows_are_asked_for(data, loaded):
    with Source(data, "test", (SIDE, SIDE, 1), T, 4) as source:
        drawn, windows = (
            drawing.join(figures.scene_parts_from_run(loaded, source, T, 1, kind)) for kind in ("drawn", "window")
        )
    seen = 0
    for scene, window in zip(drawn, windows):
        assert window.box is None
        np.testing.assert_array_equal(scene.where, window.where)
        for t in range(T):
            around = dict(drawing.boxes(window, t))
            for object_id, box in drawing.boxes(scene, t):
                # These glimpses are bright all over: what is drawn is the window, as far as the frame reaches, give
                # or take half of one of the glimpse's 6 x 6 pixels.
                start, end = np.clip(
                    [around[object_id][:2], around[object_id][:2] + around[object_id][2:]], -0.5, SIDE - 0.5
                )
                np.testing.assert_allclose(box, [*start - 1, *end - start + 2], atol=5)
                seen += 1
    assert seen > T


def test_a_long_video_is_drawn_in_parts(folder, data, tiny_run, loaded, command, monkeypatch):
    monkeypatch.setattr(predict, "load", lambda *_: loaded)
    options = ("--run", tiny_run, "--data", data, "--n_sequences", 4, "--n_frames", T, "--generate_after", 1, "--gif")
    images = {}
    for name in ("whole", "parts"):
        if name == "parts":
            for module, setting, value in ((truth, "PART", 3), (predict, "KEPT", 1), (figures, "MOST_SHOWN", 2)):
                monkeypatch.setattr(module, setting, value)
        out = folder / f"{name}.png"
        code, errors = command(*options, "--out", out)
        assert code == 0, errors
        with Image.open(out.with_suffix(".gif")) as gif:
            images[name] = [(gif.seek(t), np.asarray(gif.convert("RGB")).astype(int))[1] for t in range(gif.n_frames)]
    assert len(images["whole"]) == len(images["parts"]) == T
    # Except for rounding: a box may move by a pixel, a grey value to the next.
    for one, two in zip(images["whole"], images["parts"]):
        assert (np.abs(one - two) > 4).mean() < 1e-3
    # The still has room for two frames of each sequence.
    with Image.open(folder / "whole.png") as whole, Image.open(folder / "parts.png") as parts:
        assert parts.width <= whole.width
    assert "4 sequences of 4 frames" in description(out) and "frames 2 to 3 are predicted" in description(out)
    code, error = command(*options, "--attention", "--out", out)
    assert code == 1 and "--attention" in error and "choose at most 2" in error


def test_a_still_shows_some_of_many_frames():
    scene = make_scene(first_generated=2)
    names = ("frames", "canvas", "where", "presence", "object_id")
    parts = [
        [scene._replace(**{name: getattr(scene, name)[first:last] for name in names}, times=np.arange(first, last))]
        for first, last in ((0, 3), (3, T))
    ]
    (whole,) = drawing.join(parts)
    for name in names:
        np.testing.assert_array_equal(getattr(whole, name), getattr(scene, name))
    (thin,) = drawing.join(parts, 3)
    assert thin.times.tolist() == [0, 3] and len(thin.frames) == 2
    figure = drawing.draw_scenes({"title": [thin]})
    said = [text.get_text() for text in figure.axes[0].texts]
    assert "t = 0" in said and "t = 3" in said and "t = 1" not in said
    assert "One frame in 3 is shown" in " ".join(" ".join(said).split())
    borders = [
        patch
        for patch in figure.axes[0].patches
        if to_hex(patch.get_edgecolor()) == "#000000" and patch.get_linestyle() != "-"
    ]
    assert len(borders) == 1  # frame 3 alone is predicted, of those shown


def test_an_animation_is_written_an_image_at_a_time(tmp_path):
    """Images that have been written are freed; the colours of different palettes are kept."""
    made, colours = [], 2 * [(200, 30, 30), (30, 200, 30), (30, 30, 200), (30, 30, 200)]

    def images():
        for colour in colours:
            assert sum(reference() is not None for reference in made) <= 3
            image = Image.new("RGB", (30, 20), colour).quantize()
            made.append(weakref.ref(image))
            yield image

    drawing.save_gif(images(), tmp_path / "a.gif", "t", "d")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 8 and gif.info["loop"] == 0 and gif.info["comment"].startswith(b"t\nd\npython")
        for t, colour in enumerate(colours):
            gif.seek(t)
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - colour).max() < 8
            assert gif.info["duration"] == (1000 if t == 7 else 250)
    drawing.save_gif([Image.new("L", (4, 4), 77)], tmp_path / "b.gif", "t", "d")
    with Image.open(tmp_path / "b.gif") as gif:
        assert (np.asarray(gif.convert("L")) == 77).all()


def test_predictions_in_place_of_a_run(folder, data, tiny_run, loaded, command, monkeypatch):
    monkeypatch.setattr(predict, "load", lambda *_: loaded)
    stored, out = folder / "predictions.h5", folder / "predictions.png"
    options = (
        "--run",
        tiny_run,
        "--data",
        data,
        "--n_frames",
        T,
        "--n_samples",
        1,
        "--k_particles",
        3,
        "--n_sequences",
        4,
        "--batch_size",
        4,
    )
    assert command(*options, "--out", stored, "--canvases", main=predict.main)[0] == 0
    assert command("--predictions", stored, "--n_frames", T, "--gif", "--out", out)[0] == 0
    assert "R-SQAIR (IN), seed 0, on balls: 4 sequences" in description(out)
    scene = drawing.join(figures.scene_parts_from_predictions(figures.Predictions(stored), 4, T))[2]
    assert scene.attention.shape == (T, 1, 3, 3) and scene.first_generated == T - 1
    np.testing.assert_array_equal(scene.box, figures.Predictions(stored)["rollout/box"][2, 0])
    code, error = command("--predictions", stored, "--n_frames", T + 1, "--out", out)
    assert code == 1 and f"it has {T} frames, {T + 1} were asked for" in error


def metrics_file(folder, model, seed, offset=0.0):
    """What eval.tables writes of one run."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    values = {
        name: (offset + rng.normal(size=size)).tolist()
        for name, size in (
            ("data_ll_predicted", 5),
            ("relational_ll_predicted", 5),
            ("data_ll_inferred", 5),
            ("iwae", 1),
        )
    }
    same = {"n_sequences": 100, "n_frames": 10, "n_generated": 1, "n_samples": 5, "k_particles": 5, "split": "test"}
    (folder / f"{model}_{seed}.json").write_text(
        json.dumps(
            {
                "file": f"{model}_{seed}.h5",
                "model": model,
                "seed": seed,
                "data_set": "balls4mass64",
                "slots": 4,
                "trained_slots": 4,
                "balls": [4],
                "data_check": 1,
                "comparable": same,
                "flags": {},
                "collapse": "none",
                "notes": [],
                "metrics": values,
                "by_horizon": {"data_ll": [[0.0, 0.0]] * 5},
                "bounds": {"data_ll_inferred": 712.6, "data_ll_predicted": 712.6, "relational_ll_predicted": 3.8},
            }
        )
    )
    return values


def test_figure_4(folder, command):
    means = {}
    for model, offset in (("sqair", 400.0), ("rsqair_in", 430.0)):
        values = [metrics_file(folder / "metrics", model, seed, offset)["data_ll_predicted"] for seed in range(3)]
        means[model] = np.mean(values)
    out = folder / "figure4.pdf"
    assert command("figure4", "--metrics", folder / "metrics", "--out", out, folder / "figure4.png")[0] == 0
    assert out.read_bytes().startswith(b"%PDF")
    said = description(folder / "figure4.png")
    assert f"SQAIR {means['sqair']:.2f} ±" in said and f"R-SQAIR (IN) {means['rsqair_in']:.2f} ±" in said
    row = figures.likelihood_panels(figures.read_metrics([folder / "metrics"]))[0]
    assert {model: bar.paper for model, bar in row[0].bars.items()} == {"sqair": 399.5, "rsqair_in": 429.2}
    assert row[0].bars["sqair"].values.shape == (3, 5) and row[0].bound == 712.6


def curve_run(folder, seed, steps=(100, 200, 300), **flags):
    """A run folder with metrics.csv, whose last line was cut short."""
    folder.mkdir()
    (folder / "flags.json").write_text(json.dumps(to_flags(Config()) | {"seed": seed} | flags, default=list))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "data", "length", "iwae_per_frame", "kl"])
        writer.writerows([step, "validation", 3, -1000.0 + step + seed, 5.0] for step in steps)
        file.write("400,vali")
    return folder


def test_curves(folder, command, monkeypatch):
    runs = [curve_run(folder / f"curve_{seed}", seed, seq_len=3, stage_itr=120, max_seq_len=5) for seed in (0, 4)]
    drawn = []
    monkeypatch.setattr(figures, "draw_curves", lambda *a: drawn.append(a) or drawing.draw_curves(*a))
    out = folder / "curves.png"
    assert command("curves", "--runs", *runs, "--quantities", "iwae_per_frame", "kl", "--out", out)[0] == 0
    assert "2 runs" in description(out) and "SQAIR -698" in description(out)
    _, panels, changes, original = drawn[0]
    assert changes == [(120, 4), (240, 5)] and not original
    curves = panels[figures.LABELS["iwae_per_frame"]]["sqair"]
    np.testing.assert_array_equal(curves[1].values, [-896, -796, -696])
    figure = drawing.draw_curves(*drawn[0])
    mean = max(figure.axes[0].lines, key=lambda line: line.get_linewidth())
    np.testing.assert_array_equal(mean.get_ydata(), [-898, -798, -698])


def test_curves_beside_the_originals(folder, command, monkeypatch):
    runs = [curve_run(folder / f"beside_{seed}", seed, seq_len=3, max_seq_len=3) for seed in (0, 4)]
    recorded = folder / "original.json"
    recorded.write_text(
        json.dumps(
            [{"itr": 0, "elbo_iwae": -3600.0, "data_ll": -1.0}, {"itr": 100, "elbo_iwae": -2400.0, "data_ll": -2.0}]
        )
    )
    drawn = []
    monkeypatch.setattr(figures, "draw_curves", lambda *a: drawn.append(a) or drawing.draw_curves(*a))
    out = folder / "beside.png"
    options = ["--quantities", "iwae_per_frame", "kl", "--beside", recorded, "--out", out]
    assert command("curves", "--runs", *runs, *options)[0] == 0
    original = drawn[0][3]
    assert set(original) == {figures.LABELS["iwae_per_frame"]}  # the file has no KL
    np.testing.assert_array_equal(original[figures.LABELS["iwae_per_frame"]].values, [-1200, -800])  # a frame of 3
    (dashed,) = (line for line in drawing.draw_curves(*drawn[0]).axes[0].lines if line.get_linestyle() == "--")
    np.testing.assert_array_equal(dashed.get_xdata(), [0, 100])

    growing = curve_run(folder / "growing", 0, seq_len=2, stage_itr=120, max_seq_len=5)
    code, error = command("curves", "--runs", growing, *options)
    assert code == 1 and "of one length" in error
    recorded.write_text('{"itr": 0}')
    code, error = command("curves", "--runs", *runs, *options)
    assert code == 1 and 'expected a list of {"itr"' in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--run", "{run}", "--data", "{data}", "--out", "a.jpg"],
            "--out a.jpg: expected a name that ends in .png or .pdf",
        ),
        (["--run", "{run}", "--out", "{tmp}/a.png"], "give --run with --data, or --predictions alone"),
        (["--run", "{tmp}", "--data", "{data}", "--out", "{tmp}/a.png"], "no checkpoint in it"),
        (["--run", "{run}", "--data", "{tmp}/none.h5", "--out", "{tmp}/a.png"], "none.h5: no such file"),
        (
            ["--run", "{run}", "--data", "{data}", "--out", "{tmp}/a.png"],
            "has 4 frames per sequence, 10 were asked for",
        ),
        (
            ["--run", "{run}", "--data", "{data}", "--n_frames", "4", "--generate_after", "3", "--out", "{tmp}/a.png"],
            "--generate_after 3: no frame of --n_frames 4 is left",
        ),
        (["--run", "{run}", "--data", "{data}", "--split", "training", "--out", "{tmp}/a.png"], "no split 'training'"),
        (["--predictions", "{data}", "--out", "{tmp}/a.png"], "not a file of predictions"),
        (["figure4", "--metrics", "{tmp}", "--out", "{tmp}/a.png"], "no .json in it"),
        (["figure4", "--metrics", "{run}/flags.json", "--out", "{tmp}/a.png"], "not a file of eval.tables"),
        (["curves", "--runs", "{run}", "--out", "{tmp}/a.png"], "metrics.csv: no such file"),
        (["curves", "--runs", "{tmp}", "--out", "{tmp}/a.png"], "flags.json: no such file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, tmp_path, data, tiny_run, command):
    places = {"run": tiny_run, "data": data, "tmp": tmp_path}
    code, error = command(*(str(a).format(**places) for a in arguments))
    assert code == 1 and message in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_attention_needs_a_relation(folder, data, command):
    plain = save_run(folder / "none_0")
    code, error = command(
        "--run", plain, "--data", data, "--n_frames", 2, "--n_sequences", 1, "--attention", "--out", folder / "x.png"
    )
    assert code == 1 and "no relational module" in error and not (folder / "x.png").exists()


def test_curves_of_an_unknown_quantity_or_set(folder, command):
    place = curve_run(folder / "curve_bad", 1)
    for options, message in (
        (["--quantities", "nonsense"], "no column nonsense"),
        (["--of", "training", "--quantities", "kl"], "no rows of training"),
    ):
        code, error = command("curves", "--runs", place, *options, "--out", folder / "y.png")
        assert code == 1 and message in error and error.count("\n") == 1


def test_figures_of_two_protocols_do_not_compare(folder):
    metrics_file(folder / "mixed", "sqair", 0)
    metrics_file(folder / "mixed", "sqair", 1)
    path = folder / "mixed" / "sqair_1.json"
    path.write_text(path.read_text().replace('"n_frames": 10', '"n_frames": 11'))
    with pytest.raises(UserError, match="do not compare: n_frames is 10 and 11"):
        figures.read_metrics([folder / "mixed"])
