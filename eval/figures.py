"""Figures of trained models. The first word names the figure; sequences if left out.

    python -m eval.figures --run RUN --data FILE... [--generate_after N] --out FILE.png [FILE.pdf] [--gif] [--attention]
    python -m eval.figures --predictions FILE... --out FILE.png
    python -m eval.figures figure4 --metrics FOLDER --out FILE.png
    python -m eval.figures curves --runs RUN... --out FILE.png

sequences is the paper's figure 3, one part for each data file: `--data balls4mass64.h5 balls678mass64.h5`.
figure4 shows log-likelihoods of the last frame from the figures of eval.tables, curves learning curves.
"""

from data_gen.console import progress, run_module
from data_gen.errors import UserError
from data_gen.files import read_json
from eval.options import Curves, Figure4, Sequences, read_figure

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.figures", read_figure)

import collections
import contextlib
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from eval import comparison, geometry, predict, scores
from eval.drawing import (
    Bar,
    Curve,
    Panel,
    Scene,
    animate,
    check_pictures,
    draw_bars,
    draw_curves,
    draw_scenes,
    join,
    save,
    save_gif,
)
from eval.predictions import Predictions
from eval.truth import PART, Source
from sqair.config import NO_RELATION, load_flags, model_name, model_titles, sequence_length
from sqair.runs import folder as run_folder
from sqair.runs import loading
from sqair.runs.folder import read_rows, step_of

LABELS = {
    "iwae_per_frame": "IWAE bound, nats per frame",
    "vae_per_frame": "VAE bound, nats per frame",
    "data_ll": "log p(x|z), nats per frame",
    "kl": "KL, nats per frame",
    "num_steps": "objects per frame",
    "gradient_norm": "gradient norm",
    "clipped": "share of updates clipped",
    "num_step_accuracy": "count accuracy",
    "mse": "squared error per pixel",
    "ess": "effective sample size",
    "seconds_per_step": "seconds per training step",
    "cpu_seconds_per_step": "CPU seconds per step",
    "memory_mb": "memory, MB",
    "open_files": "open files",
}

MOST_SHOWN = 100  # frames of a sequence in a still image


# ---------------------------------------------------------------------------------------------------------------
# Sequences: the paper's figure 3
# ---------------------------------------------------------------------------------------------------------------


def scene_parts_from_run(
    loaded: loading.Run,
    source: Source,
    first_generated: int,
    seed: int,
    boxes: str = "drawn",
    advance: Callable[[int], Any] = lambda n: None,
) -> Iterator[list[Scene]]:
    """Runs a model on all sequences of a source, one sample each, some frames at a time.

    Args:
      loaded: the model.
      source: data.
      first_generated: frames from this one on are predicted; T to infer all.
      seed: of the noise. With the same seed the inferred frames are the same, whichever frames are predicted.
      boxes: what an object's box is, a key of `scores.BOXES`.
      advance: see `predict.sample`.

    Yields:
      A scene for every sequence, of the next frames.
    """
    stream = next(source.streams(source.n_sequences))
    # The frames before the prediction choose the particle, in the reconstruction beside a rollout too.
    for first, truth, drawn in predict.sample(
        loaded.model, stream, first_generated, predict.generator(seed, 0, 1), advance
    ):
        found = {name: value.numpy() for name, value in drawn._asdict().items()}
        attention = found["attention"] if found["attention"].ndim == 5 else None
        box = geometry.boxes_and_centres_from_pixels(found["pasted"])[0] if boxes == "drawn" else None
        times = np.arange(first, first + truth.frames.shape[1])
        yield [
            Scene(
                truth.frames[b],
                found["canvas"][:, b],
                found["where"][:, b],
                found["presence"][:, b],
                found["object_id"][:, b].round().astype(int),
                first_generated,
                loaded.model.config.relation,
                None if attention is None else attention[:, b],
                None if box is None else box[:, b],
                times,
            )
            for b in range(source.n_sequences)
        ]


def scene_parts_from_predictions(
    predictions: Predictions,
    n_sequences: int,
    n_frames: int,
    boxes: str = "drawn",
    advance: Callable[[int], Any] = lambda n: None,
) -> Iterator[list[Scene]]:
    """The first sample of the first sequences of a file of predictions, some frames at a time; the rest as above.

    Raises:
      UserError: it lacks canvases or the boxes asked for, or has too few sequences or frames.
    """
    for letter, asked, name in (("S", n_sequences, "sequences"), ("T", n_frames, "frames")):
        if asked > predictions.sizes[letter]:
            raise UserError(f"{predictions.path}: it has {predictions.sizes[letter]} {name}, {asked} were asked for")
    if boxes == "drawn":
        scores.check_drawn(predictions, "box")
    for first in range(0, n_frames, PART):
        part = slice(first, min(first + PART, n_frames))

        def read(name: str, part: slice = part) -> np.ndarray:
            return predictions[f"rollout/{name}"][:n_sequences, 0, part]

        canvas, attention = read("canvas") / 255, None
        if "rollout/attention" in predictions:
            attention = read("attention").astype(np.float32)
        frames = predictions["truth/frames"][:n_sequences, part] / 255
        where, presence, object_id = read("where"), read("presence"), read("object_id")
        box = read("box") if boxes == "drawn" else None
        yield [
            Scene(
                frames[s],
                canvas[s],
                where[s],
                presence[s],
                object_id[s],
                min(predictions.about.first_generated, n_frames),
                predictions.about.flags["relation"],
                None if attention is None else attention[s],
                None if box is None else box[s],
                np.arange(part.start, part.stop),
            )
            for s in range(n_sequences)
        ]
        advance(n_sequences * (part.stop - part.start))


class _Film(NamedTuple):
    """A part of a figure: its title, the kinds of scenes of its sequences (first predicted frame -> parts, that of the
    still first), and how many frames will be computed for them."""

    title: str
    kinds: dict[int, Iterator[list[Scene]]]
    work: int


def write_sequences(settings: Sequences) -> list[pathlib.Path]:
    """Writes the figure, and the animation if asked; returns the files."""
    n_frames, animation = settings.n_frames, settings.out[0].with_suffix(".gif")
    written = [*settings.out, *([animation] if settings.gif else [])]
    check_pictures(written, (*settings.data, *settings.predictions))
    if settings.attention and n_frames > MOST_SHOWN:
        raise UserError(
            f"--attention: it is among the objects of the frame before, and of --n_frames {n_frames} not "
            f"all are shown; choose at most {MOST_SHOWN}"
        )
    step = -(-n_frames // MOST_SHOWN)
    stills: list[list[list[Scene]]] = []

    def images(films: list[_Film]) -> Iterator[Image.Image]:
        """The images of the animation, if there is one; keeps the frames of the still image."""
        for parts in zip(*(zip(*film.kinds.values()) for film in films)):
            stills.append([join([kinds[0]], step) for kinds in parts])
            if len({scenes[0].frames.shape[1:] for kinds in parts for scenes in kinds}) > 1:
                raise UserError("the files have frames of different sizes; make a figure of each")
            if settings.gif:  # reconstructions before rollouts
                yield from animate(
                    [
                        row
                        for kinds in parts
                        for row in zip(*sorted(kinds, key=lambda scenes: -scenes[0].first_generated))
                    ],
                    n_frames,
                )

    with contextlib.ExitStack() as files:
        done: list[Callable[[int], Any]] = []
        films = list((_from_predictions if settings.predictions else _from_run)(settings, files, lambda n: done[0](n)))
        done.append(files.enter_context(progress(sum(film.work for film in films), "computing", "frames")))
        title = f"Sequences: {', '.join(film.title for film in films)}"
        if settings.gif:
            firsts = sorted(films[0].kinds, reverse=True)
            save_gif(
                images(films),
                animation,
                title,
                _describe_animation(len(films) * settings.n_sequences, n_frames, firsts),
            )
        else:
            collections.deque(images(films), 0)
    parts = {film.title: join(scenes) for film, scenes in zip(films, zip(*stills))}
    save(draw_scenes(parts, settings.attention), settings.out, title, _describe_scenes(parts, n_frames))
    return written


def _check_attention(settings: Sequences, relation: str) -> None:
    if settings.attention and relation == NO_RELATION:
        raise UserError("--attention: this model has no relational module, there is no attention to show")


def _from_run(settings: Sequences, files: contextlib.ExitStack, advance: Callable[[int], Any]) -> Iterator[_Film]:
    loaded = predict.load(str(settings.run), settings.checkpoint, settings.k_particles, settings.n_slots)
    _check_attention(settings, loaded.config.model.relation)
    n_frames = settings.n_frames
    after = n_frames - 1 if settings.generate_after is None else settings.generate_after
    rollout_after = (n_frames - 1) // 2 if settings.generate_after is None else after
    firsts = dict.fromkeys([after + 1, *([n_frames, rollout_after + 1] if settings.gif else [])])
    for path in settings.data:
        source = files.enter_context(
            Source(path, settings.split, loaded.model.config.image_size, n_frames, settings.n_sequences)
        )
        for line in source.describe():
            print(line, file=sys.stderr)
        yield _Film(
            f"{model_titles()[model_name(loaded.config.model.relation)]} on {path.stem}",
            {
                first: scene_parts_from_run(loaded, source, first, settings.seed, settings.boxes, advance)
                for first in firsts
            },
            settings.n_sequences * sum(predict.frames_of_a_sample(n_frames, first) for first in firsts),
        )


def _from_predictions(
    settings: Sequences, files: contextlib.ExitStack, advance: Callable[[int], Any]
) -> Iterator[_Film]:
    for path in settings.predictions:
        predictions = files.enter_context(Predictions(path))
        about = predictions.about
        _check_attention(settings, about.flags["relation"])
        parts = scene_parts_from_predictions(
            predictions, settings.n_sequences, settings.n_frames, settings.boxes, advance
        )
        yield _Film(
            f"{model_titles()[about.model]}, seed {about.seed}, on {about.data_set}",
            {min(about.first_generated, settings.n_frames): parts},
            settings.n_sequences * settings.n_frames,
        )


def _describe_scenes(parts: dict[str, list[Scene]], n_frames: int) -> str:
    said = []
    for title, scenes in parts.items():
        first_generated = scenes[0].first_generated
        objects = np.mean([scene.presence.sum(-1).mean() for scene in scenes])
        said.append(
            f"{title}: {len(scenes)} sequence{'s' * (len(scenes) > 1)} of {n_frames} frames, the inputs above "
            f"the model's frames with a box around each object, on average {objects:.1f} per frame; "
            + (
                f"frames {first_generated} to {n_frames - 1} are predicted."
                if first_generated < n_frames
                else "all frames are inferred."
            )
        )
    return " ".join(said)


def _describe_animation(n_sequences: int, n_frames: int, firsts: list[int]) -> str:
    kinds = ["reconstruction" if first >= n_frames else f"rollout, predicted from frame {first} on" for first in firsts]
    return (
        f"Animation of {n_sequences} sequence{'s' * (n_sequences > 1)} of {n_frames} frames, side by side: "
        f"{', '.join(['input', *kinds])}; boxes around the objects."
    )


# ---------------------------------------------------------------------------------------------------------------
# Figure 4
# ---------------------------------------------------------------------------------------------------------------


def read_metrics(paths: Iterable[pathlib.Path]) -> list[comparison.DataSet]:
    """Reads what eval.tables wrote.

    Args:
      paths: its metrics/*.json, or folders of them.

    Returns:
      The data sets, by name.

    Raises:
      UserError: no such files, other files, or figures that are not comparable.
    """
    runs = []
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path}: no .json in it; expected the folder metrics/ that eval.tables writes")
        for file in files:
            runs.append(read_json(file, "expected one of metrics/*.json that eval.tables writes"))
            try:
                scores.check_figures(runs[-1])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{file}: not a file of eval.tables ({error!r}); expected one of metrics/*.json"
                ) from None
    return comparison.collect(runs)


def likelihood_panels(data_sets: Iterable[comparison.DataSet]) -> list[list[Panel | None]]:
    """Panels of figure 4: a row per metric, a column per data set.

    Raises:
      UserError: no file has predicted frames.
    """
    rows = []
    for metric in scores.PAPER_METRICS:
        row: list[Panel | None] = []
        for data in data_sets:
            values = {model: data.values(model, metric) for model in data.runs}
            bars = {model: Bar(v, data.paper.get(model, {}).get(metric)) for model, v in values.items() if v.size}
            label = f"{scores.METRICS[metric].label}, nats per frame"
            row.append(Panel(data.name, label, bars, data.any["bounds"].get(metric)) if bars else None)
        if any(row):
            rows.append(row)
    if not rows:
        raise UserError("no frame is predicted in any of the files; make them with eval.predict --n_generated 1")
    return rows


def write_figure4(settings: Figure4) -> list[pathlib.Path]:
    """Writes the figure; returns the files."""
    check_pictures(settings.out)
    data_sets = read_metrics(settings.metrics)
    panels = likelihood_panels(data_sets)
    said = [
        f"{panel.label} on {panel.title}: " + ", ".join(_spoken(model, bar.values) for model, bar in panel.bars.items())
        for row in panels
        for panel in row
        if panel
    ]
    for data in data_sets:
        said += [
            f"failed and left out: {model_titles()[model]}, seed {seed} on {data.name}"
            for model, seed, _ in data.failed
        ]
    save(
        draw_bars(panels),
        settings.out,
        "Log-likelihoods of the last, predicted frame",
        f"Bar charts, mean ± standard deviation over seeds and samples. {'; '.join(said)}.",
    )
    return list(settings.out)


def _spoken(model: str, values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.2f}" if values.size > 1 else ""
    return f"{model_titles()[model]} {values.mean():.2f}{spread} ({len(values)} seed{'s' * (len(values) > 1)})"


# ---------------------------------------------------------------------------------------------------------------
# Learning curves
# ---------------------------------------------------------------------------------------------------------------


def read_curves(folder: pathlib.Path, data: str, quantities: Iterable[str]) -> dict[str, Curve]:
    """A run's curves from its metrics.csv or resources.csv; a line cut short by a kill is skipped.

    Args:
      folder: run folder.
      data: validation, training, batch or machine.
      quantities: columns.

    Returns:
      quantity -> `Curve`.

    Raises:
      UserError: no such file, column or rows.
    """
    path = folder / ("resources.csv" if data == "machine" else "metrics.csv")
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a run folder of sqair.train")
    rows = read_rows(path)
    header = next(rows, [])
    missing = [name for name in ("step", "data", *quantities) if name not in header]
    if missing:
        raise UserError(f"{path}: no column {missing[0]}; it has {', '.join(header) or 'nothing'}")
    step, of, *columns = (header.index(name) for name in ("step", "data", *quantities))
    points = np.array(
        [
            (step_of(row[step]), *(_number(row[column]) for column in columns))
            for row in rows
            if len(row) == len(header) and row[of] == data and step_of(row[step]) >= 0
        ]
    )
    if not points.size:
        raise UserError(f"{path}: no rows of {data} yet; train longer, or choose another --of")
    return {name: Curve(points[:, 0].astype(int), values) for name, values in zip(quantities, points[:, 1:].T)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


_ORIGINAL = {
    "iwae_per_frame": "elbo_iwae",
    "vae_per_frame": "elbo_vae",
    "data_ll": "data_ll",
    "kl": "kl",
    "num_steps": "num_steps",
    "num_disc_steps": "num_disc",
    "num_prop_steps": "num_prop",
    "raw_mse": "raw_mse",
}


def read_original_curves(path: pathlib.Path, n_frames: int, quantities: Iterable[str]) -> dict[str, Curve]:
    """The original program's learning curves, recorded as a JSON list of {"itr": step, "elbo_iwae": ..., ...}.

    Args:
      path: the file.
      n_frames: frames of its sequences, over which it sums bounds.
      quantities: our columns.

    Returns:
      quantity -> `Curve`, for those that it has.

    Raises:
      UserError: the file is not of that form.
    """
    points = read_json(path, "expected the original's recorded learning curve")
    try:
        steps = np.array([point["itr"] for point in points], int)
        found = {
            name: np.array([point[_ORIGINAL[name]] for point in points], float)
            for name in quantities
            if name in _ORIGINAL and all(_ORIGINAL[name] in point for point in points)
        }
    except (TypeError, KeyError, ValueError):
        raise UserError(f'{path}: expected a list of {{"itr": step, "elbo_iwae": nats, ...}}') from None
    return {
        name: Curve(steps, values / n_frames if name.endswith("_per_frame") else values)
        for name, values in found.items()
    }


_SHOWN = {
    "validation": "validation set",
    "training": "training set",
    "batch": "batches of training",
    "machine": "use of the machine",
}
_LEARNING = ("iwae_per_frame", "data_ll", "kl", "num_step_accuracy")
_MACHINE = (*run_folder.SPEED, *run_folder.RESOURCES)


def write_curves(settings: Curves) -> list[pathlib.Path]:
    """Writes the figure; returns the files."""
    check_pictures(settings.out)
    panels: dict[str, dict[str, list[Curve]]] = {}
    trained, last = [], 0
    quantities = settings.quantities or (_MACHINE if settings.of == "machine" else _LEARNING)
    for folder in settings.runs:
        config, _ = load_flags(folder / "flags.json")
        model = model_name(config.model.relation)
        trained.append(config.train)
        for name, curve in read_curves(folder, settings.of, quantities).items():
            panels.setdefault(LABELS.get(name, name), {}).setdefault(model, []).append(curve)
            last = max(last, int(curve.steps[-1]))
    changes = []
    if len({(train.seq_len, train.stage_itr, train.max_seq_len) for train in trained}) == 1:  # all share one
        train = trained[0]
        steps = range(train.stage_itr, last + 1, train.stage_itr) if train.stage_itr else ()
        changes = [
            (step, sequence_length(train, step))
            for step in steps
            if sequence_length(train, step) != sequence_length(train, step - 1)
        ]
    original = {}
    if settings.beside:
        lengths = {(sequence_length(train, 0), sequence_length(train, last)) for train in trained}
        if len(lengths) != 1 or len(set(*lengths)) != 1:
            raise UserError(f"--beside {settings.beside}: the original's curve is of one length, that of --runs is not")
        found = read_original_curves(settings.beside, next(iter(lengths))[0], quantities)
        original = {LABELS.get(name, name): curve for name, curve in found.items()}
    said = []
    for label, models in panels.items():
        ends = ", ".join(
            f"{model_titles()[model]} {np.mean([c.values[-1] for c in curves]):.3g}" for model, curves in models.items()
        )
        said.append(f"{label}: at the end {ends}")
    title = f"Learning curves: {_SHOWN[settings.of]}"
    save(
        draw_curves(title, panels, changes, original),
        settings.out,
        title,
        f"Learning curves over training steps of {len(settings.runs)} runs, mean and range of the seeds; "
        f"{_SHOWN[settings.of]}. {'; '.join(said)}.",
    )
    return list(settings.out)


_WRITERS: dict[type, Callable[[Any], list[pathlib.Path]]] = {
    Sequences: write_sequences,
    Figure4: write_figure4,
    Curves: write_curves,
}


def main() -> None:
    settings = read_figure()
    for path in _WRITERS[type(settings)](settings):
        print(f"wrote {path}")
