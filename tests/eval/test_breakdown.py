"""eval.breakdown: replaced latents against hand-made cases, the command's figures against eval.predict's functions."""

import json

import numpy as np
import pytest
import tensorflow as tf

from data_gen.errors import UserError
from eval import breakdown, metrics, predict
from eval.breakdown import Objects
from eval.truth import Source
from sqair import spatial_transformer
from tests.data_helpers import make_test_balls, run_command, run_here
from tests.eval_helpers import save_run, tiny_model

pytestmark = pytest.mark.slow

S, T, K, BATCH = 6, 4, 3, 4


def some_objects():
    """One sequence of three slots: objects 7 and 3 in both, 9 predicted alone, 5 inferred alone, in another order."""
    what, where = np.arange(6.0).reshape(1, 3, 2), np.arange(12.0).reshape(1, 3, 4)
    predicted = Objects(what, where, np.ones((1, 3)), np.array([[7.0, 9.0, 3.0]]))
    inferred = Objects(what + 100, where + 100, np.ones((1, 3)), np.array([[3.0, 5.0, 7.0]]))
    return predicted, inferred


def test_latents_are_replaced_by_those_of_the_same_object():
    predicted, inferred = some_objects()
    found = breakdown.replace(predicted, inferred, "position")
    np.testing.assert_array_equal(found.where[0], [[0, 1, 110, 111], [4, 5, 6, 7], [8, 9, 102, 103]])
    np.testing.assert_array_equal(found.what, predicted.what)
    found = breakdown.replace(predicted, inferred, "scale")
    np.testing.assert_array_equal(found.where[0], [[108, 109, 2, 3], [4, 5, 6, 7], [100, 101, 10, 11]])
    found = breakdown.replace(predicted, inferred, "appearance")
    np.testing.assert_array_equal(found.what[0], [[104, 105], [2, 3], [100, 101]])
    np.testing.assert_array_equal(found.where, predicted.where)
    found = breakdown.replace(predicted, inferred, "presence")
    np.testing.assert_array_equal(found.object_id, inferred.object_id)
    np.testing.assert_array_equal(found.what[0], [[4, 5], [102, 103], [0, 1]])


def test_an_empty_slot_has_no_partner():
    predicted, inferred = (x._replace(object_id=np.where(x.object_id == 7, -1.0, x.object_id)) for x in some_objects())
    np.testing.assert_array_equal(breakdown.replace(predicted, inferred, "appearance").what[0, 0], [0, 1])


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("breakdown")
    data = make_test_balls(folder / "balls.h5", S, T, "--n_balls", 7, 8)
    tiny = save_run(folder / "run", relation="in")
    done = run_command(
        "eval.breakdown",
        "--run",
        tiny,
        "--data",
        data,
        "--n_frames",
        T,
        "--k_particles",
        K,
        "--batch_size",
        BATCH,
        "--out",
        folder / "breakdown.json",
    )
    assert done.returncode == 0, done.stderr
    return tiny, data, json.loads((folder / "breakdown.json").read_text()), done.stdout


def test_the_command_scores_the_canvases_of_the_passes(command):
    """The predicted and the inferred row are the likelihoods of the model's own canvases, of the drawn particle."""
    run, data, written, printed = command
    model = predict.load(run, "best", K).model
    expected = {"predicted": 0.0, "inferred": 0.0}
    with Source(data, "test", model.config.image_size, T) as source:
        for number, (size, truth) in enumerate(source.batches(BATCH)):
            rng = predict.generator(0, number, 0)
            seed, uniform = predict.noise_seed(rng), tf.constant(rng.random(BATCH, np.float32))
            obs = tf.constant(truth.frames.swapaxes(0, 1))
            forward = predict.infer(model, obs, seed, T - 1)
            log_weights = tf.reduce_sum(forward.log_weights_per_frame[:-1], 0)
            particle = predict.draw_particle(model, forward, tf.reshape(log_weights, [BATCH, K]), uniform)
            particle = particle.particle.numpy()
            for name, passed in (("predicted", forward), ("inferred", predict.infer(model, obs, seed))):
                canvas = spatial_transformer.rows_to_image(passed.canvas[-1], 1).numpy().reshape(BATCH, K, 50, 50)
                canvas = canvas[np.arange(BATCH), particle]
                expected[name] += metrics.gaussian_log_likelihood(truth.frames[:, -1], canvas, 0.3)[:size].sum() / S
    loss = written["breakdown"]["loss"]
    for name, value in expected.items():
        np.testing.assert_allclose(loss[name]["data_ll"], value, rtol=1e-5)
    assert {"relational_ll", "data_ll"} == set(loss["predicted"])
    assert len({round(row["data_ll"], 3) for row in loss.values()}) > 3  # replacing changes something
    assert f"{loss['inferred']['data_ll']:.1f}" in printed


def test_deviations_and_attention_are_of_objects(command):
    figures = command[2]["breakdown"]
    assert set(figures["deviations"]) == {"posterior of where", "prior of where", "posterior of what", "prior of what"}
    assert all(row["median"] > 0.01 and 0 <= row["at_floor"] <= 1 for row in figures["deviations"].values())
    assert sum(row[2] for row in figures["attention"]) > 0
    assert all(row[3] is None or 0 < row[3] < 1 for row in figures["attention"])


def test_without_its_inputs_a_relation_changes_nothing():
    """All inputs removed: the outputs are those of another relation's weights; one removed: they are not."""
    outputs = {}
    for removed in ((), ("prior",), ("prior", "rnn", "where")):
        for scale in (1.0, 2.0):
            model = tiny_model(relation="in")
            for variable in model.sequence.timestep.relation.trainable_variables:
                variable.assign(scale * variable)
            breakdown.remove_relation(model, removed)
            noise = model.draw_noise([0, 1], T, 2)
            forward = model(np.random.default_rng(0).random((T, 2, 50, 50), np.float32), noise)
            outputs[len(removed), scale] = forward.log_weights.numpy()
    assert not np.array_equal(outputs[1, 1.0], outputs[0, 1.0])
    assert not np.array_equal(outputs[1, 2.0], outputs[1, 1.0])
    np.testing.assert_array_equal(outputs[3, 2.0], outputs[3, 1.0])


def test_only_a_relation_s_inputs_can_be_removed():
    with pytest.raises(UserError, match="--without_relation rnn: .* one of prior, where"):
        breakdown.remove_relation(tiny_model(relation="in", relation_inputs=("prior", "where")), ["rnn"])
    with pytest.raises(UserError, match="the run has none"):
        breakdown.remove_relation(tiny_model(), ["prior"])


@pytest.mark.parametrize("kind", ["in", "rmc_slots"])
def test_an_exchanged_object_is_related_to_another_sequence_s(kind):
    """Object 0 of the second sequence depends on itself and on objects 1 and 2 of the first, not on its own 1 and 2."""
    relation = tiny_model(relation=kind).sequence.timestep.relation
    exchanged = breakdown.ExchangedOthers(relation, 1)
    n, size = 3, tiny_model().config.n_what + 6
    states = tf.constant(np.random.default_rng(0).normal(size=(2, n, size)), tf.float32)
    ones, memory = tf.ones([2, n]), relation.initial_memory(2, n)

    def gamma(states):
        return exchanged(states, ones, memory).gamma[1, 0].numpy()

    def changed(sequence, slot):
        index = [[sequence, slot]]
        return gamma(tf.tensor_scatter_nd_add(states, index, tf.ones([1, size])))

    np.testing.assert_array_equal(changed(1, 1), gamma(states))
    np.testing.assert_array_equal(changed(0, 0), gamma(states))
    assert np.abs(changed(1, 0) - gamma(states)).max() > 1e-3
    assert np.abs(changed(0, 1) - gamma(states)).max() > 1e-6
    mixed = tf.concat([states[1:, :1], states[:1, 1:]], 1)
    np.testing.assert_allclose(relation(mixed, ones[:1], memory[:1]).gamma[0, 0], gamma(states), rtol=1e-5, atol=1e-6)


def test_objects_with_a_common_memory_cannot_be_exchanged():
    with pytest.raises(UserError, match="--exchange_others: .* IN or rmc_slots"):
        breakdown.ExchangedOthers(tiny_model(relation="rmc").sequence.timestep.relation, 1)


def test_the_command_exchanges_objects_and_says_so(command, tmp_path):
    (run, data, written, _), out = command, tmp_path / "exchanged.json"
    options = ("--run", run, "--data", data, "--n_frames", T, "--k_particles", K, "--exchange_others", "--batch_size")
    done = run_here("eval.breakdown", *options, BATCH, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "; every object is related to those of another sequence" in done.stdout.splitlines()[0]
    exchanged = json.loads(out.read_text())["breakdown"]
    assert exchanged["loss"]["predicted"]["data_ll"] != written["breakdown"]["loss"]["predicted"]["data_ll"]
    done = run_here("eval.breakdown", *options, S - 1)
    assert done.returncode == 1 and "--exchange_others: a batch of one sequence is left" in done.stderr
