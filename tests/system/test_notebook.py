"""notebooks/play.ipynb runs as Jupyter would run it: as it is, and on a run of the original's form."""

import nbclient
import nbformat
import pytest

from data_gen import moving_mnist
from sqair import export
from sqair.runs import loading
from tests.data_helpers import ROOT
from tests.run_helpers import make_run

NOTEBOOK = ROOT / "notebooks" / "play.ipynb"


def test_it_is_stored_without_outputs():
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


def execute(notebook):
    """Runs a notebook; returns what its cells print, once its pictures are counted."""
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    return "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")


@pytest.mark.slow
def test_it_runs_as_it_is_on_a_model_of_this_repository():
    text = execute(nbformat.read(NOTEBOOK, 4))
    assert "models/" in text and "model.safetensors" in text
    assert text.count(": [4 4 4 4 4 4 4 4 4 4] objects") >= 3  # of four sequences, all balls in all frames


@pytest.mark.slow
def test_it_runs_and_shows_its_pictures(tmp_path):
    data, run = tmp_path / "mnist.h5", tmp_path / "original"
    moving_mnist.write(
        moving_mnist.MovingMNIST(n_frames=3, training=4, validation=4, test=0), data, moving_mnist.packaged_digits()
    )
    make_run(tmp_path / "ours", image_shape=(50, 50))
    export.export(loading.load_run(tmp_path / "ours"), run)

    notebook = nbformat.read(NOTEBOOK, 4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    settings.source = (
        f"RUN, CHECKPOINT, DATA, SPLIT = {str(run)!r}, 'newest', {str(data)!r}, 'validation'\n"
        "N_SEQUENCES, N_FRAMES, FIRST_PREDICTED, SEED = 2, 3, 2, 0"
    )
    text = execute(notebook)
    assert f"{run}" in text and "5 training steps" in text and "sequence 1:" in text
