"""Figures of trained models. The first word says which; left out, it is sequences.

    python -m eval.figures --run RUN --data FILE... [--generate_after N] --out FILE.png [FILE.pdf] [--gif] [--attention]
    python -m eval.figures --predictions FILE... --out FILE.png
    python -m eval.figures figure4 --metrics FOLDER --out FILE.png
    python -m eval.figures curves --runs RUN... --out FILE.png

sequences is the paper's figure 3, one part for each data file: `--data balls4mass64.h5 balls678mass64.h5`.
figure4 shows log-likelihoods of the last frame from the figures of eval.tables, curves how the training went.
"""

from data_gen.command_line import UserError, read_json, run_module
from eval.options import Curves, Figure4, Sequences, read_figure

if __name__ == "__main__":      # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.figures", read_figure)

import math
import pathlib
import sys
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from eval import geometry, predict, tables
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
    save,
    save_gif,
)
from eval.predictions import Predictions
from eval.truth import Source
from sqair import checkpoints, health
from sqair.config import NO_RELATION, load_flags, model_name, model_titles
from sqair.run_folder import read_rows, step_of
from sqair.train import sequence_length

LABELS = {"iwae_per_frame": "IWAE bound, nats per frame", "vae_per_frame": "VAE bound, nats per frame",
          "data_ll": "log p(x|z), nats per frame", "kl": "KL, nats per frame", "num_steps": "objects per frame",
          "gradient_norm": "gradient norm", "clipped": "share of updates clipped",
          "num_step_accuracy": "count accuracy", "mse": "squared error a pixel", "ess": "effective sample size",
          "seconds_per_step": "seconds per training step", "cpu_seconds_per_step": "CPU seconds per step",
          "memory_mb": "memory, MB", "open_files": "open files"}


# ---------------------------------------------------------------------------------------------------------------
# Sequences: the paper's figure 3
# ---------------------------------------------------------------------------------------------------------------


def scenes_from_run(loaded: checkpoints.Run, source: Source, first_generated: int, seed: int,
                    boxes: str = "drawn") -> list[Scene]:
    """Runs a model on all sequences of a source, one sample per sequence.

    Args:
      loaded: the model.
      source: data.
      first_generated: frames from this one on are predicted; T to infer all.
      seed: of the noise. The same seed infers the same, whatever is predicted after it.
      boxes: what an object's box is, a key of `tables.BOXES`.

    Returns:
      A scene for every sequence.
    """
    model = loaded.model
    _, truth = next(source.batches(source.n_sequences))
    rng = predict.generator(seed, 0, 1)
    forward = predict.infer(model, tf.constant(truth.frames.swapaxes(0, 1)), predict.noise_seed(rng), first_generated)
    # The frames before the prediction choose the particle, in the reconstruction beside a rollout too.
    uniform = tf.constant(rng.random(source.n_sequences, np.float32))
    drawn = predict.draw_particle(model, forward, first_generated, uniform)
    drawn = {name: value.numpy() for name, value in drawn._asdict().items()}
    attention = drawn["attention"] if drawn["attention"].ndim == 5 else None
    box = geometry.boxes_and_centres_from_pixels(drawn["pasted"])[0] if boxes == "drawn" else None
    return [Scene(truth.frames[b], drawn["canvas"][:, b], drawn["where"][:, b], drawn["presence"][:, b],
                  drawn["object_id"][:, b].round().astype(int), first_generated, model.config.relation,
                  None if attention is None else attention[:, b], None if box is None else box[:, b])
            for b in range(source.n_sequences)]


def scenes_from_predictions(predictions: Predictions, n_sequences: int, n_frames: int,
                            boxes: str = "drawn") -> list[Scene]:
    """The first sample of the first sequences of a file of predictions; boxes as in `scenes_from_run`.

    Raises:
      UserError: it has no canvases, does not tell the boxes asked for, or has too few sequences or frames.
    """
    for letter, asked, name in (("S", n_sequences, "sequences"), ("T", n_frames, "frames")):
        if asked > predictions.sizes[letter]:
            raise UserError(f"{predictions.path}: it has {predictions.sizes[letter]} {name}, {asked} were asked for")

    def first(name):
        return predictions[f"rollout/{name}"][:n_sequences, 0, :n_frames]

    canvas, attention = first("canvas") / 255, None
    if "rollout/attention" in predictions:
        attention = first("attention").astype(np.float32)
    frames = predictions["truth/frames"][:n_sequences, :n_frames] / 255
    first_generated = min(predictions.about.first_generated, n_frames)
    where, presence, object_id = first("where"), first("presence"), first("object_id")
    if boxes == "drawn":
        tables.check_drawn(predictions, "box")
    box = first("box") if boxes == "drawn" else None
    return [Scene(frames[s], canvas[s], where[s], presence[s], object_id[s], first_generated,
                  predictions.about.flags["relation"], None if attention is None else attention[s],
                  None if box is None else box[s])
            for s in range(n_sequences)]


def write_sequences(settings: Sequences) -> list[pathlib.Path]:
    """Writes the figure, and the animation if asked; returns the files."""
    animation = settings.out[0].with_suffix(".gif")
    check_pictures((*settings.out, animation) if settings.gif else settings.out,
                   (*settings.data, *settings.predictions))
    parts, rows = {}, []
    for title, scenes, columns in _from_predictions(settings) if settings.predictions else _from_run(settings):
        parts[title] = scenes
        rows.extend(columns)
    scenes = [scene for part in parts.values() for scene in part]
    if len({scene.frames.shape[1:] for scene in scenes}) > 1:
        raise UserError("the files have frames of different sizes; make a figure of each")
    title = f"Sequences: {', '.join(parts)}"
    save(draw_scenes(parts, settings.attention), settings.out, title, _describe_scenes(parts))
    written = list(settings.out)
    if settings.gif:
        written.append(animation)
        save_gif(animate(rows), animation, title, _describe_animation(rows))
    return written


def _check_attention(settings: Sequences, relation: str) -> None:
    if settings.attention and relation == NO_RELATION:
        raise UserError("--attention: this model has no relational module, there is no attention to show")


def _from_run(settings: Sequences) -> Iterator[tuple[str, list[Scene], list[tuple[Scene, ...]]]]:
    loaded = predict.load(str(settings.run), settings.checkpoint, settings.k_particles, settings.n_slots)
    _check_attention(settings, loaded.config.model.relation)
    after = settings.n_frames - 1 if settings.generate_after is None else settings.generate_after
    rollout_after = (settings.n_frames - 1) // 2 if settings.generate_after is None else after
    name = model_titles()[model_name(loaded.config.model.relation)]
    for path in settings.data:
        with Source(path, settings.split, loaded.model.config.image_size, settings.n_frames,
                    settings.n_sequences) as source:
            for line in source.describe():
                print(line, file=sys.stderr)
            kinds = {k: scenes_from_run(loaded, source, k, settings.seed, settings.boxes)
                     for k in {after + 1} | ({settings.n_frames, rollout_after + 1} if settings.gif else set())}
        columns = list(zip(*(kinds[k] for k in sorted(kinds, reverse=True)))) if settings.gif else []
        yield f"{name} on {path.stem}", kinds[after + 1], columns


def _from_predictions(settings: Sequences) -> Iterator[tuple[str, list[Scene], list[tuple[Scene, ...]]]]:
    for path in settings.predictions:
        with Predictions(path) as predictions:
            scenes = scenes_from_predictions(predictions, settings.n_sequences, settings.n_frames, settings.boxes)
            about = predictions.about
        _check_attention(settings, about.flags["relation"])
        yield f"{model_titles()[about.model]}, seed {about.seed}, on {about.data_set}", scenes, [(s,) for s in scenes]


def _describe_scenes(parts: dict[str, list[Scene]]) -> str:
    said = []
    for title, scenes in parts.items():
        n_frames, first_generated = len(scenes[0].frames), scenes[0].first_generated
        objects = np.mean([scene.presence.sum(-1).mean() for scene in scenes])
        said.append(f"{title}: {len(scenes)} sequence{'s' * (len(scenes) > 1)} of {n_frames} frames, the inputs above "
                    f"the model's frames with a box around each object, on average {objects:.1f} per frame; "
                    + (f"frames {first_generated} to {n_frames - 1} are predicted." if first_generated < n_frames
                       else "all frames are inferred."))
    return " ".join(said)


def _describe_animation(rows: list[tuple[Scene, ...]]) -> str:
    kinds = ["reconstruction" if scene.first_generated >= len(scene.frames)
             else f"rollout, predicted from frame {scene.first_generated} on" for scene in rows[0]]
    return (f"Animation of {len(rows)} sequence{'s' * (len(rows) > 1)} of {len(rows[0][0].frames)} frames, side by "
            f"side: {', '.join(['input', *kinds])}; boxes around the objects.")


# ---------------------------------------------------------------------------------------------------------------
# Figure 4
# ---------------------------------------------------------------------------------------------------------------


def read_metrics(paths: Iterable[pathlib.Path]) -> list[tables.DataSet]:
    """Reads what eval.tables wrote.

    Args:
      paths: its metrics/*.json, or folders of them.

    Returns:
      The data sets, by name.

    Raises:
      UserError: no such files, other files, or figures that do not compare.
    """
    runs = []
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path}: no .json in it; expected the folder metrics/ that eval.tables writes")
        for file in files:
            runs.append(read_json(file, "expected one of metrics/*.json that eval.tables writes"))
            try:
                tables.check_figures(runs[-1])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file}: not a file of eval.tables ({error!r}); expected one of metrics/*.json"
                                ) from None
    return tables.collect(runs)


def likelihood_panels(data_sets: Iterable[tables.DataSet]) -> list[list[Panel | None]]:
    """Panels of figure 4: a row per metric, a column per data set.

    Raises:
      UserError: no file has predicted frames.
    """
    rows = []
    for metric in tables.PAPER_METRICS:
        row: list[Panel | None] = []
        for data in data_sets:
            values = {model: data.values(model, metric) for model in data.runs}
            bars = {model: Bar(v, data.paper.get(model, {}).get(metric)) for model, v in values.items() if v.size}
            label = f"{tables.METRICS[metric].label}, nats per frame"
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
    said = [f"{panel.label} on {panel.title}: "
            + ", ".join(_spoken(model, bar.values) for model, bar in panel.bars.items())
            for row in panels for panel in row if panel]
    for data in data_sets:
        said += [f"failed and left out: {model_titles()[model]}, seed {seed} on {data.name}"
                 for model, seed, _ in data.failed]
    save(draw_bars(panels), settings.out, "Log-likelihoods of the last, predicted frame",
         f"Bar charts, mean ± standard deviation over seeds and samples. {'; '.join(said)}.")
    return list(settings.out)


def _spoken(model: str, values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.2f}" if values.size > 1 else ""
    return f"{model_titles()[model]} {values.mean():.2f}{spread} ({len(values)} seed{'s' * (len(values) > 1)})"


# ---------------------------------------------------------------------------------------------------------------
# Learning curves
# ---------------------------------------------------------------------------------------------------------------


def read_curves(folder: pathlib.Path, data: str, quantities: Iterable[str]) -> dict[str, Curve]:
    """A run's curves from its metrics.csv or resources.csv; a line cut short by a kill is passed over.

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
    points = np.array([(step_of(row[step]), *(_number(row[column]) for column in columns)) for row in rows
                       if len(row) == len(header) and row[of] == data and step_of(row[step]) >= 0])
    if not points.size:
        raise UserError(f"{path}: no rows of {data} yet; train longer, or choose another --of")
    return {name: Curve(points[:, 0].astype(int), values) for name, values in zip(quantities, points[:, 1:].T)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


_ORIGINAL = {"iwae_per_frame": "elbo_iwae", "vae_per_frame": "elbo_vae", "data_ll": "data_ll", "kl": "kl",
             "num_steps": "num_steps", "num_disc_steps": "num_disc", "num_prop_steps": "num_prop", "raw_mse": "raw_mse"}


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
        found = {name: np.array([point[_ORIGINAL[name]] for point in points], float) for name in quantities
                 if name in _ORIGINAL and all(_ORIGINAL[name] in point for point in points)}
    except (TypeError, KeyError, ValueError):
        raise UserError(f'{path}: expected a list of {{"itr": step, "elbo_iwae": nats, ...}}') from None
    return {name: Curve(steps, values / n_frames if name.endswith("_per_frame") else values)
            for name, values in found.items()}


_SHOWN = {"validation": "validation set", "training": "training set", "batch": "batches of training",
          "machine": "use of the machine"}
_LEARNING, _MACHINE = ("iwae_per_frame", "data_ll", "kl", "num_step_accuracy"), (*health.SPEED, *health.RESOURCES)


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
    if len({(train.seq_len, train.stage_itr, train.max_seq_len) for train in trained}) == 1:    # all share one
        train = trained[0]
        steps = range(train.stage_itr, last + 1, train.stage_itr) if train.stage_itr else ()
        changes = [(step, sequence_length(train, step)) for step in steps
                   if sequence_length(train, step) != sequence_length(train, step - 1)]
    original = {}
    if settings.beside:
        lengths = {(sequence_length(train, 0), sequence_length(train, last)) for train in trained}
        if len(lengths) != 1 or len(set(*lengths)) != 1:
            raise UserError(f"--beside {settings.beside}: the original's curve is of one length, that of --runs is not")
        found = read_original_curves(settings.beside, next(iter(lengths))[0], quantities)
        original = {LABELS.get(name, name): curve for name, curve in found.items()}
    said = []
    for label, models in panels.items():
        ends = ", ".join(f"{model_titles()[model]} {np.mean([c.values[-1] for c in curves]):.3g}"
                         for model, curves in models.items())
        said.append(f"{label}: at the end {ends}")
    title = f"Learning curves: {_SHOWN[settings.of]}"
    save(draw_curves(title, panels, changes, original), settings.out, title,
         f"Learning curves over training steps of {len(settings.runs)} runs, mean and range of the seeds; "
         f"{_SHOWN[settings.of]}. {'; '.join(said)}.")
    return list(settings.out)


_WRITERS = {Sequences: write_sequences, Figure4: write_figure4, Curves: write_curves}


def main() -> None:
    settings = read_figure()
    for path in _WRITERS[type(settings)](settings):
        print(f"wrote {path}")
