"""eval.likelihood: against the model's own report, numpy on the canvases, and hand-made weights."""

import json

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import logsumexp
from scipy.stats import norm

from data_gen.errors import UserError
from eval import likelihood
from eval import truth as truth_module
from eval.predict import generator, infer, noise_seed
from eval.truth import Source
from sqair.model import report
from tests.data_helpers import make_test_balls, run_command
from tests.eval_helpers import save_original, tiny_model

S, T, K = 12, 3, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("likelihood") / "balls.h5"
    return make_test_balls(path, S, T, "--n_balls", 2, 8, "--seed", 1)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def source(data):
    with Source(data, "test", (50, 50, 1), T) as opened:
        yield opened


def test_figures_of_one_chunk_are_the_models_own_report(model, source):
    seen = next(source.batches(S))[1]
    forward = infer(model, tf.constant(seen.frames.swapaxes(0, 1)), noise_seed(generator(3, 0, 0)))
    expected = report(forward, tf.constant(seen.count.T.astype(np.int32)))
    found = likelihood.evaluate(model, source, K, S, seed=3)
    for name in ("iwae", "vae", "iwae_per_frame", "vae_per_frame", "data_ll", "kl", "log_p", "log_q", "ess"):
        assert found[name] == pytest.approx(float(getattr(expected, name)), rel=1e-4), name
    assert found["count"] == pytest.approx(float(expected.num_steps), rel=1e-4)
    assert found["count_accuracy"] == pytest.approx(float(expected.num_step_accuracy), abs=1e-5)
    assert found["raw_count_accuracy"] == pytest.approx(float(expected.raw_num_step_accuracy), abs=1e-5)

    # The relational part by hand: weighted over particles, the mean over sequences and frames.
    canvas = forward.canvas.numpy().reshape(T, S, K, 50, 50).transpose(1, 0, 2, 3, 4)
    assert seen.collisions.any()
    parts = (norm.logpdf(seen.frames[:, :, None], canvas, 0.3) * seen.collisions[:, :, None]).sum((3, 4))
    weights = forward.importance_weights.numpy()[:, None]
    collides = seen.collisions.any((0, 2, 3))
    by_frame = found["by_frame"]["relational_ll"]
    assert [value is not None for value in by_frame] == collides.tolist()
    np.testing.assert_allclose(
        np.array(by_frame, float)[collides], (weights * parts).sum(-1).mean(0)[collides], rtol=1e-4
    )
    assert found["relational_ll"] == pytest.approx((weights * parts).sum(-1).mean(), rel=1e-4)


def test_without_a_collision_there_is_no_relational_figure():
    numbers = {"log_weights": np.zeros((2, 1)), "count": np.ones((2, 3, 1), int)}
    numbers |= {name: np.ones((2, 3, 1)) for name in ("data_ll", "log_p", "log_q")}
    numbers["relational_ll"] = np.array([[[0.0], [4.0], [0.0]], [[2.0], [0.0], [0.0]]])
    collides = numbers["relational_ll"][..., 0] != 0
    totals = likelihood.Totals(n_slots=2)
    for b in range(2):  # a batch at a time
        totals.add(
            {name: value[b : b + 1] for name, value in numbers.items()}, np.ones((1, 3), int), collides[b : b + 1]
        )
    found = totals.result(3)
    assert found["by_frame"]["relational_ll"] == [1.0, 2.0, None] and found["relational_ll"] == pytest.approx(1.0)
    totals = likelihood.Totals(n_slots=2)
    totals.add({**numbers, "relational_ll": np.zeros((2, 3, 1))}, np.ones((2, 3), int), np.zeros((2, 3), bool))
    found = totals.result(3)
    assert found["relational_ll"] is None and found["by_frame"]["relational_ll"] == [None] * 3


def test_many_particles_in_chunks_and_batches(model, source):
    n_particles, batch = 7, 8
    log_weights = []
    for number, (size, truth) in enumerate(source.batches(batch)):
        rng = generator(0, number, 0)
        obs = tf.constant(truth.frames.swapaxes(0, 1))
        chunks = [infer(model, obs, noise_seed(rng)).log_weights.numpy() for _ in range(3)]
        log_weights.append(np.concatenate(chunks, 1)[:size, :n_particles].astype(float))
    log_weights = np.concatenate(log_weights)
    assert log_weights.shape == (S, n_particles)
    found = likelihood.evaluate(model, source, n_particles, batch, seed=0)
    assert found["iwae"] == pytest.approx((logsumexp(log_weights, -1) - np.log(n_particles)).mean(), rel=1e-6)
    assert found["vae"] == pytest.approx(log_weights.mean(), rel=1e-6)


def test_many_frames_are_computed_in_parts_with_the_same_figures(model, source, monkeypatch):
    whole = likelihood.evaluate(model, source, 5, 8, seed=0)
    monkeypatch.setattr(truth_module, "PART", 2)
    told = []
    parts = likelihood.evaluate(model, source, 5, 8, seed=0, advance=told.append)
    assert told == [16, 8] * 2 + [8, 4] * 2  # batches of 8 and 4 sequences, two chunks of particles, 3 frames
    for name in ("iwae", "vae", "data_ll", "relational_ll", "kl", "ess", "count", "count_accuracy"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4), name
    np.testing.assert_allclose(parts["confusion"], whole["confusion"], rtol=1e-4)
    np.testing.assert_allclose(parts["by_frame"]["data_ll"], whole["by_frame"]["data_ll"], rtol=1e-4)


@pytest.mark.parametrize(
    "k_particles, batch_size, chunk", [(5, 32, 5), (500, 32, 20), (499, 32, 20), (51, 32, 17), (10, 10_000, 1)]
)
def test_chunks_fit_and_waste_little(k_particles, batch_size, chunk):
    assert likelihood.chunk_size(k_particles, batch_size) == chunk


def test_accuracy_and_confusion_by_hand():
    # Two sequences of one frame; weights 3/4 and 1/4, then 1 and 0 to all digits.
    numbers = {"log_weights": np.array([[np.log(3.0), 0.0], [0.0, -1e3]]), "count": np.array([[[1, 2]], [[0, 1]]])}
    for name in ("data_ll", "log_p", "log_q"):
        numbers[name] = np.array([[[4.0, 8.0]], [[2.0, 50.0]]])
    numbers["log_q"] = numbers["log_q"] + 1.5
    totals = likelihood.Totals(n_slots=2)
    totals.add(numbers, np.array([[2], [3]]))
    found = totals.result(n_frames=1)
    assert found["confusion"] == [[0, 0, 0], [0, 0, 0], [0, 0.75, 0.25], [1, 0, 0]]
    assert found["count_accuracy"] == pytest.approx(0.125)
    assert found["raw_count_accuracy"] == pytest.approx(0.25)
    assert found["data_ll"] == pytest.approx((5.0 + 2.0) / 2) and found["kl"] == pytest.approx(1.5)
    totals = likelihood.Totals(n_slots=2)
    totals.add(numbers, np.array([[-1], [-1]]))
    assert totals.result(1)["count_accuracy"] is None and totals.result(1)["confusion"] is None


@pytest.mark.slow
def test_every_checkpoint_of_an_original_run_folder(data, tmp_path):
    folder = save_original(tmp_path / "original", steps=(20, 3))
    out = tmp_path / "out" / "likelihood.json"
    done = run_command(
        "eval.likelihood",
        "--run",
        folder,
        "--data",
        data,
        "--checkpoint",
        "all",
        "--n_frames",
        2,
        "--k_particles",
        2,
        "--n_sequences",
        6,
        "--batch_size",
        4,
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["results"]
    assert [result["step"] for result in results] == [3, 20]
    assert results[0]["iwae"] != results[1]["iwae"]
    assert results[0]["iwae"] == pytest.approx(2 * results[0]["iwae_per_frame"])
    table = [line for line in done.stdout.splitlines() if line.split()[:1] in (["3"], ["20"])]
    assert [line.split()[:2] for line in table[-2:]] == [[str(r["step"]), f"{r['iwae']:.2f}"] for r in results]
    # The compiled model is filled anew: each row is what the checkpoint gives alone.
    alone = next(
        likelihood.results(
            likelihood.Arguments(
                run=str(folder), data=str(data), checkpoint="20", n_frames=2, k_particles=2, n_sequences=6, batch_size=4
            )
        )
    )[0]
    assert alone["iwae"] == pytest.approx(results[1]["iwae"], rel=1e-6)


def test_checkpoints_of_our_run_folders_and_of_none(tmp_path):
    for name in ("checkpoints/step-20", "checkpoints/step-100", "best/step-3", "best/step-20", "best/notes-4"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / f"{name}.index").touch()
    assert likelihood.checkpoints_of(str(tmp_path / "run")) == ["3", "20", "100"]
    with pytest.raises(UserError, match="no checkpoint in it"):
        likelihood.checkpoints_of(str(tmp_path))
