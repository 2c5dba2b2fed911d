"""Makes shared models in the folder models/ from runs, with cards that record their figures, and checks them.

    python -m eval.models add RUN models/sqair_balls [--metrics results/short/metrics]
    python -m eval.models check models/*

A card's figures are computed by the paper's protocol on a small data set that is generated anew each time. Computing
them again detects damaged weights and changes of the program that change its results.
"""

from data_gen.console import run_module
from data_gen.errors import UserError
from data_gen.files import read_json
from eval.options import AddModel, read_models

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.models", read_models)

import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from data_gen import bouncing_balls
from eval import predict, scores
from eval.predictions import Predictions
from sqair.export import save_safetensors
from sqair.runs import safetensors as safetensors_folder
from sqair.runs.loading import checkpoint_fingerprint, load_run

DATA = bouncing_balls.BouncingBalls(n_frames=10, training=0, validation=0, test=32, seed=2026)
RECORDED = (
    "iwae",
    "vae",
    "kl",
    "data_ll_inferred",
    "relational_ll_inferred",
    "data_ll_predicted",
    "relational_ll_predicted",
    "count_accuracy",
)
SHOWN = ("data_ll_predicted", "relational_ll_predicted", "data_ll_inferred", "iwae", "count_accuracy", "ari")
# Kernels round differently: with and without oneDNN's, figures of the first model differed by at most 0.0001.
TOLERANCE = 0.005


def _means(figures: dict[str, Any], names: tuple[str, ...]) -> dict[str, float | None]:
    """Means over the samples of figures of `scores.evaluate`; None where a figure is not defined."""
    found = {name: figures["metrics"][name] for name in names if name in figures["metrics"]}
    return {name: None if None in values else float(np.mean(values)) for name, values in found.items()}


def compute(path: str, which: str = "best") -> dict[str, Any]:
    """Computes the figures that a model's card records.

    Args:
      path, which: see `sqair.runs.loading.find_checkpoint`.

    Returns:
      data_check: a checksum of the data; figures: name of `RECORDED` -> mean over two
      samples of 32 sequences of 10 frames, of which the last is predicted; nats per frame.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, out = pathlib.Path(folder, "balls.h5"), pathlib.Path(folder, "predictions.h5")
        bouncing_balls.write(DATA, data)
        predict.write(predict.Arguments(run=path, checkpoint=which, data=str(data), out=out, n_samples=2))
        with Predictions(out) as predictions:
            found = scores.evaluate(predictions)
    return {"data_check": found["data_check"], "figures": _means(found, RECORDED)}


def table_rows(paths: tuple[pathlib.Path, ...], source: str) -> list[dict[str, Any]]:
    """The figures of a checkpoint in files of eval.tables.

    Args:
      paths: its metrics/*.json, or folders of them; those of other checkpoints are skipped.
      source: the checkpoint.

    Returns:
      For each data set: data_set, n_sequences, n_samples, figures (means over the samples, see `SHOWN`).

    Raises:
      UserError: a file was not written by eval.tables, or all are of other checkpoints.
    """
    rows, wanted = [], checkpoint_fingerprint(source)
    for path in [file for given in paths for file in (sorted(given.glob("*.json")) if given.is_dir() else [given])]:
        figures = read_json(path, "expected one of metrics/*.json that eval.tables writes")
        try:
            scores.check_figures(figures)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a file of eval.tables ({error!r}); expected one of metrics/*.json") from None
        if figures.get("checkpoint_fingerprint") == wanted:
            rows.append(
                {
                    "data_set": figures["data_set"],
                    "n_sequences": figures["comparable"]["n_sequences"],
                    "n_samples": figures["comparable"]["n_samples"],
                    "figures": _means(figures, SHOWN),
                }
            )
    if paths and not rows:
        raise UserError(f"--metrics: no figures of {source} among them; make them with eval.predict and eval.tables")
    return rows


def check(folder: pathlib.Path) -> list[str]:
    """Computes the figures in a model's card again and compares.

    Args:
      folder: the model's.

    Returns:
      One line per figure that differs by more than `TOLERANCE`.

    Raises:
      UserError: the card has no figures.
    """
    card = folder / safetensors_folder.FACTS
    told = read_json(card, "eval.models add writes it")
    recorded = told.get("check") if isinstance(told, dict) else None
    if not isinstance(recorded, dict) or not isinstance(recorded.get("figures"), dict):
        raise UserError(f"{card}: no figures to check in it; make the model with eval.models add")
    found = compute(str(folder))
    if found["data_check"] != recorded.get("data_check"):
        return ["the data differ: this program or NumPy draws other balls"]
    if found["figures"].keys() != recorded["figures"].keys():
        return [f"figures are {', '.join(found['figures'])}, recorded are {', '.join(recorded['figures'])}"]
    wrong = []
    for name, value in found["figures"].items():
        expected = recorded["figures"][name]
        if value != expected and (None in (value, expected) or not abs(value - expected) <= TOLERANCE):
            wrong.append(f"{name} is {value}, recorded is {expected}")
    return wrong


def add(settings: AddModel) -> list[str]:
    """Makes a model to share from a run; see `AddModel`. Returns lines that say what was written."""
    loaded = load_run(settings.run, settings.which)
    rows = table_rows(settings.metrics, loaded.source)
    figures = {"check": compute(settings.run, settings.which)} | ({"table": rows} if rows else {})
    return save_safetensors(loaded, settings.out, settings.overwrite, figures)


def main() -> int:
    settings = read_models()
    if isinstance(settings, AddModel):
        print(*add(settings), sep="\n")
        return 0
    code = 0
    for folder in settings.folders:
        wrong = check(folder)
        print(f"{folder}: {'; '.join(wrong) or 'as recorded'}", file=sys.stderr if wrong else sys.stdout)
        code |= bool(wrong)
    return code
