"""The whole model: every branch against the specification in NumPy, sizes, execution modes, prediction, relations."""

import attrs
import numpy as np
import pytest
import tensorflow as tf

from sqair import objectives
from sqair.config import PRESETS, ModelConfig
from sqair.model import SQAIR, Forward, report, resample
from sqair.runs import loading, original
from sqair.spatial_transformer import rows_to_image
from tests.model_helpers import busy_model, draw, eagerly, loss_and_gradients, make_inputs, small_config
from tests.reference.numpy_sqair import NumpySQAIR

RELATIONS = ["in", "rmc", "rmc_slots"]


@pytest.fixture(scope="module", autouse=True)
def run_eagerly():
    with eagerly():
        yield


def n_parameters(model):
    return sum(v.shape.num_elements() for v in model.trainable_variables)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"prop_prior_type": "rw"},
        {"prop_prior_type": "guided", "prior_transition": "VanillaRNN"},
        {"disc_prior_type": "geom", "step_success_prob": 0.6},
        {"rec_where_prior": False, "scale_prior": "-1,0.5"},
        {"rec_where_prior": True, "scale_prior": "-1,0.5", "masked_glimpse": False},
        {"mean_image": False, "output_std": 0.5},
        {"transition": "GRU"},
        {"time_transition": "VanillaRNN", "n_steps_per_image": 1},
        {"transition": "GRU", "time_transition": "VanillaRNN", "prior_transition": "VanillaRNN"},
        {"n_what": 16},  # half of R: heads without weights
        {"image_shape": (9, 11, 3), "prop_prior_type": "guided", "disc_prior_type": "geom", "rec_where_prior": False},
        {"image_shape": (9, 11, 3), "masked_glimpse": False, "mean_image": False, "prop_prior_step_bias": -1.0},
    ],
    ids=lambda flags: " ".join(f"{key}={value}" for key, value in flags.items()) or "default",
)
def test_equals_the_specification(flags):
    model = busy_model(**flags)
    names = original.original_names(model)
    weights = {
        name: original.gather_original(columns, [c.variable.numpy() for c in columns])
        for name, columns in names.items()
    }
    reference = NumpySQAIR(model.config, weights)
    obs, noise = make_inputs(model)
    forward = model(obs, noise)
    images = obs.numpy().reshape(*obs.shape[:4], -1)
    canvas = rows_to_image(forward.canvas, model.config.image_size[2]).numpy()
    present = forward.latents.presence
    counts = np.zeros(2)
    for p in range(4):
        one = {
            f"{phase}_{field}": getattr(record, field).numpy()[:, :, p].astype(np.float64)
            for phase, record in zip(("prop", "disc"), noise)
            for field in record._fields
        }
        for t, expected in enumerate(reference.run(images[:, p // 2].astype(np.float64), one)):
            counts += expected.pop("n_propagated"), expected.pop("n_discovered")
            ours = dict(
                data_ll=forward.data_ll,
                log_q=forward.log_q,
                log_p=forward.log_p,
                log_weights_per_frame=forward.log_weights_per_frame,
                object_id=forward.frame.object_id,
                discrete_log_prob=forward.discrete_log_prob,
                what=present * forward.latents.what,
                where=present * forward.latents.where,
                canvas=canvas,
            )
            for name, value in expected.items():
                np.testing.assert_allclose(
                    np.reshape(ours[name][t, p], np.shape(value)),
                    value,
                    rtol=1e-3,
                    atol=2e-4,
                    err_msg=f"{name}, particle {p}, frame {t}",
                )
    assert counts.min() > 0  # objects are both found and kept


@pytest.mark.parametrize(
    "flags, count",
    [
        ({}, 2_951_522),
        ({"n_what": 5}, 2_663_117),
        ({"n_steps_per_image": 4}, 2_951_535),
        ({"n_what": 5, "n_steps_per_image": 4}, 2_663_130),
        ({"n_what": 5, "n_steps_per_image": 4, "mean_image": False}, 2_660_630),
    ],
)
def test_parameter_counts_of_sqair(flags, count):
    model = SQAIR(ModelConfig(**flags))
    assert n_parameters(model) == count
    # The original's variables; ours split some and join others, to the same numbers.
    assert len(original.original_names(model)) == 105 - ("mean_image" in flags)


@pytest.mark.parametrize(
    "relation, inputs, added",
    [
        ("in", ("rnn", "where"), 9_389),
        ("rmc", ("rnn", "where"), 98_880),
        ("in", ("prior", "rnn", "where"), 21_677),
        ("rmc", ("prior", "rnn", "where"), 221_760),
    ],
)
def test_parameter_counts_of_r_sqair(relation, inputs, added):
    config = attrs.evolve(PRESETS["sqair_balls"].model, relation=relation, relation_inputs=inputs, mean_image=False)
    assert n_parameters(SQAIR(config)) == 2_660_630 + added


@pytest.mark.parametrize("relation_inputs", [("prior",), ("rnn",), ("where",), ("prior", "rnn", "where")])
def test_relation_enters_where_it_is_asked_to(relation_inputs):
    model = SQAIR(small_config(relation="in", relation_inputs=relation_inputs))
    places = {"prior/rnn": "prior", "core/rnn": "rnn", "core/where_head": "where"}
    found = {
        place
        for v in model.trainable_variables
        if "w_gamma" in v.name
        for part, place in places.items()
        if part in v.name
    }
    assert found == set(relation_inputs)


def test_relation_none_has_exactly_the_variables_of_sqair():
    plain, related = SQAIR(small_config()), SQAIR(small_config(relation="rmc"))
    names = {v.name for v in plain.trainable_variables}
    extra = {v.name for v in related.trainable_variables} - names
    assert names < {v.name for v in related.trainable_variables}
    assert not any("gamma" in name or "relation" in name for name in names)
    assert all("w_gamma" in name or "memory" in name for name in extra)


@pytest.mark.parametrize("relation", RELATIONS)
def test_relational_model_filled_from_sqair_computes_its_bound(relation):
    plain, related = busy_model(), busy_model(seed=2, relation=relation)
    obs, noise = make_inputs(plain)
    assert np.abs(related(obs, noise).log_weights - plain(obs, noise).log_weights).max() > 1
    done = loading.fill(related, plain)
    assert len(done.filled) == len(plain.trainable_variables) and len(done.widened) == 3
    forward, _, gradients = loss_and_gradients(related, obs, noise)
    np.testing.assert_allclose(forward.log_weights, plain(obs, noise).log_weights, rtol=1e-5)
    for name in done.widened:  # and it can leave that state
        assert np.any(gradients[name]), name


@pytest.mark.parametrize("relation", ["none", *RELATIONS])
def test_gradients_reach_every_variable(relation):
    model = busy_model(relation=relation)
    _, _, gradients = loss_and_gradients(model, *make_inputs(model, n_frames=3, batch=4))
    for name, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), name
        assert np.any(gradient), name


@pytest.mark.slow
def test_eager_graph_and_xla_agree(request):
    model = busy_model(relation="in", n_steps_per_image=2)
    model.sequence.all_slots = True  # as for XLA
    obs, noise = make_inputs(model, n_frames=2)
    variables = model.trainable_variables

    def step(obs, noise):
        with tf.GradientTape() as tape:
            forward = model(obs, noise)
            loss = model.loss(forward)
        return forward, loss, tape.gradient(loss, variables, unconnected_gradients="zero")

    eager = tf.nest.flatten(step(obs, noise))
    assert 0 < tf.reduce_mean(model(obs, noise).presence) < 1
    tf.config.run_functions_eagerly(False)
    request.addfinalizer(lambda: tf.config.run_functions_eagerly(True))
    graph = tf.function(step).get_concrete_function(obs, noise)
    xla = tf.function(lambda *inputs: graph(*inputs), jit_compile=True)  # traced once for both
    for compiled in (graph, xla):
        compiled = tf.nest.flatten(compiled(obs, noise))
        assert len(compiled) == len(eager) > 100
        for ours, expected in zip(compiled, eager):
            scale = max(np.abs(expected).max(), 1e-3) if expected.shape.num_elements() else 1.0
            np.testing.assert_allclose(ours, expected, atol=2e-4 * scale)


@pytest.mark.parametrize(
    "kind, relation", [("rnn", "none"), ("rw", "none"), ("guided", "none"), ("rnn", "rmc"), ("rnn", "rmc_slots")]
)
def test_skipping_propagation_at_the_first_frame_changes_nothing(kind, relation):
    model = busy_model(prop_prior_type=kind, relation=relation)
    inputs = make_inputs(model, n_frames=2)
    skipped, skipped_loss, skipped_gradients = loss_and_gradients(model, *inputs)
    whole, whole_loss, whole_gradients = loss_and_gradients(model, *inputs, propagate_first=True)
    np.testing.assert_allclose(skipped_loss, whole_loss, rtol=1e-6)
    for name in ("log_weights_per_frame", "log_p", "log_q", "discrete_log_prob", "canvas"):
        np.testing.assert_allclose(getattr(skipped, name), getattr(whole, name), rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(skipped.frame.expected, whole.frame.expected, atol=1e-7)
    for name, gradient in whole_gradients.items():
        np.testing.assert_allclose(
            skipped_gradients[name], gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max() + 1e-6, err_msg=name
        )
    # Absent slots differ: only their stored values are skipped.
    assert np.abs(whole.frame.propagated.where[0]).max() > 0 == np.abs(skipped.frame.propagated.where[0]).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind, relation", [("rnn", "none"), ("guided", "rmc_slots")])
def test_leaving_out_absent_slots_changes_no_number(kind, relation, request):
    """In graphs, where branches and their derivatives are built differently than in eager execution."""
    tf.config.run_functions_eagerly(False)
    request.addfinalizer(lambda: tf.config.run_functions_eagerly(True))
    model = busy_model(prop_prior_type=kind, relation=relation)
    obs, noise = make_inputs(model, n_frames=3, batch=4)
    bias = model.sequence.timestep.discover.core.steps_predictor.layers[-1].b

    def compiled(all_slots):
        def step(obs, noise):
            model.sequence.all_slots = all_slots
            return loss_and_gradients(model, obs, noise)

        return tf.function(step, autograph=False)

    whole, left_out = compiled(True), compiled(False)
    found = []
    for value in (-30.0, -1.0, 30.0):  # nothing is found, little, all
        bias.assign([value])
        expected, ours = whole(obs, noise), left_out(obs, noise)
        presence = expected[0].frame.discovered.presence[1:, :, :, 0].numpy()
        found.append(presence[:, :, 0].mean())
        np.testing.assert_array_equal(ours[0].frame.discovered.presence, expected[0].frame.discovered.presence)
        np.testing.assert_array_equal(ours[0].frame.object_id, expected[0].frame.object_id)
        for name in ("log_weights_per_frame", "log_p", "log_q", "discrete_log_prob", "canvas"):
            np.testing.assert_allclose(
                getattr(ours[0], name), getattr(expected[0], name), rtol=1e-5, atol=1e-5, err_msg=name
            )
        np.testing.assert_allclose(ours[0].frame.expected, expected[0].frame.expected, atol=1e-7)
        np.testing.assert_allclose(ours[1], expected[1], rtol=1e-6)
        for name, gradient in expected[2].items():
            np.testing.assert_allclose(
                ours[2][name], gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max() + 1e-6, err_msg=name
            )
        if value == -1.0:
            # Only the values stored for absent slots differ, and they do: these slots are left out.
            absent = presence[:, :, 0] == 0
            assert np.all(ours[0].frame.discovered.where[1:, :, 1:].numpy()[absent] == 0)
            assert np.all(expected[0].frame.discovered.where[1:, :, 1:].numpy()[absent] != 0)
    assert found[0] == 0 < found[1] < 1 == found[2]


@pytest.mark.slow
@pytest.mark.parametrize("relation, all_slots", [("none", True), ("rmc_slots", False)])
def test_a_loop_in_the_graph_computes_what_unrolled_frames_do(relation, all_slots, request):
    tf.config.run_functions_eagerly(False)
    request.addfinalizer(lambda: tf.config.run_functions_eagerly(True))
    model = busy_model(relation=relation)
    model.sequence.all_slots = all_slots
    inputs = make_inputs(model, n_frames=5)

    def results(unrolled):
        model.sequence.UNROLLED = model.decoder.UNROLLED = unrolled
        return tf.function(lambda obs, noise: loss_and_gradients(model, obs, noise, generate_after=2), autograph=False)(
            *inputs
        )

    expected, ours = results(5), results(4)
    for name, x, y in zip(Forward._fields, expected[0], ours[0]):
        for a, b in zip(tf.nest.flatten(x), tf.nest.flatten(y)):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(ours[1], expected[1], rtol=1e-6)
    assert 0 < np.mean(expected[0].presence) < 1
    for name, gradient in expected[2].items():
        np.testing.assert_allclose(
            ours[2][name], gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max() + 1e-6, err_msg=name
        )


@pytest.mark.slow
def test_long_sequences_make_no_larger_graphs(request):
    tf.config.run_functions_eagerly(False)
    request.addfinalizer(lambda: tf.config.run_functions_eagerly(True))
    model = busy_model()

    def operations(n_frames):
        step = tf.function(lambda obs, noise: loss_and_gradients(model, obs, noise), autograph=False)
        graph = step.get_concrete_function(*make_inputs(model, n_frames)).graph
        return len(graph.get_operations()) + sum(len(f.node_def) for f in graph.as_graph_def().library.function)

    ten, eleven, more = operations(10), operations(11), operations(40)
    assert more < 1.01 * eleven < 1.5 * ten


@pytest.mark.parametrize("relation", ["none", "rmc_slots"])
def test_parts_of_a_sequence_one_after_another_are_the_sequence(relation):
    model = busy_model(relation=relation)
    obs, noise = make_inputs(model, n_frames=5)
    whole = model(obs, noise, generate_after=2)
    state = None
    for first, last in ((0, 2), (2, 4), (4, 5)):
        part = model(
            obs[first:last],
            model.draw_noise([0, 1], last - first, 2, first),
            generate_after=2,
            state=state,
            first=first,
        )
        state = part.state
        for name in set(Forward._fields) - {"log_weights", "state"}:
            for ours, expected in zip(tf.nest.flatten(getattr(part, name)), tf.nest.flatten(getattr(whole, name))):
                np.testing.assert_allclose(ours, expected[first:last], rtol=1e-5, atol=1e-5, err_msg=name)
    for ours, expected in zip(tf.nest.flatten(state), tf.nest.flatten(whole.state)):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=["none", "rmc_slots"])
def generating(request):
    model = busy_model(relation=request.param)
    obs, noise = make_inputs(model, n_frames=4, batch=3)
    return model, obs, noise, model(obs, noise, generate_after=1)


def test_predicted_frames_discover_nothing_and_keep_ids(generating):
    model, obs, noise, forward = generating
    assert tf.reduce_sum(forward.frame.discovered.presence[2:]) == 0
    assert tf.reduce_sum(model(obs, noise).frame.discovered.presence[2:]) > 0
    ids = forward.frame.object_id.numpy()
    survivors = 0
    for t in (2, 3):
        for p in range(ids.shape[1]):
            now = ids[t, p][ids[t, p] >= 0].tolist()
            before = ids[t - 1, p][ids[t - 1, p] >= 0].tolist()
            kept = forward.frame.propagated.presence[t, p, : len(before), 0].numpy() > 0
            assert now == [i for i, k in zip(before, kept) if k]
            survivors += len(now)
    assert survivors > 3


def test_predicted_objects_are_samples_of_the_prior(generating):
    _, _, noise, forward = generating
    prior, propagated = forward.frame.prior, forward.frame.propagated
    swap = [0, 2, 1, 3]
    for t in (2, 3):
        for field in ("what", "where"):
            loc, scale = getattr(prior, field + "_loc")[t], getattr(prior, field + "_scale")[t]
            sample = loc + scale * tf.transpose(getattr(noise.propagation, field), swap)[t]
            np.testing.assert_allclose(getattr(propagated, field)[t], sample, rtol=1e-6)
        uniform = tf.transpose(noise.propagation.presence, swap)[t].numpy()
        before = forward.frame.presence_prev[t].numpy()[..., None]
        alive = (uniform < tf.sigmoid(prior.presence_logit[t]).numpy()) * before
        np.testing.assert_array_equal(propagated.presence[t], alive)
    np.testing.assert_array_equal(forward.log_q[2:], 0 * forward.log_q[2:])
    np.testing.assert_array_equal(forward.log_weights_per_frame[2:], forward.data_ll[2:])
    np.testing.assert_array_equal(forward.discrete_log_prob[2:], 0 * forward.log_q[2:])


def test_prediction_does_not_see_the_predicted_frames(generating):
    model, obs, noise, forward = generating
    other = tf.concat([obs[:2], obs[2:] + 0.5], 0)
    changed = model(other, noise, generate_after=1)
    for name in ("canvas", "log_p", "log_q"):
        np.testing.assert_array_equal(getattr(changed, name), getattr(forward, name))
    np.testing.assert_array_equal(changed.frame.object_id, forward.frame.object_id)
    assert np.abs(changed.data_ll[2:] - forward.data_ll[2:]).min() > 1
    posterior = model(obs, noise)
    for name in ("canvas", "log_weights_per_frame"):  # frames inferred before are the same as without prediction
        np.testing.assert_array_equal(getattr(forward, name)[:2], getattr(posterior, name)[:2])
    assert np.abs(forward.canvas[2:] - posterior.canvas[2:]).max() > 1e-2


def test_prediction_asked_for_by_flags():
    model = busy_model(sample_from_prior=True, generate_after=1)
    plain = busy_model(sample_from_prior=False, generate_after=1)
    never = busy_model(sample_from_prior=True, generate_after=0)  # as the original: not below 1
    obs, noise = make_inputs(model)
    predicted = plain(obs, noise, generate_after=1).canvas
    np.testing.assert_array_equal(model(obs, noise).canvas, predicted)
    for other in (plain, never):
        assert np.abs(other(obs, noise).canvas - predicted).max() > 1e-2


def test_frames_of_another_shape_are_refused():
    model = busy_model()
    obs, noise = make_inputs(model)
    for wrong in (obs[:, :, :8], tf.transpose(obs, [0, 1, 3, 2]), tf.stack([obs] * 3, -1)):
        with pytest.raises(ValueError, match=r"\(9, 11\).*image_shape"):
            model(wrong, noise)
    np.testing.assert_array_equal(model(obs[..., None], noise).data_ll, model(obs, noise).data_ll)


def test_loss_is_per_frame_and_adds_the_penalty():
    model = busy_model()
    forward = model(*make_inputs(model))
    discrete = tf.reshape(tf.reduce_sum(forward.discrete_log_prob, 0), [2, 2])
    vimco = objectives.vimco(forward.log_weights, discrete) / 3
    np.testing.assert_allclose(model.loss(forward), vimco, rtol=1e-6)
    np.testing.assert_allclose(
        model.loss(forward, "vimco_textbook"),
        objectives.vimco(forward.log_weights, discrete, textbook=True) / 3,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        model.loss(forward, "iwae"), -tf.reduce_mean(objectives.iwae(forward.log_weights)) / 3, rtol=1e-6
    )
    squares = sum(float(tf.reduce_sum(v**2)) for v in model.trainable_variables)
    np.testing.assert_allclose(model.loss(forward, l2=0.5), vimco + 0.25 * squares, rtol=1e-5)


@pytest.fixture(scope="module")
def hand_made():
    """A forward pass of 2 frames, 2 sequences, 2 particles whose weights are 1/4, 3/4 and 1/2, 1/2."""
    model = busy_model()
    forward = model(*make_inputs(model, n_frames=2))
    return forward._replace(
        log_weights=tf.math.log([[1.0, 3.0], [2.0, 2.0]]),
        data_ll=tf.constant([[1.0, 2, 3, 4], [5, 6, 7, 8]]),
        mse=tf.constant([[0.0, 1, 0, 0], [0, 0, 0, 0]]),
        log_q=tf.constant([[4.0, 0, 0, 0], [0, 0, 0, 0]]),
        log_p=tf.zeros([2, 4]),
    )


def test_report_weighs_by_importance(hand_made):
    counts = hand_made.num_steps.numpy()
    truth = np.stack([counts[:, 0], counts[:, 2]], 1).astype(np.int32)
    truth[1, 1] += 50
    correct = np.equal(np.repeat(truth, 2, 1), counts)
    values = report(hand_made, tf.constant(truth))
    np.testing.assert_array_equal(hand_made.importance_weights, np.float32([[0.25, 0.75], [0.5, 0.5]]))
    # Means over frames: 3, 4 and 5, 6; weighted: 3.75 and 5.5.
    np.testing.assert_allclose(values.data_ll, (3.75 + 5.5) / 2, rtol=1e-6)
    np.testing.assert_allclose(values.kl, (2 * 0.25) / 2, rtol=1e-6)
    np.testing.assert_allclose(values.mse, (0.5 * 0.75) / 2, rtol=1e-6)
    np.testing.assert_allclose(values.raw_mse, 1 / 8, rtol=1e-6)
    weights = np.array([0.25, 0.75, 0.5, 0.5])
    np.testing.assert_allclose(values.num_steps, (counts.mean(0) * weights).sum() / 2, rtol=1e-6)
    np.testing.assert_allclose(values.num_step_accuracy, (correct.mean(0) * weights).sum() / 2, rtol=1e-6)
    np.testing.assert_allclose(values.raw_num_step_accuracy, correct.mean(), rtol=1e-6)
    assert 0 < correct.mean() < 1
    np.testing.assert_allclose(values.ess, (1 / (1 / 16 + 9 / 16) + 2) / 2, rtol=1e-6)
    np.testing.assert_allclose(values.iwae, np.log(2.0), rtol=1e-6)
    np.testing.assert_allclose(values.vae, (np.log(3) / 2 + np.log(2)) / 2, rtol=1e-6)
    np.testing.assert_allclose([values.iwae_per_frame, values.vae_per_frame], [values.iwae / 2, values.vae / 2])


def test_resample_takes_particles_by_weight(hand_made):
    x = tf.constant(draw(2, 4, 5))
    for uniform, index in (([0.1, 0.1], [0, 2]), ([0.24, 0.6], [0, 3]), ([0.26, 0.49], [1, 2]), ([0.99, 0.99], [1, 3])):
        np.testing.assert_array_equal(resample(hand_made, x, tf.constant(uniform)), x.numpy()[:, index])
