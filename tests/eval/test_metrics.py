"""eval/metrics.py and eval/geometry.py against hand-computed cases, brute force, scipy and scikit-learn."""

import itertools

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.metrics import adjusted_rand_score

from eval import geometry, metrics

UNIT = 64 / 15  # pixels per unit of the box


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def logit(p):
    return np.log(p / (1 - p))


# --- ground truth ---


def test_pixel_centres_swap_axes_and_lie_where_the_ball_is_rendered():
    # The middle of the box, 7.5 units, is the edge between the crop's pixels 24 and 25.
    positions = np.zeros((1, 1, 3, 2))
    positions[0, 0, 0] = 7.5, 7.5
    positions[0, 0, 1] = 3.0, 12.0  # column 12.8 - 7.5, row 51.2 - 7.5
    centres = geometry.pixel_centres(positions, [2], UNIT, (7, 7))
    np.testing.assert_allclose(centres[0, 0, :2], [[24.5, 24.5], [43.7, 5.3]])
    assert np.isnan(centres[0, 0, 2]).all()


def test_pixel_centre_is_the_centroid_of_the_rendered_ball():
    position, radius = np.array([6.3, 9.1]), 1.5
    column, row = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5)
    disc = np.hypot(column * 15 / 64 - position[0], row * 15 / 64 - position[1]) < radius
    seen = disc[7:57, 7:57]
    centre = geometry.pixel_centres(position[None, None, None], [1], UNIT, (7, 7))
    np.testing.assert_allclose(np.argwhere(seen).mean(0), centre[0, 0, 0], atol=0.15)
    top, left, height, width = geometry.boxes_from_discs(centre, [[radius]], UNIT)[0, 0, 0]
    rows, columns = np.argwhere(seen).T
    np.testing.assert_allclose([top, left], [rows.min() - 0.5, columns.min() - 0.5], atol=1)
    np.testing.assert_allclose([height, width], [np.ptp(rows) + 1, np.ptp(columns) + 1], atol=1)


def test_boxes_from_discs_by_hand():
    centres = np.full((1, 1, 2, 2), np.nan)
    centres[0, 0, 0] = 10.0, 20.0
    boxes = geometry.boxes_from_discs(centres, [[1.5, 0.0]], UNIT)
    np.testing.assert_allclose(boxes[0, 0, 0], [3.6, 13.6, 12.8, 12.8])
    assert np.isnan(boxes[0, 0, 1]).all()


def test_centres_inside_includes_the_first_edge_only():
    centres = [[-0.5, 0], [-0.51, 0], [0, 49.49], [0, 49.5], [np.nan, np.nan]]
    np.testing.assert_array_equal(geometry.centres_inside(centres), [True, False, True, False, False])


def test_visible_pixels():
    groups = np.array([[[0, 1, 1], [3, 1, 0]], [[0, 0, 0], [0, 2, 0]]])
    np.testing.assert_array_equal(geometry.visible_pixels(groups, 3), [[3, 0, 1], [0, 1, 0]])


# --- where ---


def test_boxes_from_where_by_hand():
    where = [logit(0.4), logit(0.2), np.arctanh(0.5), np.arctanh(-0.5)]  # sx, sy, tx, ty
    np.testing.assert_allclose(geometry.boxes_from_where(where), [24.5 * 0.3, 24.5 * 1.1, 51 * 0.2, 51 * 0.4])
    np.testing.assert_allclose(geometry.centres_from_where(where), [12.25, 36.75])


def test_boxes_from_where_of_an_oblong_frame_and_the_least_scale():
    box = geometry.boxes_from_where([-50.0, -50.0, 0.0, 0.0], image_size=(11, 21))
    np.testing.assert_allclose(box, [5 * (1 - 1e-4), 10 * (1 - 1e-4), 12e-4, 22e-4])


# --- what an object draws ---


def test_box_and_centre_of_what_is_drawn_by_hand():
    drawn = np.zeros((4, 6, 8))
    drawn[0, 1:3, 4:7] = 0.8  # two rows of three pixels
    drawn[0, 4, 0] = 0.4  # half of the greatest is not above half
    drawn[1, 2, 1], drawn[1, 2, 3] = 0.9, 0.6  # the mean of columns 1 and 3 weighted by .9 and .6: 1.8
    drawn[2, 5, 7] = 0.1  # a single pixel, just seen
    drawn[3, 0, 0] = 0.099
    boxes, centres = geometry.boxes_and_centres_from_pixels(drawn)
    np.testing.assert_allclose(boxes[:3], [[0.5, 3.5, 2, 3], [1.5, 0.5, 1, 3], [4.5, 6.5, 1, 1]])
    np.testing.assert_allclose(centres[:3], [[1.5, 5], [2, 1.8], [5, 7]])
    assert np.isnan(boxes[3]).all() and np.isnan(centres[3]).all()


def test_a_drawn_disc_has_the_box_and_centre_of_its_ball_whatever_the_window():
    # A ball of radius 6.4 around (20.3, 30.8), its edge smooth, with a faint glow from the rest of its large window.
    row, column = np.mgrid[:50, :50]
    disc = np.clip(6.4 + 0.5 - np.hypot(row - 20.3, column - 30.8), 0, 1) * 0.9
    disc[5:40, 20:50] = np.maximum(disc[5:40, 20:50], 0.2)
    box, centre = geometry.boxes_and_centres_from_pixels(disc)
    np.testing.assert_allclose(centre, [20.3, 30.8], atol=0.05)
    truth = geometry.boxes_from_discs(np.array([[[[20.3, 30.8]]]]), [[6.4]], 1.0)[0, 0, 0]
    np.testing.assert_allclose(box, truth, atol=0.6)


def test_segmentation_by_hand():
    drawn = np.zeros((3, 2, 2))
    drawn[0, 0, 0], drawn[1, 0, 0] = 0.5, 0.6
    drawn[2, 0, 1], drawn[0, 1, 0] = 0.1, 0.09
    found = geometry.segmentation(drawn)
    np.testing.assert_array_equal(found, [[2, 3], [0, 0]])
    assert found.dtype == np.uint8


# --- likelihoods ---


def test_pixel_log_likelihood_against_scipy(rng):
    image, canvas = rng.uniform(size=(2, 3, 4, 5))
    std = rng.uniform(0.1, 1, (4, 5))
    np.testing.assert_allclose(metrics.gaussian_log_likelihood(image, canvas, std), norm.logpdf(image, canvas, std))


def test_a_pixel_in_colour_adds_up_its_channels(rng):
    image, canvas = rng.uniform(size=(2, 3, 4, 5, 3))
    found = metrics.gaussian_log_likelihood(image, canvas, 0.3, colour=True)
    np.testing.assert_allclose(found, norm.logpdf(image, canvas, 0.3).sum(-1))
    collides = image[..., 0] > 0.5
    np.testing.assert_allclose(
        metrics.relational_log_likelihood(image, canvas, collides, 0.3, colour=True), (found * collides).sum((-2, -1))
    )


def test_likelihood_of_unsigned_bytes_does_not_wrap():
    image, canvas = np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8)
    assert metrics.gaussian_log_likelihood(image, canvas, 1.0) == pytest.approx(norm.logpdf(1.0))


def test_relational_log_likelihood_sums_only_colliding_pixels():
    image = np.array([[1.0, 0.0], [1.0, 0.0]])
    canvas = np.array([[1.0, 0.7], [0.5, 0.0]])
    collisions = np.array([[1, 0], [1, 0]])
    best = -np.log(0.3) - 0.5 * np.log(2 * np.pi)
    miss = 0.5 * (0.5 / 0.3) ** 2
    assert metrics.relational_log_likelihood(image, canvas, collisions, 0.3) == pytest.approx(2 * best - miss)
    assert metrics.relational_log_likelihood(image, canvas, 0 * collisions, 0.3) == 0
    everywhere = metrics.relational_log_likelihood(image, canvas, np.ones((2, 2)), 0.3)
    assert everywhere == pytest.approx(metrics.gaussian_log_likelihood(image, canvas, 0.3).sum())


def test_samples_broadcast_against_one_image(rng):
    image, canvas = rng.uniform(size=(2, 1, 3, 6, 6)), rng.uniform(size=(2, 5, 3, 6, 6))  # [S, 1 or M, T, H, W]
    scores = metrics.relational_log_likelihood(image, canvas, image > 0.5, 0.3)
    assert scores.shape == (2, 5, 3)
    np.testing.assert_allclose(
        scores[1, 4, 2], metrics.relational_log_likelihood(image[1, 0, 2], canvas[1, 4, 2], image[1, 0, 2] > 0.5, 0.3)
    )


def test_upper_bounds_are_the_spec_s_figures_and_what_a_perfect_canvas_scores(rng):
    images = rng.integers(0, 2, (4, 3, 50, 50))
    collisions = rng.uniform(size=images.shape) < 0.005
    bounds = metrics.upper_bounds(images, collisions, 0.3)
    assert bounds.pixel == pytest.approx(0.28503, abs=5e-6)
    assert bounds.data == pytest.approx(712.6, abs=0.05)
    assert bounds.data == pytest.approx(metrics.gaussian_log_likelihood(images, images, 0.3).sum((-2, -1)).mean())
    perfect = metrics.relational_log_likelihood(images, images, collisions, 0.3).mean()
    assert bounds.relational == pytest.approx(perfect)


def test_an_unexplained_white_pixel_costs_what_the_spec_says():
    lost = metrics.gaussian_log_likelihood(np.ones((1, 1)), np.zeros((1, 1)), 0.3)
    assert lost.item() == pytest.approx(-5.27, abs=0.005)


# --- bounds ---


def test_bounds_by_hand():
    log_weights = np.log([1.0, 3.0])
    assert metrics.iwae_bound(log_weights) == pytest.approx(np.log(2))
    assert metrics.vae_bound(log_weights) == pytest.approx(np.log(3) / 2)
    assert metrics.effective_sample_size(log_weights) == pytest.approx(16 / 10)
    assert metrics.iwae_bound(log_weights, frames=10) == pytest.approx(np.log(2) / 10)


def test_effective_sample_size_extremes():
    assert metrics.effective_sample_size(np.full(7, -5000.0)) == pytest.approx(7)
    assert metrics.effective_sample_size([0.0, -5000.0, -5000.0]) == pytest.approx(1)


def test_500_particles_in_chunks_of_5_equal_all_at_once(rng):
    log_weights = 5000 + 30 * rng.normal(size=(6, 500))  # exp overflows
    bounds = metrics.ParticleBounds()
    for chunk in np.split(log_weights, 100, axis=-1):
        bounds.update(chunk)
    assert bounds.particles == 500
    np.testing.assert_allclose(bounds.iwae, logsumexp(log_weights, axis=-1) - np.log(500))
    np.testing.assert_allclose(bounds.vae, log_weights.mean(-1))
    weights = np.exp(log_weights - log_weights.max(-1, keepdims=True))
    np.testing.assert_allclose(bounds.effective_sample_size, weights.sum(-1) ** 2 / (weights**2).sum(-1))


def test_chunks_of_different_sequences_are_refused():
    bounds = metrics.ParticleBounds().update(np.zeros((6, 5)))
    with pytest.raises(ValueError, match="continue"):
        bounds.update(np.zeros((1, 5)))


# --- counts ---


def test_count_accuracy_and_confusion_matrix():
    true, inferred = np.array([0, 1, 2, 2]), np.array([[0, 2, 2, 1], [0, 1, 2, 2]])
    assert metrics.count_accuracy(true, inferred) == 6 / 8
    matrix = metrics.confusion_matrix(true, inferred, 3)
    np.testing.assert_array_equal(matrix, [[2, 0, 0, 0], [0, 1, 1, 0], [0, 1, 3, 0], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="inferred counts"):
        metrics.confusion_matrix(true, inferred + 2, 3)


def test_collapsed():
    assert metrics.collapsed(np.zeros((5, 20)), 4) == "all zero"
    nearly = np.full(1000, 4)
    nearly[:9] = 3
    assert metrics.collapsed(nearly, 4) == "always N"
    nearly[:11] = 3
    assert metrics.collapsed(nearly, 4) == "none"
    assert metrics.collapsed(np.full(100, 4), 4, true_counts=np.full(100, 7)) == "none"  # right, as far as it can count
    assert metrics.collapsed(np.full(100, 4), 4, true_counts=np.arange(100) % 5) == "always N"


# --- adjusted Rand index ---


def test_ari_against_sklearn(rng):
    true, predicted = rng.integers(0, 5, (3, 4, 12, 12)), rng.integers(0, 6, (3, 4, 12, 12))
    predicted = np.where(rng.uniform(size=true.shape) < 0.7, true, predicted).astype(np.uint8)
    true[1, 2, :6] = 0
    scores = metrics.foreground_ari(true, predicted)
    assert scores.shape == (3, 4)
    for index in np.ndindex(3, 4):
        seen = true[index] > 0
        assert scores[index] == pytest.approx(adjusted_rand_score(true[index][seen], predicted[index][seen]))


@pytest.mark.parametrize(
    "true, predicted, expected",
    [
        ([1, 1, 2, 2], [7, 7, 3, 3], 1.0),  # names do not matter
        ([1, 1, 2, 2], [1, 2, 1, 2], -0.5),
        ([1, 1, 2, 2], [1, 1, 1, 1], 0.0),
        ([1, 1, 2, 2], [1, 1, 0, 0], 1.0),  # an object left to the background is still apart from the other
        ([1, 1, 1, 1], [2, 2, 2, 2], 1.0),  # one object in one slot
        ([1, 1, 1, 1], [1, 1, 2, 2], 0.0),  # one object in two
        ([1, 0, 0, 0], [0, 1, 2, 3], 1.0),  # one pixel
        ([1, 2, 3, 4], [4, 3, 2, 1], 1.0),  # only singletons
        ([0, 0, 0, 0], [1, 1, 2, 2], np.nan),  # no foreground
        ([0, 1, 1, 0, 2, 2], [1, 1, 1, 2, 2, 2], 1.0),  # the background is not scored
    ],
)
def test_ari_by_hand(true, predicted, expected):
    score = metrics.foreground_ari(np.array(true)[None], np.array(predicted)[None])
    assert score == pytest.approx(expected, nan_ok=True)
    seen = np.array(true) > 0
    if seen.any():
        assert score == pytest.approx(adjusted_rand_score(np.array(true)[seen], np.array(predicted)[seen]))


def test_ari_of_a_large_area_does_not_overflow(rng):
    true, predicted = rng.integers(1, 9, (2, 2000, 100))
    expected = adjusted_rand_score(true.ravel(), predicted.ravel())
    assert metrics.foreground_ari(true, predicted) == pytest.approx(expected)


# --- rollouts ---


def rollout(true, predicted, object_id, match_frame=0):
    """One sequence."""
    true, predicted, object_id = (np.array(a)[None] for a in (true, predicted, object_id))
    return metrics.rollout_position_error(true, predicted, object_id, match_frame)


def test_rollout_error_by_hand_with_slots_sorted_anew():
    true = [[[10, 10], [30, 30]], [[11, 10], [30, 30]], [[12, 10], [30, 30]]]
    # Objects 5 and 8 swap slots in the second frame, and are 3-4-5 off and 1 off in the third.
    predicted = [[[10, 10], [30, 30]], [[30, 30], [11, 10]], [[15, 14], [30, 31]]]
    found = rollout(true, predicted, [[5, 8], [8, 5], [5, 8]])
    np.testing.assert_allclose(found.error, [0, 0, 3])
    np.testing.assert_allclose(found.lost, 0)
    assert found.matched == 1


def test_rollout_match_is_not_revised_when_objects_swap_balls():
    true = np.tile(np.array([[10.0, 10], [10, 20]]), (3, 1, 1))
    predicted = true[:, ::-1].copy()
    predicted[:2] = true[:2]
    found = rollout(true, predicted, np.tile([0, 1], (3, 1)), match_frame=1)
    np.testing.assert_allclose(found.error, [0, 10])


def test_rollout_matching_minimises_the_total_not_the_nearest_first():
    true, predicted = [[[10, 10], [10, 12]]], [[[10, 11.5], [10, 30]]]
    costs = np.linalg.norm(np.array(true[0])[:, None] - np.array(predicted[0]), axis=-1)
    least = min(costs[range(2), list(order)].mean() for order in itertools.permutations(range(2)))
    assert rollout(true, predicted, [[0, 1]]).error[0] == pytest.approx(least)


def test_rollout_counts_vanished_unmatched_and_departed_balls():
    nan = [np.nan, np.nan]
    true = [
        [[10, 10], [20, 20], [30, 30], [-5, 30], nan],  # three in the crop at the match
        [[10, 10], [20, 20], [49.5, 30], [30, 40], nan],  # the third leaves; the fourth enters, unmatched
        [[10, 10], [20, 20], [30, 30], [30, 40], nan],  # the third is back: its pair has ended
    ]
    predicted = np.zeros((3, 3, 2))
    predicted[:, 0], predicted[:, 1], predicted[:, 2] = [10, 12], [30, 30], [20, 20]
    object_id = [[0, 1, 2], [0, 1, -1], [-1, 1, 3]]
    found = rollout(true, predicted, object_id)
    np.testing.assert_array_equal(found.balls, [3, 2, 2])
    np.testing.assert_allclose(found.lost, [0, 1 / 2, 1])
    np.testing.assert_allclose(found.error, [2 / 3, 2, np.nan])
    assert found.matched == 1


def test_rollout_an_object_that_draws_nothing_is_absent():
    true = np.broadcast_to([[10.0, 10], [40, 30]], (3, 2, 2))
    predicted = true + [0.0, 1.0]
    predicted[0, 0] = np.nan  # draws nothing at the match: its ball, 36 pixels away, is left to none
    predicted[2, 1] = np.nan  # draws nothing at the end: lost
    found = rollout(true, predicted, np.tile([0, 1], (3, 1)))
    np.testing.assert_allclose(found.error, [1, 1, np.nan])
    np.testing.assert_allclose(found.lost, [0, 0, 1])
    assert found.matched == 1 / 2


def test_rollout_pools_sequences_and_reports_unmatched_balls():
    true = np.broadcast_to([[10.0, 10], [40, 30]], (4, 6, 2, 2))
    predicted = true + np.arange(4)[:, None, None, None] * [0.0, 1.0]  # 0, 1, 2, 3 pixels off
    object_id = np.tile([0, 1], (4, 6, 1))
    object_id[3] = -1  # nothing found in the last sequence
    found = metrics.rollout_position_error(true, predicted, object_id, 2)
    np.testing.assert_allclose(found.error, np.ones(4))
    np.testing.assert_array_equal(found.balls, 6)
    assert found.matched == 6 / 8
    nothing = metrics.rollout_position_error(true, predicted, np.full_like(object_id, -1), 2)
    assert np.isnan(nothing.error).all() and nothing.matched == 0


# --- refusals ---


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: geometry.pixel_centres(np.zeros((2, 3, 4, 2)), [4, 4], 1.0), r"n must be \[S\]"),
        (lambda: geometry.boxes_from_discs(np.zeros((2, 3, 4, 2)), np.zeros((2, 3)), 1.0), "radii"),
        (lambda: geometry.boxes_from_where(np.zeros((2, 3))), "where"),
        (lambda: metrics.gaussian_log_likelihood(np.zeros((64, 64)), np.zeros((50, 50)), 0.3), r"share \[H, W\]"),
        (lambda: metrics.gaussian_log_likelihood(np.zeros((2, 5, 5)), np.zeros((3, 5, 5)), 0.3), "broadcast"),
        (lambda: metrics.gaussian_log_likelihood(np.zeros((5, 5)), np.zeros((5, 5)), 0.0), "std must be positive"),
        (lambda: metrics.relational_log_likelihood(*np.zeros((2, 5, 5)), np.zeros((5, 1)), 0.3), "mask"),
        (lambda: geometry.boxes_and_centres_from_pixels(np.zeros(5)), "drawn"),
        (lambda: metrics.upper_bounds(np.zeros((2, 5, 5)), np.zeros((3, 5, 5)), 0.3), "differ"),
        (lambda: metrics.iwae_bound(np.zeros((3, 0))), "log_weights"),
        (lambda: metrics.count_accuracy(np.zeros(3), np.zeros(4)), "broadcast"),
        (lambda: metrics.foreground_ari(np.zeros((2, 5, 5), int), np.zeros((5, 5), int)), "differ"),
        (lambda: metrics.foreground_ari(np.ones((5, 5), int), -np.ones((5, 5), int)), "negative"),
        (lambda: metrics.collapsed([], 4), "empty"),
        (lambda: rollout(np.zeros((3, 2, 2)), np.zeros((3, 4, 2)), np.zeros((3, 2), int)), "object_id"),
        (lambda: rollout(np.zeros((3, 2, 2)), np.zeros((3, 4, 2)), np.zeros((3, 4), int), 3), "match_frame"),
    ],
)
def test_wrong_input_is_refused_with_its_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
