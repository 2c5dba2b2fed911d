"""docs/extending.md: its code runs, in the order of the page, and does what the page says."""

import re

import numpy as np
import pytest

from eval import comparison, drawing, scores, tables
from relational import RELATIONS
from sqair.config import model_titles
from sqair.runs import loading
from sqair.training import rules
from tests.data_helpers import ROOT
from tests.train_helpers import newest

pytestmark = pytest.mark.slow

BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the page's code defines; the registries are restored at the end."""
    folder, before = tmp_path_factory.mktemp("extending"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for registry in (RELATIONS, rules.RULES, scores.METRICS):
            before.append((registry, dict(registry)))
        names = {"__name__": "extending", "folder": folder}
        try:
            for block in BLOCKS:
                exec(compile(block, "docs/extending.md", "exec"), names)
            yield names
        finally:
            for registry, content in before:
                registry.clear()
                registry.update(content)


def test_the_new_model_is_trained_by_the_new_optimiser_and_loads(page):
    values = newest(page["folder"] / "run")
    slots = [value for name, value in values.items() if "/slots/mean/" in name]
    assert values["state/step/.ATTRIBUTES/VARIABLE_VALUE"] == 1
    assert len(slots) > 50 and any(np.any(value) for value in slots)
    loaded = loading.load_run(page["folder"] / "run")
    assert isinstance(loaded.model.sequence.timestep.relation, page["MeanRelation"])
    assert np.any([np.abs(v).max() for v in loaded.model.sequence.timestep.relation.trainable_variables])


def test_the_new_data_tell_where_their_objects_are(page):
    with page["Predictions"](page["folder"] / "predictions.h5") as predictions:
        boxes = predictions["truth/box"][:]
        frames, groups = predictions["truth/frames"][:], predictions["truth/groups"][:]
    assert boxes.shape == (8, 3, 2, 4) and (boxes[..., 2:] == page["SQUARE"]).all()
    top, left = (boxes[0, 2, 1, :2] + 0.5).astype(int)
    assert (groups[0, 2, top : top + 5, left : left + 5] == 2).all() and frames[0, 2, top, left] == 255


def test_model_and_metric_appear_in_a_table_and_a_figure(page):
    figures = page["figures"]
    text = tables.markdown(comparison.collect([figures]))
    assert model_titles()["rsqair_mean"] == "R-SQAIR (mean)" and "R-SQAIR (mean)" in text
    height = np.mean(figures["metrics"]["window_height"])
    assert f"| window height | {height:.1f}" in text and 0 < height < 22
    assert figures["metrics"]["mota"] is not None and len(figures["metrics"]["window_height"]) == 2
    assert drawing.model_colour("rsqair_mean") not in map(drawing.model_colour, list(model_titles())[:-1])


def test_the_new_relation_counts_its_operations(page):
    relation = page["MeanRelation"].make(3, 8, 5)
    assert relation.multiply_adds(3) == 3 * 8 * 5 + 9 * 8
