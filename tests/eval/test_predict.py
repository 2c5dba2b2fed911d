"""eval.predict: the real command, and what it stores against numpy on the data file."""

import h5py
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import norm

from data_gen.errors import UserError
from eval import geometry, predict, truth
from eval.predictions import MEMBERS, Predictions
from eval.truth import Source
from tests.data_helpers import make_test_balls, run_command, run_here
from tests.eval_helpers import assemble, save_run

pytestmark = pytest.mark.slow

S, M, T, N, K, FIRST, BATCH = 20, 2, 4, 3, 3, 2, 16
SEED = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def data(folder):
    # Many balls, so that some collide within the few frames.
    return make_test_balls(folder / "balls.h5", 40, T, "--n_balls", 7, 8)


@pytest.fixture(scope="module")
def tiny_run(folder):
    return save_run(folder / "run", relation="in")


@pytest.fixture(scope="module")
def command(folder, data, tiny_run):
    """The real command's options, and the file it wrote."""
    options = [
        "--run",
        tiny_run,
        "--data",
        data,
        "--n_frames",
        T,
        "--n_generated",
        T - FIRST,
        "--n_samples",
        M,
        "--k_particles",
        K,
        "--n_sequences",
        S,
        "--batch_size",
        BATCH,
        "--seed",
        SEED,
    ]
    done = run_command("eval.predict", *options, "--canvases", "--out", folder / "out" / "predictions.h5")
    assert done.returncode == 0, done.stderr
    return options, folder / "out" / "predictions.h5"


@pytest.fixture(scope="module")
def stored(command):
    with Predictions(command[1]) as predictions:
        yield predictions


@pytest.fixture(scope="module")
def model(tiny_run):
    return predict.load(tiny_run, "best", K).model


def recompute(model, path, n_sequences=S, seed=SEED, first=FIRST):
    """The members, all batches joined, as computed in this process."""
    with Source(path, "test", (50, 50, 1), T, n_sequences) as source:
        return assemble(predict.predict(model, source, first, M, BATCH, seed, canvases=False))


@pytest.fixture(scope="module")
def computed(model, data):
    return recompute(model, data)


def altered(data, path, change):
    """A copy of the data file with its test split changed."""
    path.write_bytes(data.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file["test"])
    return path


# --- the file ---


def test_the_file_has_every_member_of_its_shape(stored):
    assert stored.sizes == dict(S=S, M=M, T=T, N=N, D=2, K=K, n=8, H=50, W=50, A=1, R=N)
    missing = [name for name in MEMBERS if name not in stored]
    assert not missing
    assert stored.about.model == "rsqair_in" and stored.about.step == 7 and stored.about.first_generated == FIRST
    assert stored.about.data_set == "balls" and stored.about.flags["n_what"] == 2
    assert stored["rollout/presence"][:].any() and not stored["rollout/presence"][:].all()


def test_the_same_seed_gives_the_same_contents_in_another_process(stored, command, folder):
    options, _ = command
    again = folder / "again" / "predictions.h5"
    done = run_command("eval.predict", *options, "--canvases", "--out", again)
    assert done.returncode == 0, done.stderr
    with Predictions(again) as other:
        for name in MEMBERS:
            np.testing.assert_array_equal(stored[name][:], other[name][:], err_msg=name)


def test_the_file_holds_what_this_process_computes(stored, computed):
    """Up to rounding: this process schedules operations differently (conftest.py)."""
    for name, values in computed.items():
        if values.dtype.kind == "f" and name != "rollout/attention":
            np.testing.assert_allclose(stored[name][:], values, rtol=1e-5, atol=1e-3, err_msg=name)
        else:
            assert np.mean(stored[name][:] != values.astype(MEMBERS[name].dtype)) < 1e-3, name


def test_another_seed_gives_other_samples(model, data, computed):
    other = recompute(model, data, seed=SEED + 1)
    assert not np.array_equal(other["rollout/where"], computed["rollout/where"])
    assert not np.array_equal(computed["rollout/where"][:, 0], computed["rollout/where"][:, 1])


def test_the_last_batch_is_filled_up_without_a_trace(model, data, computed):
    whole = recompute(model, data, n_sequences=2 * BATCH)
    for name, values in computed.items():
        np.testing.assert_allclose(whole[name][:S], values, rtol=1e-4, atol=1e-4, err_msg=name)


# --- long videos ---


def test_parts_of_the_frames_give_what_all_at_once_do(model, data, folder, monkeypatch):
    def forget(split):
        del split["radii"], split["n"]  # which are then found from all frames

    path = altered(data, folder / "no_radii.h5", forget)
    whole = recompute(model, path)
    monkeypatch.setattr(truth, "PART", 3)
    for kept in (T, T - 1):  # computed once, or twice
        monkeypatch.setattr(predict, "KEPT", kept)
        parts = recompute(model, path)
        assert parts.keys() == whole.keys()
        for name, values in whole.items():
            if name.endswith(("segmentation", "box", "centre")) and name.startswith("rollout"):
                # These come from thresholds: rounding may move a pixel across one.
                assert (np.abs(parts[name] - values.astype(float)) > 0.6).mean() < 1e-3, name
            else:
                np.testing.assert_allclose(parts[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


def test_progress_counts_every_frame_that_is_computed(model, data, monkeypatch):
    monkeypatch.setattr(predict, "KEPT", 2)
    for first in (1, FIRST, T):
        told = []
        with Source(data, "test", (50, 50, 1), T, 4) as source:
            list(predict.predict(model, source, first, M, BATCH, SEED, False, told.append))
        assert sum(told) == 4 * (T + M * predict.frames_of_a_sample(T, first))
    assert [predict.frames_of_a_sample(*sizes) for sizes in ((2, 1), (25, 1), (25, 10), (25, 24))] == [2, 35, 35, 50]


# --- likelihoods ---


def true_pixels(data):
    """Images, colliding pixels and owners of the crop, [S, T, 50, 50], straight from the data file."""
    with h5py.File(data) as file:
        return tuple(
            np.array(file["test"][name][:T, :S, 7:57, 7:57, 0]).swapaxes(0, 1)
            for name in ("features", "collisions", "groups")
        )


def test_log_likelihoods_are_masked_sums_over_the_canvas(model, data, computed, stored):
    images, collisions, groups = true_pixels(data)
    assert collisions[:, FIRST:].any()
    obs = tf.constant(images[:BATCH].swapaxes(0, 1).astype(np.float32))
    rng = predict.generator(SEED, 0, 1)
    forward = predict.infer(model, obs, predict.noise_seed(rng), FIRST)
    drawn = computed["rollout/particle"][:BATCH, 0] + K * np.arange(BATCH)
    canvas = forward.canvas.numpy()[:, drawn].swapaxes(0, 1)
    pixels = norm.logpdf(images[:BATCH], canvas, 0.3)
    np.testing.assert_allclose(computed["rollout/data_ll"][:BATCH, 0], pixels.sum((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(computed["rollout/data_ll"][:BATCH, 0], forward.data_ll.numpy()[:, drawn].T, rtol=1e-5)
    np.testing.assert_allclose(
        computed["rollout/relational_ll"][:BATCH, 0], (pixels * collisions[:BATCH]).sum((2, 3)), rtol=1e-5, atol=1e-4
    )
    for ball in range(8):
        np.testing.assert_allclose(
            computed["rollout/object_ll"][:BATCH, 0, :, ball],
            (pixels * (groups[:BATCH] == ball + 1)).sum((2, 3)),
            rtol=1e-5,
            atol=1e-4,
        )
    # The stored canvases are rounded to 1/255: a pixel at most (1/.09)/510 off.
    pixels = norm.logpdf(images[:, None], stored["rollout/canvas"][:] / 255, 0.3) * collisions[:, None]
    assert np.all(
        np.abs(pixels.sum((3, 4)) - stored["rollout/relational_ll"][:]) <= 0.03 * collisions.sum((2, 3))[:, None] + 1e-3
    )


def test_without_collisions_the_relational_likelihood_is_left_out_with_a_note(model, data, folder):
    path = altered(data, folder / "plain.h5", lambda split: split.__delitem__("collisions"))
    assert "rollout/relational_ll" not in recompute(model, path)
    with Source(path, "test", (50, 50, 1), T) as source:
        assert "no relational log-likelihood" in source.notes[0]


# --- prediction ---


def test_predicted_frames_keep_objects_and_discover_none(computed):
    ids, presence = computed["rollout/object_id"], computed["rollout/presence"]
    np.testing.assert_array_equal(ids >= 0, presence > 0)
    discovered = 0
    for t in range(1, T):
        new = (ids[:, :, t] >= 0) & ~(ids[:, :, t, :, None] == ids[:, :, t - 1, None]).any(-1)
        if t >= FIRST:
            assert not new.any()
        discovered += new.sum()
    assert discovered  # inferred frames do discover some
    assert (presence[:, :, FIRST:].sum(-1) < presence[:, :, FIRST - 1 : -1].sum(-1)).any()  # and the prior loses some


def test_nothing_drawn_depends_on_the_frames_that_are_predicted(model, data, folder, computed):
    def change(split):
        split["features"][FIRST:] = 1 - split["features"][FIRST:]

    other = recompute(model, altered(data, folder / "inverted.h5", change))
    for name in ("particle", "log_weights", "what", "where", "presence", "object_id", "segmentation", "attention"):
        np.testing.assert_array_equal(other[f"rollout/{name}"], computed[f"rollout/{name}"], err_msg=name)
    assert not np.array_equal(other["rollout/data_ll"], computed["rollout/data_ll"])
    assert not np.array_equal(other["inference/log_weights"], computed["inference/log_weights"])


def test_the_particle_is_drawn_by_its_weight_on_the_inferred_frames(model, data, computed):
    images = true_pixels(data)[0]
    rng = predict.generator(SEED, 0, 1)
    forward = predict.infer(
        model, tf.constant(images[:BATCH].swapaxes(0, 1).astype(np.float32)), predict.noise_seed(rng), FIRST
    )
    log_weights = forward.log_weights_per_frame.numpy()[:FIRST].sum(0).reshape(BATCH, K)
    np.testing.assert_allclose(computed["rollout/log_weights"][:BATCH, 0], log_weights, rtol=1e-5)
    weights = np.exp(log_weights - log_weights.max(-1, keepdims=True))
    edges = np.cumsum(weights / weights.sum(-1, keepdims=True), -1)
    uniform = rng.random(BATCH, np.float32)
    np.testing.assert_array_equal(computed["rollout/particle"][:BATCH, 0], (edges[:, :-1] < uniform[:, None]).sum(-1))


def test_nothing_generated_infers_every_frame(model, data):
    members = recompute(model, data, n_sequences=BATCH, first=T)
    with Source(data, "test", (50, 50, 1), T, BATCH) as source:
        seen = next(source.batches(BATCH))[1]
    forward = predict.infer(
        model, tf.constant(seen.frames.swapaxes(0, 1)), predict.noise_seed(predict.generator(SEED, 0, 1))
    )
    np.testing.assert_allclose(members["rollout/log_weights"][:, 0], forward.log_weights, rtol=1e-5)


# --- segmentation and truth ---


def test_segmentation_names_the_slot_that_adds_most(model):
    where = np.zeros((N, 4), np.float32)
    where[:, :2] = -2.0  # sigmoid: .12 of the frame
    where[0, 2:], where[1, 2:], where[2, 2:] = (-0.5, -0.5), (0.5, 0.5), (0.5, 0.5)
    glimpse = np.ones((N, 36), np.float32) * np.array([[1.0], [0.4], [0.7]])
    row, column = 25 + int(24.5 * np.tanh(0.5)), 24 - int(24.5 * np.tanh(0.5))

    def labels(presence, factor=1.0):
        segments = geometry.segmentation(
            predict.paste(
                model, tf.constant(factor * glimpse, tf.float32), tf.constant(where), tf.constant(presence, tf.float32)
            )
        )
        return segments[column, column], segments[row, row], segments[24, 24]

    assert labels([1, 1, 1]) == (1, 3, 0)
    assert labels([1, 1, 0]) == (1, 2, 0)
    assert labels([0, 0, 1]) == (0, 3, 0)
    assert labels([1, 1, 1], factor=0.12) == (1, 0, 0)  # .12 and .084 of white


def test_what_an_object_draws_is_its_pasted_glimpse_alone(model, data, computed, stored):
    """Where slot n alone shows: the canvas of a model without a mean image, less that of the other slots."""
    images = true_pixels(data)[0]
    rng = predict.generator(SEED, 0, 1)
    forward = predict.infer(
        model, tf.constant(images[:BATCH].swapaxes(0, 1).astype(np.float32)), predict.noise_seed(rng), FIRST
    )
    particle = computed["rollout/particle"][:BATCH, 0] + K * np.arange(BATCH)
    glimpse, where, presence = (
        tf.gather(x, particle, axis=1) for x in (forward.glimpse, forward.latents.where, forward.presence)
    )
    drawn = predict.paste(model, glimpse, where, presence).numpy()
    np.testing.assert_allclose(drawn.sum(2), forward.canvas.numpy()[:, particle], atol=1e-5)
    assert (drawn[presence == 0] == 0).all()
    found, expected = 0, presence.numpy().swapaxes(0, 1)
    for b, t, n in np.ndindex(expected.shape):
        one, box, centre = (drawn[t, b, n], *(computed[f"rollout/{name}"][b, 0, t, n] for name in ("box", "centre")))
        if one.max() < geometry.LEAST_INTENSITY:
            assert np.isnan(box).all() and np.isnan(centre).all()
            continue
        assert expected[b, t, n] == 1
        rows, columns = np.nonzero(one > one.max() / 2)
        np.testing.assert_allclose(box, [rows.min() - 0.5, columns.min() - 0.5, np.ptp(rows) + 1, np.ptp(columns) + 1])
        np.testing.assert_allclose(centre, np.average([rows, columns], axis=1, weights=one[rows, columns]), rtol=1e-5)
        found += 1
    assert found > BATCH and np.isnan(stored["rollout/centre"][:]).any()


def test_the_truth_of_files_without_radii_and_numbers_is_read_off_the_pixels(data, folder):
    def read(path):
        with Source(path, "test", (50, 50, 1), T, 8) as source:
            return next(source.batches(8))[1]

    def forget(split):
        del split["radii"], split["n"], split["masses"]

    ours, bare = read(data), read(altered(data, folder / "bare.h5", forget))
    np.testing.assert_array_equal(ours.centre, bare.centre)
    # A disc of 80 pixels, a few of which another ball may hide.
    np.testing.assert_allclose(ours.box, bare.box, atol=1.0)
    np.testing.assert_array_equal(ours.count, (ours.pixels > 0).sum(-1))


# --- what can go wrong ---


def test_another_number_of_slots(data, folder, tiny_run):
    predict.write(
        predict.Arguments(
            run=str(tiny_run),
            data=str(data),
            out=folder / "five.h5",
            n_frames=1,
            n_samples=1,
            n_generated=0,
            n_sequences=4,
            batch_size=4,
            n_slots=5,
        )
    )
    with Predictions(folder / "five.h5") as predictions:
        assert predictions.sizes["N"] == 5 and predictions.about.data_set == "balls, 5 slots"
        assert predictions.about.trained_slots == N


def test_the_memory_core_is_bound_to_its_slots(folder):
    path = save_run(folder / "rmc", relation="rmc")
    with pytest.raises(UserError, match="relation rmc is bound to its 3 slots"):
        predict.load(path, "best", K, 8)


def test_bad_input_is_one_line_and_leaves_no_file(command, folder, data, tiny_run):
    done = run_here("eval.predict", *command[0], "--n_frames", T + 1, "--out", folder / "no.h5")
    assert done.returncode == 1 and not (folder / "no.h5").exists()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and f"test has {T} frames per sequence, {T + 1} were asked for" in errors[0]
    assert "Traceback" not in done.stderr

    for options, message in (
        ({"run": str(folder / "none")}, "no such run folder"),
        ({"n_generated": 10}, "at least one of the"),
        ({"checkpoint": "8"}, "no checkpoint 8; choose best, newest, or one of"),
    ):
        with pytest.raises(UserError, match=message):
            predict.write(
                predict.Arguments(**{"run": str(tiny_run), "data": str(data), "out": folder / "no.h5"} | options)
            )
    assert not (folder / "no.h5").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"path": "/none.h5"}, "no such file"),
        ({"split": "training"}, "no split 'training'"),
        ({"n_sequences": 41}, "has 40 sequences, 41 were asked for"),
        ({"image_size": (50, 50, 3)}, "cannot be cut"),
        ({"image_size": (65, 65, 1)}, "frames of 64 x 64 x 1, from which the model's 65 x 65 x 1 cannot be cut"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, options, message):
    with pytest.raises(UserError, match=message):
        Source(**{"path": data, "split": "test", "image_size": (50, 50, 1), "n_frames": 2} | options)


def test_files_that_are_no_predictions_are_refused(data, command, folder):
    with pytest.raises(UserError, match="not a file of predictions"):
        Predictions(data)
    broken = folder / "broken.h5"
    broken.write_bytes(command[1].read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        Predictions(broken)
