"""Every format: real files, how they are broken, and their readers."""

from collections.abc import Callable
from typing import NamedTuple

from tests.fuzz import checkpoints, digits, hdf5, predictions, runs


class Format(NamedTuple):
    """A format: real files, ways to damage them, and the readers.

    make: (folder) writes small files with the real writers. damage: (rng, folder) -> str changes them and says how.
    read: (folder) reads them with every reader and asserts that what they return is sound. share: part of the cases
    asked for, less where one takes long.
    """

    make: Callable
    damage: Callable
    read: Callable
    share: float = 1.0


FORMATS = {
    "hdf5": Format(hdf5.make_hdf5, hdf5.damage_one_hdf5, hdf5.read_hdf5),
    "pickle": Format(digits.make_pickle, digits.damage_pickle, digits.read_pickle),
    "digits": Format(digits.make_digits, digits.damage_digits, digits.read_digits),
    "flags": Format(runs.make_flags, runs.damage_flags, runs.read_flags),
    "csv": Format(runs.make_csv, runs.damage_csv, runs.read_csv),
    "predictions": Format(predictions.make_predictions, predictions.damage_predictions, predictions.read_predictions),
    "pipeline": Format(hdf5.make_hdf5, hdf5.damage_one_hdf5, hdf5.read_pipeline, 0.5),
    "curves": Format(runs.make_csv, runs.damage_csv, runs.read_curves),
    "metrics": Format(predictions.make_metrics_json, predictions.damage_metrics_json, predictions.read_metrics_json),
    "checkpoint": Format(checkpoints.make_checkpoint, checkpoints.damage_checkpoint, checkpoints.read_checkpoint, 0.25),
    "values": Format(checkpoints.make_checkpoint, checkpoints.damage_checkpoint, checkpoints.read_checkpoint_values),
    "original": Format(checkpoints.make_original, checkpoints.damage_checkpoint, checkpoints.read_original, 0.5),
    "safetensors": Format(checkpoints.make_safetensors, checkpoints.damage_safetensors, checkpoints.read_safetensors),
}
