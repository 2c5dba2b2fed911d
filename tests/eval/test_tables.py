"""eval.tables: the real command on small made-up files of predictions, its numbers computed again by hand."""

import csv
import json
import re

import h5py
import numpy as np
import pytest
from scipy.special import logsumexp

from data_gen.errors import UserError
from data_gen.writer import new_file
from eval import comparison, scores, tables
from eval.predictions import About, Predictions, Writer
from sqair.config import PRESETS, to_flags
from tests.data_helpers import run_here
from tests.tables_helpers import FIRST, SIZES, TRUTH, H, K, M, N, S, T, made_up, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three seeds of SQAIR, of which one has collapsed, two of IN, of which one is NaN; and RMC on other data."""
    folder = tmp_path_factory.mktemp("tables")
    nothing = {"rollout/presence": np.zeros((S, M, T, N)), "rollout/object_id": np.full((S, M, T, N), -1)}
    files = {
        ("sqair", seed): save(folder / "in" / f"a{seed}.h5", seed=seed, **(nothing if seed == 2 else {}))
        for seed in range(3)
    }
    files["rsqair_in", 0] = save(folder / "in" / "b0.h5", "in")
    save(folder / "in" / "b1.h5", "in", seed=1, **{"inference/log_weights": np.full((S, K), np.nan)})
    save(folder / "in" / "c_with_8.h5", "rmc_slots", slots=8)
    done = run_here(
        "eval.tables",
        "--predictions",
        folder / "in",
        "--out",
        folder / "out",
        "--expected_models",
        "sqair",
        "rsqair_rmc",
        "--expected_seeds",
        0,
        3,
    )
    assert done.returncode == 0, done.stderr
    return folder, files


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def row(rows, model, metric, horizon=""):
    found = [
        r
        for r in rows
        if (r["data_set"], r["model"], r["metric"], r["horizon"]) == ("four", model, metric, str(horizon))
    ]
    assert len(found) == 1
    return found[0]


def test_means_and_spreads_over_seeds_and_samples(folder):
    out, files = folder[0] / "out", folder[1]
    rows = rows_of(out / "table.csv")
    last = np.stack([files["sqair", seed]["rollout/data_ll"][:, :, -1].mean(0) for seed in range(3)])  # [R, M]
    found = row(rows, "sqair", "data_ll_predicted")
    assert float(found["mean"]) == pytest.approx(last.mean(), rel=1e-6)
    assert float(found["std"]) == pytest.approx(np.std(last, ddof=1), rel=1e-5)
    assert float(found["std_seeds"]) == pytest.approx(np.std(last.mean(1), ddof=1), rel=1e-5)
    assert (found["seeds"], found["samples"], found["paper"]) == ("3", "2", "399.5")
    assert float(found["bound"]) == pytest.approx(H * H * (-np.log(0.3) - 0.5 * np.log(2 * np.pi)))

    relational = np.stack([files["sqair", seed]["rollout/relational_ll"] for seed in range(3)])
    assert float(row(rows, "sqair", "relational_ll_inferred")["mean"]) == pytest.approx(
        relational[..., :FIRST].mean(), abs=1e-6
    )
    for horizon in range(3):
        assert float(row(rows, "sqair", "relational_ll", horizon)["mean"]) == pytest.approx(
            relational[..., FIRST - 1 + horizon].mean(), abs=1e-6
        )
    pixels = TRUTH["truth/collisions"][:, -1].sum() / S
    assert float(row(rows, "sqair", "relational_ll_predicted")["bound"]) == pytest.approx(
        pixels * (-np.log(0.3) - 0.5 * np.log(2 * np.pi))
    )

    text = (out / "table.md").read_text()
    assert f"| SQAIR | 3 of 4 | {last.mean():.1f} ± {np.std(last, ddof=1):.1f} | 399.5 |" in text


def test_bounds_and_kl(folder):
    rows, members = rows_of(folder[0] / "out" / "table.csv"), folder[1]["rsqair_in", 0]
    log_weights = members["inference/log_weights"].astype(np.float32).astype(float)
    bound = (logsumexp(log_weights, -1) - np.log(K)) / T
    weights = np.exp(log_weights - logsumexp(log_weights, -1, keepdims=True))
    kl = (members["inference/log_q"] - members["inference/log_p"]).mean(-1)
    found = row(rows, "rsqair_in", "iwae")
    assert float(found["mean"]) == pytest.approx(bound.mean(), rel=1e-6)
    assert found["seeds"] == "1" and found["paper"] == ""
    assert float(row(rows, "rsqair_in", "kl")["mean"]) == pytest.approx((weights * kl).sum(-1).mean(), rel=1e-5)


def test_objects_that_sit_on_their_balls(folder):
    rows = rows_of(folder[0] / "out" / "table.csv")
    in_view = np.all(TRUTH["truth/centre"] < H - 0.5, -1)
    assert in_view.all()
    # Objects are exact at the match and one pixel off afterwards, where nothing else has changed.
    assert float(row(rows, "rsqair_in", "position_error", 0)["mean"]) == pytest.approx(0, abs=1e-6)
    assert float(row(rows, "rsqair_in", "position_error_inferred")["mean"]) == pytest.approx(0, abs=1e-6)
    # All are found; objects on the few balls of which no pixel is seen are false positives.
    hidden = (TRUTH["truth/pixels"][:, :FIRST] == 0).mean()
    assert float(row(rows, "rsqair_in", "mota")["mean"]) == pytest.approx(1 - hidden / (1 - hidden))
    assert float(row(rows, "rsqair_in", "motp")["mean"]) == pytest.approx(0, abs=1e-6)
    assert float(row(rows, "rsqair_in", "position_error")["mean"]) == pytest.approx(1, abs=1e-6)
    # One object of S * N has vanished, in one of two samples.
    assert float(row(rows, "rsqair_in", "lost")["mean"]) == pytest.approx(0.5 / (S * N))
    assert float(row(rows, "rsqair_in", "ari")["mean"]) == 1
    right = (TRUTH["truth/count"][:, :FIRST] == N).mean()
    assert float(row(rows, "rsqair_in", "count_accuracy")["mean"]) == pytest.approx(right)
    assert float(row(rows, "rsqair_in", "id_switches")["mean"]) == 0
    # The collapsed seed has no matches and no pairs: its figures are left out and the table says so.
    assert row(rows, "sqair", "motp")["seeds"] == "2" and row(rows, "sqair", "position_error")["seeds"] == "2"
    assert "(2 of 3)" in (folder[0] / "out" / "table.md").read_text()


def test_boxes_are_those_of_what_is_drawn_or_of_windows(folder, tmp_path):
    source = folder[0] / "in" / "b0.h5"
    done = run_here("eval.tables", "--predictions", source, "--out", tmp_path / "window", "--boxes", "window")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "window" / "table.csv")
    # Windows lie two pixels above what the objects draw: sqrt(2^2) at the match, sqrt(2^2 + 1^2) after it.
    assert float(row(rows, "rsqair_in", "position_error_inferred")["mean"]) == pytest.approx(2, abs=0.01)
    assert float(row(rows, "rsqair_in", "position_error")["mean"]) == pytest.approx(5**0.5, abs=0.01)
    assert float(row(rows, "rsqair_in", "mota")["mean"]) < 0.5
    assert "(--boxes window): the attention window" in (tmp_path / "window" / "table.md").read_text()
    assert "(--boxes drawn): the pixels of the object's pasted glimpse" in (folder[0] / "out" / "table.md").read_text()

    old = tmp_path / "old.h5"
    old.write_bytes(source.read_bytes())
    with h5py.File(old, "r+") as file:
        del file["rollout/box"], file["rollout/centre"]
    done = run_here("eval.tables", "--predictions", old, "--out", tmp_path / "old")
    assert done.returncode == 1 and not (tmp_path / "old").exists()
    assert "old.h5: it does not tell what objects draw; make it again with eval.predict" in done.stderr
    assert run_here("eval.tables", "--predictions", old, "--out", tmp_path / "old", "--boxes", "window").returncode == 0


def test_horizon_0_has_a_name(folder):
    text = (folder[0] / "out" / "table.md").read_text()
    named = re.findall(r"\| position error \| (.*?) \|", text.split("### By horizon")[1].split("###")[0])
    assert named == ["0 (last inferred frame)", "1", "2"]


def test_without_a_collision_there_is_no_relational_figure(tmp_path):
    """No ball collides in the last frame, some do in the others."""
    collisions = TRUTH["truth/collisions"].copy()
    collisions[:, -1] = False
    members = save(tmp_path / "a.h5", **{"truth/collisions": collisions})
    figures = figures_of(tmp_path / "a.h5")
    relational = members["rollout/relational_ll"]
    assert figures["metrics"]["relational_ll_predicted"] == [None] * M
    assert "relational_ll_predicted" not in figures["bounds"]
    np.testing.assert_allclose(
        figures["metrics"]["relational_ll_inferred"], relational[:, :, :FIRST].mean((0, 2)), rtol=1e-5
    )
    horizon = figures["by_horizon"]["relational_ll"]
    assert [sample[-1] for sample in horizon] == [None] * M
    np.testing.assert_allclose([sample[:-1] for sample in horizon], relational[:, :, FIRST - 1 : -1].mean(0), rtol=1e-4)
    scores.check_figures(figures)
    text = tables.markdown(comparison.collect([figures]))
    assert re.search(r"\| SQAIR \| 1 \| -?\d+\.\d ± [\d.]+ \| 399.5 \| – \| 0.21 \|", text)
    assert re.search(r"\| perfect canvas \| – \| \d+\.\d \| – \| – \| – \|", text)
    assert "| relational log-likelihood | – |" in text and "| relational log-likelihood | 2 | – |" in text

    save(tmp_path / "b.h5", **{"truth/collisions": np.zeros_like(collisions)})
    found = figures_of(tmp_path / "b.h5")
    assert found["metrics"]["relational_ll_inferred"] == [None] * M and set(found["bounds"]) == {
        "data_ll_inferred",
        "data_ll_predicted",
    }


def test_failed_and_collapsed_runs_are_listed(folder):
    text = (folder[0] / "out" / "table.md").read_text()
    four, eight = text.split("## four, 8 slots")
    assert "collapsed, in the means: SQAIR, seed 2: all zero" in four
    assert "failed, not in the means: R-SQAIR (IN), seed 1: its log-likelihoods are not finite" in four
    assert "failed, not in the means: SQAIR, seed 3: no predictions" in four
    assert "R-SQAIR (RMC), seed 0: no predictions" in four
    assert "SQAIR, seed 0: no predictions" in eight
    assert "R-SQAIR (RMC), seed" not in eight  # it cannot run with other slots: nothing is missing


def test_differences_and_their_interval(folder):
    found = [
        r
        for r in rows_of(folder[0] / "out" / "differences.csv")
        if (r["model"], r["minus"], r["metric"]) == ("rsqair_in", "sqair", "data_ll_predicted")
    ]
    means = [
        np.mean([folder[1][key]["rollout/data_ll"][:, :, -1].mean() for key in folder[1] if key[0] == model])
        for model in ("rsqair_in", "sqair")
    ]
    assert float(found[0]["difference"]) == pytest.approx(means[0] - means[1], rel=1e-4)
    assert found[0]["low"] == "nan" and "1 seed" in found[0]["note"]


def test_json_latex_and_the_paper(folder):
    out = folder[0] / "out"
    names = sorted(path.name for path in (out / "metrics").iterdir())
    assert names == [
        "rsqair_in_seed0_four.json",
        "rsqair_in_seed1_four.json",
        "rsqair_rmc_slots_seed0_four_8_slots.json",
        "sqair_seed0_four.json",
        "sqair_seed1_four.json",
        "sqair_seed2_four.json",
    ]
    figures = json.loads((out / "metrics" / "sqair_seed0_four.json").read_text())
    assert figures["balls"] == [4] and figures["confusion"][4][4] > 0 and len(figures["metrics"]["mota"]) == M
    text = (out / "table.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 7
    assert not any(character in text for character in "±−–") and r"$\pm$" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert body and all("_" not in line.replace(r"\_", "") for line in body)
    assert comparison.PAPER[4,]["rsqair_rmc"] == {"data_ll_predicted": 457.32, "relational_ll_predicted": 3.62}
    of_more = comparison.PAPER[6, 7, 8].values()
    assert [figures["relational_ll_predicted"] for figures in of_more] == [-164.1, -96.7, -97.0]


def figures_of(path):
    with Predictions(path) as predictions:
        return scores.evaluate(predictions)


def test_files_that_do_not_compare_are_refused(tmp_path):
    save(tmp_path / "a.h5")
    save(tmp_path / "again.h5")
    save(tmp_path / "b.h5", seed=1, **{"truth/frames": np.zeros((S, T, H, H))})
    save(
        tmp_path / "c.h5",
        seed=1,
        **{
            "inference/log_weights": np.zeros((S, 5)),
            "rollout/log_weights": np.zeros((S, M, 5)),
            **{f"inference/{name}": np.zeros((S, 5, T)) for name in ("data_ll", "log_p", "log_q", "count")},
        },
    )
    a = figures_of(tmp_path / "a.h5")
    for other, message in (
        ("again", "are both SQAIR, seed 0 on four"),
        ("b", "show different sequences"),
        ("c", "k_particles is 3 and 5"),
    ):
        with pytest.raises(UserError, match=message):
            comparison.collect([a, figures_of(tmp_path / f"{other}.h5")])
    wide = a | {"seed": 1, "flags": a["flags"] | {"n_units": 4}}
    with pytest.raises(UserError, match="n_units is 8 and 4"):
        comparison.collect([a, wide])
    with pytest.raises(UserError, match="no file of predictions there"):
        tables.find([str(tmp_path / "none*.h5")])


def test_predictions_without_truth_beyond_the_frames(tmp_path):
    path = tmp_path / "plain.h5"
    members = {
        k: v
        for k, v in made_up(0).items()
        if k
        not in (
            "truth/groups",
            "truth/collisions",
            "truth/centre",
            "truth/box",
            "truth/pixels",
            "rollout/relational_ll",
        )
    }
    members["truth/count"] = np.full((S, T), -1)
    with new_file(path) as file:
        about = About(
            run="r",
            checkpoint="c",
            step=0,
            flags=to_flags(PRESETS["sqair_balls"]),
            trained_slots=4,
            data="x.h5",
            split="test",
            first_generated=T,
            settings={},
            notes=[],
            versions={},
        )
        Writer(file, about, SIZES, SIZES | {"S": 4}).write(members, dict.fromkeys(SIZES, 0))
    figures = figures_of(path)
    assert sorted(figures["metrics"]) == ["data_ll_inferred", "iwae", "kl", "vae"]
    assert "SQAIR" in tables.markdown(comparison.collect([figures]))


def test_figures_of_a_file_are_kept_until_it_or_the_code_changes(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(
        tables,
        "evaluate",
        lambda predictions, boxes, real=scores.evaluate: done.append(predictions.path) or real(predictions, boxes),
    )

    def run_tables(*options):
        done.clear()
        monkeypatch.setattr(
            "sys.argv", ["tables", "--predictions", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options]
        )
        tables.main()
        return [path.rsplit("/", 1)[1] for path in done]

    save(tmp_path / "in" / "a.h5", seed=0)
    save(tmp_path / "in" / "b.h5", seed=1)
    assert run_tables() == ["a.h5", "b.h5"]
    before = (tmp_path / "out" / "table.csv").read_bytes()
    (tmp_path / "in" / "b.h5").rename(tmp_path / "in" / "c.h5")
    assert run_tables() == [] and (tmp_path / "out" / "table.csv").read_bytes() == before
    assert run_tables("--boxes", "window") == ["a.h5", "c.h5"]
    assert run_tables() == ["a.h5", "c.h5"]
    (tmp_path / "in" / "c.h5").unlink()
    save(tmp_path / "in" / "c.h5", seed=1, **{"rollout/data_ll": np.full((S, M, T), 5.0)})
    assert run_tables() == ["c.h5"] and (tmp_path / "out" / "table.csv").read_bytes() != before
    (tmp_path / "out" / "metrics" / "sqair_seed0_four.json").write_text('{\n "file": damaged')
    assert run_tables() == ["a.h5"]
    (tmp_path / "code.py").write_text("# another version")
    monkeypatch.setattr(tables, "__file__", str(tmp_path / "code.py"))
    assert run_tables() == ["a.h5", "c.h5"]
