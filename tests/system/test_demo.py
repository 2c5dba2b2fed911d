"""./run.sh demo at a small size: two steps of training on 64 sequences, otherwise as for a user."""

import html
import json
import os
import subprocess

import pytest
from PIL import Image

from tests.checkout_helpers import make_checkout


@pytest.mark.slow
def test_the_demo_shows_a_shipped_model_and_one_that_it_trains_on_a_page(tmp_path):
    checkout = make_checkout(tmp_path / "r-sqair")
    result = subprocess.run(
        [checkout / "run.sh", "demo"],
        cwd=tmp_path,
        env=os.environ | {"SCALE": "small"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    results = tmp_path / "results" / "demo"
    page = (results / "index.html").read_text()
    assert result.stdout.splitlines()[-1].endswith(f"open it in a browser: {results / 'index.html'}")
    for name, balls in (
        ("shipped/figure3_4_balls", "4_balls"),
        ("shipped/figure3_6_to_8_balls", "6_to_8_balls"),
        ("trained/figure3_4_balls", "4_balls"),
    ):
        with Image.open(results / f"{name}.png") as picture, Image.open(results / f"{name}.gif") as animation:
            said = picture.info["Description"]
            assert f" on {balls}: 3 sequences of 10 frames" in said and "frames 6 to 9 are predicted" in said
            assert html.escape(said) in page and animation.n_frames == 10
    assert page.count("<img ") == 6
    for name in ("shipped", "trained"):
        (found,) = json.loads((results / name / "likelihood.json").read_text())["results"]
        assert found["n_sequences"] == 64 and f"{found['iwae_per_frame']:.6g}" in page
    flags = json.loads((results / "trained" / "run" / "flags.json").read_text())
    assert (flags["target"], flags["clip_norm"], flags["train_itr"]) == ("vimco_textbook", 500.0, 2)
    assert (results / "trained" / "run" / "finished.json").exists()
