"""Files of predictions, and the figures that eval.tables makes of them."""

import json

import numpy as np

from tests.fuzz.damage import damage_file, damage_json
from tests.fuzz.hdf5 import damage_hdf5
from tests.tables_helpers import save


def make_predictions(folder):
    save(folder / "predictions.h5", **{"rollout/canvas": np.zeros((6, 2, 4, 12, 12))})


def damage_predictions(rng, folder):
    return rng.choice([damage_file, damage_hdf5])(rng, folder / "predictions.h5")


def read_predictions(folder):
    from eval import comparison, scores, tables
    from eval.predictions import MEMBERS, Predictions

    with Predictions(folder / "predictions.h5") as predictions:
        for name in MEMBERS:
            if name in predictions:
                predictions[name][:2]
        figures = scores.evaluate(predictions)
    json.dumps(figures, allow_nan=False)
    data_sets = comparison.collect([figures])
    tables.markdown(data_sets), tables.latex(data_sets), tables.csv_rows(data_sets)


def make_metrics_json(folder):
    from eval import scores
    from eval.predictions import Predictions

    for seed in (0, 1):
        save(folder / "p.h5", seed=seed)
        with Predictions(folder / "p.h5") as predictions:
            figures = scores.evaluate(predictions) | {"file": f"sqair_seed{seed}_four.json"}
        (folder / f"sqair_seed{seed}_four.json").write_text(json.dumps(figures))
        (folder / "p.h5").unlink()


def damage_metrics_json(rng, folder):
    path = rng.choice(sorted(folder.iterdir()))
    return rng.choice([damage_json, damage_json, damage_json, damage_file])(rng, path)


def read_metrics_json(folder):
    from eval import figures

    data_sets = figures.read_metrics([folder])
    panels = figures.likelihood_panels(data_sets)
    for panel in (panel for row in panels for panel in row if panel):
        assert panel.bars and all(np.isfinite(bar.values).all() and bar.values.ndim == 2 for bar in panel.bars.values())
