"""Pictures of sequences, likelihoods and learning curves, from arrays; matplotlib for stills, Pillow for GIFs.

Every picture has a description, for people who cannot see it, and the command that made it: PNG and PDF
as metadata, GIF as its comment. Letters: T frames of H x W(, C) pixels, N slots, A heads and R rows of attention.
"""

import os
import pathlib
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import GifImagePlugin, Image, ImageChops, ImageDraw, ImageFont

from data_gen.files import begins, check_output, output_path
from eval.geometry import boxes_from_where
from relational.registry import INPUT, MEMORY, RELATIONS, find_relation
from sqair.config import NO_RELATION, model_titles

# Okabe and Ito's colours, distinct for colour-blind people too; the darkest come last, frames are mostly black.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
# Of models, in the order of `model_titles`: darkest first; vermilion is that of the paper's figures.
MODEL_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
GIF_SCALE, GIF_MILLISECONDS = 3, 250
_NO_OBJECT, _MEMORY, _INPUT = "#FFFFFF", "#BBBBBB", "#000000"


class Scene(NamedTuple):
    """One sequence and what a model made of it.

    Attributes:
      frames: [T, H, W(, C)], what the model saw, in [0, 1].
      canvas: [T, H, W(, C)], the decoded frames.
      where: [T, N, 4], logits (sx, sy, tx, ty).
      presence: [T, N], 0 or 1.
      object_id: [T, N], -1 where the slot is empty.
      first_generated: index of the first frame that was predicted; T if none was.
      relation: the model's, a value of --relation.
      attention: [T, A, R, R], row by attended row, among the objects of the frame before; None without a relation.
      box: [T, N, 4], what each object draws: top, left, height, width in pixels, NaN where nothing; None: its window.
      times: [T], the frames' indices in their sequence; None: from 0 on.
    """

    frames: np.ndarray
    canvas: np.ndarray
    where: np.ndarray
    presence: np.ndarray
    object_id: np.ndarray
    first_generated: int
    relation: str = NO_RELATION
    attention: np.ndarray | None = None
    box: np.ndarray | None = None
    times: np.ndarray | None = None

    def time(self, t: int) -> int:
        """The index in its sequence of frame t of these."""
        return t if self.times is None else int(self.times[t])

    def is_generated(self, t: int) -> bool:
        """Whether frame t of these was predicted."""
        return self.time(t) >= self.first_generated


def join(parts: Iterable[Sequence[Scene]], step: int = 1) -> list[Scene]:
    """Whole sequences from their parts.

    Args:
      parts: one after another, all of the same sequences.
      step: keep only every step-th frame of the sequences.

    Returns:
      A scene for every sequence.
    """
    taken: list[list[Scene]] = []
    for part in parts:
        chosen = [t for t in range(len(part[0].frames)) if part[0].time(t) % step == 0]
        times = np.array([part[0].time(t) for t in chosen], int)
        taken.append(
            [
                _with(
                    scene,
                    times=times,
                    **{
                        name: None if getattr(scene, name) is None else getattr(scene, name)[chosen]
                        for name in _BY_FRAME
                    },
                )
                for scene in part
            ]
        )
    joined: list[Scene] = []
    for pieces in zip(*taken):
        joined.append(
            _with(
                pieces[0],
                **{
                    name: None
                    if getattr(pieces[0], name) is None
                    else np.concatenate([getattr(x, name) for x in pieces])
                    for name in (*_BY_FRAME, "times")
                },
            )
        )
    return joined


def _with(scene: Scene, **arrays: Any) -> Scene:
    return scene._replace(**arrays)


_BY_FRAME = ("frames", "canvas", "where", "presence", "object_id", "attention", "box")


def colour(object_id: int) -> str:
    """The colour of an object: the same for the same id in every frame; it repeats after 7 ids."""
    return COLOURS[int(object_id) % len(COLOURS)]


def model_colour(model: str) -> str:
    """The colour of a model in all figures; it repeats after 6 models."""
    return MODEL_COLOURS[list(model_titles()).index(model) % len(MODEL_COLOURS)]


def boxes(scene: Scene, t: int) -> list[tuple[int, np.ndarray]]:
    """The (id, [top, left, height, width] in pixels, pixel centres at whole numbers) of a frame's objects.

    A pixel is left free around what is drawn, so that the object stays visible.
    """
    if scene.box is None:
        found = boxes_from_where(scene.where[t], scene.canvas.shape[1:3])
    else:
        found = scene.box[t] + [-1, -1, 2, 2]
    return [
        (int(scene.object_id[t, n]), found[n]) for n in np.flatnonzero(scene.presence[t]) if np.isfinite(found[n]).all()
    ]


# ---------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------


def this_command() -> str:
    """The command line that is running, for a shell."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    name = spec.name if spec else os.path.basename(sys.argv[0])
    return shlex.join(["python", "-m", name, *sys.argv[1:]])


_KINDS = {".png": begins("a PNG", b"\x89PNG"), ".pdf": begins("a PDF", b"%PDF-"), ".gif": begins("a GIF", b"GIF8")}


def check_pictures(paths: Iterable[pathlib.Path], inputs: Iterable[pathlib.Path] = ()) -> None:
    """`check_output` of pictures that are to be made."""
    for path in paths:
        check_output(path, _KINDS[path.suffix.lower()], inputs)


def save(figure: Figure, paths: Iterable[pathlib.Path], title: str, description: str) -> None:
    """Writes a figure as .png or .pdf, by the ending of each path; a file appears when it is complete."""
    for path in paths:
        kind = path.suffix[1:].lower()
        if kind == "pdf":
            metadata = {"Title": title, "Subject": description, "Keywords": this_command(), "CreationDate": None}
        else:
            metadata = {"Title": title, "Description": description, "Comment": this_command()}
        with output_path(path, _KINDS[path.suffix.lower()]) as temporary:
            figure.savefig(temporary, format=kind, dpi=160, metadata=metadata)


def save_gif(images: Iterable[Image.Image], path: pathlib.Path, title: str, description: str) -> None:
    """Writes an animation that repeats for ever, one image at a time; a file appears when it is complete.

    Args:
      images: all of one size, with palettes (mode P) or grey.
      path, title, description: of the file.
    """
    comment = "\n".join([title, description, this_command()]).encode()
    with output_path(path, _KINDS[".gif"]) as temporary, open(temporary, "wb") as file:
        frames = (image if image.mode == "P" else image.convert("P") for image in images)
        first, before = next(frames), None
        # Pillow's own writer of animations keeps all images in memory.
        file.writelines(GifImagePlugin.getheader(first, info={"loop": 0, "comment": comment})[0])
        shared = first.getpalette()
        image: Image.Image | None = first
        while image is not None:
            following = next(frames, None)
            corner, changed = (0, 0), image
            own = image.getpalette() != shared
            if before is not None and not own and before.getpalette() == shared:
                box = ImageChops.difference(image.convert("RGB"), before.convert("RGB")).getbbox() or (0, 0, 1, 1)
                corner, changed = box[:2], image.crop(box)
            file.writelines(
                GifImagePlugin.getdata(
                    changed,
                    corner,
                    duration=GIF_MILLISECONDS * (4 if following is None else 1),
                    include_color_table=own,
                )
            )
            before, image = image, following
        file.write(b";")


# ---------------------------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------------------------


class _Sheet:
    """A figure measured in pixels of the frames, rows downwards: one axes that everything is placed on."""

    def __init__(self, width: float, height: float, inches: float):
        """Args: width, height: in pixels. inches: of one pixel."""
        self.figure = Figure(figsize=(width * inches, height * inches), facecolor="white")
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()
        self.axes.autoscale(False)

    def image(self, image: np.ndarray, x: float, y: float, width: float, height: float, cmap="gray", vmax=1.0):
        """Row 0 on top, its upper left corner at (x, y); masked pixels are left out."""
        return self.axes.imshow(
            image.clip(0, vmax),
            cmap=cmap,
            vmin=0,
            vmax=vmax,
            interpolation="nearest",
            aspect="auto",
            extent=(x, x + width, y + height, y),
        )

    def rectangle(self, x: float, y: float, width: float, height: float, within=None, **style) -> None:
        """Args: within: x, y, width, height of what is to be seen of it; None for all."""
        patch = self.axes.add_patch(Rectangle((x, y), width, height, **{"fill": False, **style}))
        if within is None:
            patch.set_clip_on(False)
        else:
            left, top, width, height = within
            patch.set_clip_path(Rectangle((left, top), width, height, transform=self.axes.transData))

    def text(self, x: float, y: float, text: str, **style):
        return self.axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 8, **style})


def draw_scenes(sections: Mapping[str, Sequence[Scene]], show_attention: bool = False) -> Figure:
    """The paper's figure 3: each sequence as a row of inputs above a row of the model's frames.

    Boxes have the colour of their object's id (dashed from the eighth id on). Predicted frames have a dashed border.

    Args:
      sections: title -> its sequences, all of one frame size.
      show_attention: a third row, with the relation's attention as matrices (mean over the heads).

    Returns:
      A figure.
    """
    scenes = [scene for section in sections.values() for scene in section]
    height, width = scenes[0].frames.shape[1:3]
    n_frames = max(len(scene.frames) for scene in scenes)
    frame_inches = min(max(11 / n_frames, 0.6), 1.0)
    point = width / frame_inches / 72  # of a font, in pixels
    gap, left, right = 0.10 * width, 18 * point, 6 * point
    any_generated = any(scene.is_generated(len(scene.frames) - 1) for scene in scenes)
    show_attention = show_attention and any(scene.attention is not None for scene in scenes)
    attention = [scene.attention[1:].mean(1) for scene in scenes if scene.attention is not None]
    vmax = max((float(weights.max(initial=1e-6)) for weights in attention), default=1.0)

    def rows_of(scene):
        return 2 * (height + gap) + (width + gap) * (show_attention and scene.attention is not None)

    between = 8 * point
    total_width = max(left + n_frames * (width + gap) + right, 300 * point) + 40 * point * show_attention
    caption = [
        "Boxes: one colour for each object, by its id."
        + " Dashed border: predicted from the propagation prior, the input unseen." * any_generated
    ]
    step = max(scene.time(1) - scene.time(0) if len(scene.frames) > 1 else 1 for scene in scenes)
    if step > 1:
        caption[0] += f" One frame in {step} is shown."
    if show_attention:
        caption.append(_attention_caption(scenes))
    letters = int(total_width / point / 4.1)  # of 7.5 points that fit into a line
    caption = [line for text in caption for line in textwrap.wrap(text, letters)]
    total_height = (
        sum(34 * point + sum(rows_of(s) + between for s in section) for section in sections.values())
        + (4 + 11 * len(caption)) * point
    )
    sheet = _Sheet(total_width, total_height, frame_inches / width)

    y, matrix = 4 * point, None
    for title, section in sections.items():
        sheet.text(left, y + 8 * point, title, ha="left", fontsize=10, weight="bold")
        longest = max(section, key=lambda scene: len(scene.frames))
        for t in range(len(longest.frames)):
            sheet.text(left + t * (width + gap) + width / 2, y + 24 * point, f"t = {longest.time(t)}", color="#444444")
        y += 34 * point
        for scene in section:
            matrix = _draw_scene(sheet, scene, left, y, gap, point, vmax, show_attention) or matrix
            y += rows_of(scene) + between
    sheet.text(left, y, "\n".join(caption), ha="left", va="top", fontsize=7.5, linespacing=1.3, color="#333333")
    if matrix is not None:
        x = left + n_frames * (width + gap) + 4 * point
        length = min(0.6, 150 * point / total_height)
        place = sheet.figure.add_axes((x / total_width, 0.5 - length / 2, 6 * point / total_width, length))
        bar = sheet.figure.colorbar(matrix, cax=place)
        bar.set_label("attention", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return sheet.figure


def _draw_scene(
    sheet: _Sheet, scene: Scene, left: float, top: float, gap: float, point: float, vmax: float, show_attention: bool
):
    """Draws one sequence; returns an image of attention, if there is one."""
    (height, width), matrix = scene.frames.shape[1:3], None
    labels = ["input", "model"] + ["attention"] * (show_attention and scene.attention is not None)
    for row, label in enumerate(labels):
        sheet.text(left - 8 * point, top + row * (height + gap) + height / 2, label, rotation=90)
    for t in range(len(scene.frames)):
        x, y = left + t * (width + gap), top + height + gap
        sheet.image(scene.frames[t], x, top, width, height)
        sheet.image(scene.canvas[t], x, y, width, height)
        for object_id, (box_top, box_left, box_height, box_width) in boxes(scene, t):
            # Pixel i is centred at i in boxes and at i + 0.5 on the sheet.
            sheet.rectangle(
                x + box_left + 0.5,
                y + box_top + 0.5,
                box_width,
                box_height,
                (x, y, width, height),
                edgecolor=colour(object_id),
                linewidth=1.5,
                linestyle="-" if object_id // len(COLOURS) % 2 == 0 else (0, (2, 1)),
            )
        if scene.is_generated(t):
            margin = 0.35 * gap
            sheet.rectangle(
                x - margin,
                y - margin,
                width + 2 * margin,
                height + 2 * margin,
                edgecolor="black",
                linewidth=1.2,
                linestyle=(0, (3, 2)),
            )
        if len(labels) == 3 and t > 0:
            matrix = _draw_attention(sheet, scene, t, x, y + height + gap, width, vmax)
    return matrix


def attention_rows(scene: Scene, t: int) -> list[str]:
    """The colours of the R rows of attention at frame t > 0: of the objects of the frame before, memory or input."""
    objects = [
        colour(i) if present else _NO_OBJECT for i, present in zip(scene.object_id[t - 1], scene.presence[t - 1])
    ]
    others = {MEMORY: _MEMORY, INPUT: _INPUT}
    return [
        others[row] if isinstance(row, str) else objects[row]
        for row in find_relation(scene.relation).attention_rows(len(objects))
    ]


def _draw_attention(sheet: _Sheet, scene: Scene, t: int, x: float, y: float, size: float, vmax: float):
    chip = 0.09 * size
    colours = attention_rows(scene, t)
    cell = (size - chip) / len(colours)
    assert scene.attention is not None
    weights = scene.attention[t].mean(0)
    absent = np.array([c == _NO_OBJECT for c in colours])
    itself = np.eye(len(colours), dtype=bool) & (not find_relation(scene.relation).attends_to_itself)
    nothing = absent[:, None] | absent | itself
    image = sheet.image(
        np.ma.array(weights, mask=nothing), x + chip, y + chip, size - chip, size - chip, "cividis", vmax
    )
    for i, edge in enumerate(colours):
        style = dict(fill=True, facecolor=edge, edgecolor="#777777", linewidth=0.4)
        sheet.rectangle(x, y + chip + i * cell, 0.8 * chip, cell, **style)
        sheet.rectangle(x + chip + i * cell, y, cell, 0.8 * chip, **style)
    return image


def _attention_caption(scenes: Iterable[Scene]) -> str:
    kinds = {scene.relation for scene in scenes}
    return " ".join(relation.attention_text for kind, relation in RELATIONS.items() if kind in kinds)


def animate(rows: Sequence[Sequence[Scene]], n_frames: int | None = None) -> Iterator[Image.Image]:
    """Sequences as an animation: input, and beside it every scene of the row, a reconstruction or a rollout.

    Args:
      rows: sequence -> scenes with the same frames, the same kinds in every row; they may be a part of the sequences.
      n_frames: of the sequences; None: as many as the scenes have.

    Yields:
      One image per frame. Predicted frames have a black border and a label.
    """
    first = rows[0][0]
    (n, height, width), grey = first.frames.shape[:3], first.frames.ndim == 3
    n_frames = n_frames or n
    scale = max(GIF_SCALE, -(-150 // width))
    gap, line = 12, 20
    # The height of a line for the column's name, and one for the frame's.
    size = (gap + (len(rows[0]) + 1) * (width * scale + gap), gap + 2 * line + len(rows) * (height * scale + gap))
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 13)
    for t in range(n):
        image = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(image)
        draw.text((gap, gap / 2), f"frame {first.time(t)} of 0 to {n_frames - 1}", "black", font)
        for r, scenes in enumerate(rows):
            top = gap + 2 * line + r * (height * scale + gap)
            for c, scene in enumerate([None, *scenes]):
                x = gap + c * (width * scale + gap)
                generated = scene is not None and scene.is_generated(t)
                if r == 0:
                    label = (
                        "input"
                        if scene is None
                        else (
                            "reconstruction"
                            if scene.first_generated >= n_frames
                            else f"rollout{': predicted' * generated}"
                        )
                    )
                    draw.text((x, gap / 2 + line), label, "black", font)
                shown = scenes[0].frames if scene is None else scene.canvas
                image.paste(_enlarged(shown[t], scale), (x, top))
                if generated:
                    draw.rectangle(
                        (x - 4, top - 4, x + width * scale + 3, top + height * scale + 3), outline="black", width=2
                    )
                if scene is not None:
                    _draw_boxes(image, boxes(scene, t), x, top, width * scale, height * scale, scale)
        yield _indexed(image) if grey else image.quantize()


def _enlarged(frame: np.ndarray, scale: int) -> Image.Image:
    pixels = np.round(255 * np.clip(frame, 0, 1)).astype(np.uint8)
    return Image.fromarray(np.kron(pixels, np.ones((scale, scale) + (1,) * (frame.ndim - 2), np.uint8))).convert("RGB")


def _draw_boxes(image: Image.Image, found, x: int, y: int, width: int, height: int, scale: int) -> None:
    """Draws the boxes of a frame on its own part of the image, so that none reaches into the next."""
    part = image.crop((x, y, x + width, y + height))
    draw = ImageDraw.Draw(part)
    for object_id, box in found:
        top, left, box_height, box_width = box
        corner = (scale * (left + 0.5), scale * (top + 0.5))
        draw.rectangle(
            (*corner, corner[0] + scale * box_width, corner[1] + scale * box_height), outline=colour(object_id), width=2
        )
    image.paste(part, (x, y))


def _indexed(image: Image.Image) -> Image.Image:
    """A picture of greys and the objects' colours with one palette for all frames, so that no colour flickers."""
    pixels = np.asarray(image).astype(int)  # [H, W, 3]
    greys, colours = np.repeat(np.arange(128)[:, None] * 255 // 127, 3, 1), _rgb(COLOURS)
    distance = ((pixels[..., None, :] - colours) ** 2).sum(-1)  # [H, W, colours]
    is_grey = np.ptp(pixels, -1) == 0
    index = np.where(is_grey, (pixels[..., 0] * 127 + 127) // 255, 128 + distance.argmin(-1))
    indexed = Image.frombytes("P", image.size, index.astype(np.uint8).tobytes())
    indexed.putpalette(np.concatenate([greys, colours]).astype(np.uint8).tobytes())
    return indexed


def _rgb(colours: Iterable[str]) -> np.ndarray:
    """[n, 3] in 0..255 of colours such as #E69F00."""
    return np.array([[int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in colours])


# ---------------------------------------------------------------------------------------------------------------
# Likelihoods: the paper's figure 4
# ---------------------------------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """One model on one data set.

    Attributes:
      values: [R, M], nats per frame, of R seeds with M samples each.
      paper: the paper's figure; None where it has none.
    """

    values: np.ndarray
    paper: float | None = None


class Panel(NamedTuple):
    """One measure on one data set.

    Attributes:
      title, label: of the panel and of its vertical axis.
      bars: model -> `Bar`.
      bound: the value of a perfect model, nats per frame.
    """

    title: str
    label: str
    bars: Mapping[str, Bar]
    bound: float | None = None


def draw_bars(panels: Sequence[Sequence[Panel | None]]) -> Figure:
    """Means as bars with the standard deviation of all single values, which are the points.

    Args:
      panels: rows of panels, all rows equally long; None leaves a place empty.

    Returns:
      A figure.
    """
    shown = {model for row in panels for panel in row if panel for model in panel.bars}
    models = [model for model in model_titles() if model in shown]
    figure = Figure(
        figsize=(max(1.3 * len(models) + 1.2, 3.2) * len(panels[0]), 3.1 * len(panels) + 0.5), layout="constrained"
    )
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid.ravel(), (panel for row in panels for panel in row)):
        if panel is None:
            axes.set_visible(False)
        else:
            handles |= _draw_panel(axes, panel, models)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _draw_panel(axes: Axes, panel: Panel, models: Sequence[str]) -> dict[str, Any]:
    """Draws a panel with a place for each of the models; returns what the legend explains."""
    handles: dict[str, Any] = {}
    titles = model_titles()
    for model, bar in panel.bars.items():
        i = models.index(model)
        values = np.asarray(bar.values, float)
        spread = values.std(ddof=1) if values.size > 1 else 0.0
        axes.bar(i, values.mean(), 0.62, color=model_colour(model), alpha=0.75, zorder=1)
        handles["mean ± standard deviation"] = axes.errorbar(
            i, values.mean(), spread, color="black", capsize=4, linewidth=1.3, zorder=4
        )
        # A column of points for each seed.
        x = i + np.linspace(-0.2, 0.2, len(values) + 2)[1:-1]
        handles["one sample (a column for each seed)"] = axes.scatter(
            np.repeat(x, values.shape[1]),
            values.ravel(),
            s=9,
            color="white",
            edgecolor="black",
            linewidth=0.6,
            zorder=3,
        )
        if bar.paper is not None:
            handles["the paper's figure"] = axes.scatter(
                i + 0.38, bar.paper, marker="D", s=26, color="#D55E00", zorder=5
            )
    if panel.bound is not None:
        handles["reached by a perfect model"] = axes.axhline(
            panel.bound, color="#444444", linestyle="--", linewidth=1.0
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(models)), [titles[model].replace(" (", "\n(") for model in models], fontsize=8)
    axes.set_xlim(-0.6, len(models) - 0.4)
    axes.set_ylabel(panel.label, fontsize=9)
    axes.set_title(panel.title, fontsize=10)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    return handles


# ---------------------------------------------------------------------------------------------------------------
# Learning curves
# ---------------------------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """One run: training steps [n] and values [n] of one quantity."""

    steps: np.ndarray
    values: np.ndarray


def band(curves: Sequence[Curve]) -> np.ndarray:
    """[4, n]: the steps that at least two runs have, and there the mean, the lowest and the highest of the runs."""
    table: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in zip(curve.steps, curve.values):
            if np.isfinite(value):
                table.setdefault(int(step), []).append(float(value))
    rows = [
        (step, np.mean(values), min(values), max(values)) for step, values in sorted(table.items()) if len(values) > 1
    ]
    return np.array(rows).reshape(-1, 4).T


def draw_curves(
    title: str,
    panels: Mapping[str, Mapping[str, Sequence[Curve]]],
    changes: Sequence[tuple[int, int]],
    original: Mapping[str, Curve] | None = None,
) -> Figure:
    """Learning curves: a thin line for each seed, a thick one for their mean, a band from the lowest to the highest.

    Args:
      title: of all.
      panels: quantity, the label of the vertical axis -> model -> a curve for each seed.
      changes: (step, frames) where the curriculum makes sequences longer.
      original: quantity, as in `panels` -> the original program's curve, drawn dashed.

    Returns:
      A figure.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.9 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    figure.suptitle(title, fontsize=11)
    handles: dict[str, Any] = {}
    titles = model_titles()
    for axes, (label, models) in zip(grid.ravel(), panels.items()):
        axes.margins(y=0.12)
        for model, curves in sorted(models.items(), key=lambda item: list(titles).index(item[0])):
            name, shade = titles[model], model_colour(model)
            many = len(curves) > 1
            label_of = f"{name}, mean and range of {len(curves)} seeds" if many else f"{name}, 1 seed"
            for curve in curves:
                (line,) = axes.plot(
                    curve.steps,
                    curve.values,
                    color=shade,
                    linewidth=0.7 if many else 1.6,
                    alpha=0.5 if many else 1.0,
                    marker="." if len(curve.steps) == 1 else None,
                )
                handles.setdefault(label_of, line)
            steps, mean, low, high = band(curves)
            if len(steps):
                (handles[label_of],) = axes.plot(steps, mean, color=shade, linewidth=1.9)
                axes.fill_between(steps, low, high, color=shade, alpha=0.2, linewidth=0)
        if original and label in original:
            (handles["original program, 1 seed"],) = axes.plot(
                *original[label], color="black", linestyle="--", linewidth=1.4
            )
        for step, length in changes:
            axes.axvline(step, color="#666666", linestyle=":", linewidth=0.9)
            axes.annotate(
                f"{length}",
                (step, 1),
                xycoords=("data", "axes fraction"),
                xytext=(1.5, -2),
                textcoords="offset points",
                va="top",
                fontsize=7,
                color="#444444",
            )
        axes.set_ylabel(label, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("training step", fontsize=9)
    if changes:
        handles["sequences get longer (frames)"] = grid[0, 0].lines[-1]
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure
