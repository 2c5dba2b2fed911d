"""eval/tracking.py against hand-computed cases and motmetrics with one accumulator per sequence."""

import time

import motmetrics
import numpy as np
import pytest

from eval import geometry, tracking


def boxes(*corners, size=10.0):
    """Square boxes, [number, 4]."""
    return np.array([[top, left, size, size] for top, left in corners])


def one_sequence(true, predicted, object_id, truth=None, **options):
    """Tracks a single sequence given as [T, ...]."""
    true, predicted, object_id = (np.array(a)[None] for a in (true, predicted, object_id))
    truth = np.ones(true.shape[:-1], bool) if truth is None else np.array(truth)[None]
    return tracking.track(true, truth, predicted, object_id, **options)


# --- boxes ---


def test_box_iou_by_hand():
    first = [[0, 0, 10, 10], [0, 0, 4, 2]]
    second = [[0, 0, 10, 10], [5, 5, 10, 10], [0, 0, 2, 4], [20, 20, 5, 5], [np.nan] * 4]
    expected = [[1, 25 / 175, 8 / 100, 0, 0], [8 / 100, 0, 4 / 12, 0, 0]]
    np.testing.assert_allclose(geometry.box_iou(first, second), expected)
    assert geometry.box_iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0


def test_box_iou_against_counted_pixels():
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 12, (2, 3, 5, 4))
    iou = geometry.box_iou(first, second)
    row, column = np.mgrid[:30, :30]

    def painted(box):
        top, left, height, width = box
        return (row >= top) & (row < top + height) & (column >= left) & (column < left + width)

    for s, i, j in np.ndindex(3, 5, 5):
        one, other = painted(first[s, i]), painted(second[s, j])
        assert iou[s, i, j] == pytest.approx((one & other).sum() / (one | other).sum())


def test_clip_boxes():
    clipped = geometry.clip_boxes([[-3.5, 10, 10, 5], [45, 45, 10, 2], [60, 0, 5, 5]])
    np.testing.assert_allclose(clipped, [[-0.5, 10, 7, 5], [45, 45, 4.5, 2], [49.5, 0, 0, 5]])


def test_ground_truth_needs_the_centre_and_a_pixel():
    centres = [[[[10, 10], [10, 10], [-2, 10], [-9, 10], [np.nan, np.nan]]]]
    truth, ignored = tracking.ground_truth(centres, [[[80, 0, 20, 0, 0]]])
    np.testing.assert_array_equal(truth[0, 0], [True, False, False, False, False])
    np.testing.assert_array_equal(ignored[0, 0], [False, False, True, False, False])


# --- tracking ---


def test_perfect_tracks():
    true = np.tile(boxes((5, 5), (25, 25)), (4, 1, 1))
    assert one_sequence(true, true[:, ::-1], np.tile([7, 3], (4, 1))) == (1.0, 0.0, 0, 0, 0, 8, 4)


def test_every_kind_of_error_by_hand():
    here, there, nowhere = (5, 5), (25, 25), (38, 2)
    true = np.tile(boxes(here, there), (4, 1, 1))
    predicted = [
        boxes(here, there, nowhere),  # two matches, a false positive
        boxes(here, there, nowhere),  # slot 2 absent; identities 0 and 1 swapped: two switches
        boxes(here, nowhere, nowhere),  # a miss and a false positive
        boxes((5, 6), there, nowhere),  # one pixel off: IoU 90 / 110
    ]
    object_id = [[0, 1, 2], [1, 0, -1], [1, 0, -1], [1, 0, -1]]
    found = one_sequence(true, predicted, object_id)
    assert (found.id_switches, found.misses, found.false_positives, found.objects, found.frames) == (2, 1, 2, 8, 4)
    assert found.mota == pytest.approx(1 - 5 / 8)
    assert found.motp == pytest.approx((1 - 90 / 110) / 7)


def test_the_threshold_is_the_least_iou_and_reached_by_equality():
    true, predicted = boxes((10, 10))[None], np.array([[[10, 10, 10, 20]]])  # IoU exactly .5
    assert one_sequence(true, predicted, [[0]]).mota == 1
    assert one_sequence(true, predicted, [[0]], min_iou=0.51).mota == -1  # a miss and a false positive


def test_boxes_are_compared_inside_the_frame():
    true = boxes((-5.5, 20))[None]  # 5 x 10 pixels of it are seen
    predicted = np.array([[[-0.5, 20, 5, 10]]])
    assert one_sequence(true, predicted, [[0]]).motp == pytest.approx(0)


def test_ignored_balls_neither_count_nor_harm():
    true = boxes((10, 10), (42, 42))[None]
    ignored = np.array([[[False, True]]])
    on_both = one_sequence(true, true, [[0, 1]], truth=[[True, False]], ignored=ignored)
    assert on_both == (1.0, 0.0, 0, 0, 0, 1, 1)
    on_none = one_sequence(true, true, [[0, -1]], truth=[[True, False]], ignored=ignored)
    assert on_none == (1.0, 0.0, 0, 0, 0, 1, 1)
    elsewhere = one_sequence(true, boxes((10, 10), (30, 5))[None], [[0, 1]], truth=[[True, False]], ignored=ignored)
    assert elsewhere.false_positives == 1


def test_a_ball_behind_an_ignored_one_keeps_its_match():
    true = boxes((10, 10), (10, 12))[None]
    found = one_sequence(true, boxes((10, 10.5))[None], [[0]], truth=[[True, False]], ignored=[[[False, True]]])
    assert found.misses == 0 and found.mota == 1


def test_an_object_without_a_box_is_a_false_positive():
    true = boxes((10, 10), (25, 25))[None]
    predicted = np.where([[[False], [True]]], np.nan, true)
    found = one_sequence(true, predicted, [[0, 1]])
    assert (found.misses, found.false_positives, found.motp) == (1, 1, 0)


def test_identities_do_not_carry_over_between_sequences():
    true = np.tile(boxes((5, 5)), (2, 3, 1, 1))
    object_id = np.zeros((2, 3, 1), int)
    object_id[1] = 9
    found = tracking.track(true, np.ones((2, 3, 1), bool), true, object_id)
    assert found.id_switches == 0 and found.mota == 1


def test_empty_frames_are_counted_and_nothing_gives_nan():
    true = np.tile(boxes((5, 5)), (3, 1, 1))
    found = one_sequence(true, true, [[0], [-1], [-1]], truth=[[True], [True], [False]])
    assert (found.misses, found.objects, found.frames) == (1, 2, 3)
    nothing = one_sequence(true, true, [[-1]] * 3, truth=[[False]] * 3)
    assert np.isnan(nothing.mota) and np.isnan(nothing.motp) and nothing.frames == 3


def random_case(sequences, frames, seed=0):
    """Balls on random walks, objects near them with dropped frames and swapped identities."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 40, (sequences, 1, 4, 2))
    corners = start + np.cumsum(rng.normal(size=(sequences, frames, 4, 2)), axis=1)
    true = np.concatenate([corners, np.full_like(corners, 10.0)], axis=-1)
    predicted = true + rng.normal(size=true.shape)
    order = np.argsort(rng.uniform(size=(sequences, frames, 4)), axis=-1)
    calm = rng.uniform(size=(sequences, frames, 1)) < 0.9
    object_id = np.where(calm, np.arange(4), order)
    object_id = np.where(rng.uniform(size=object_id.shape) < 0.1, -1, object_id)
    truth = rng.uniform(size=object_id.shape) < 0.9
    return true, truth, predicted, object_id


def test_pooled_figures_equal_motmetrics_merged_over_sequences():
    true, truth, predicted, object_id = random_case(6, 10)
    accumulators = []
    for s in range(6):
        accumulators.append(motmetrics.MOTAccumulator(auto_id=True))
        for t in range(10):
            i, j = np.flatnonzero(truth[s, t]), np.flatnonzero(object_id[s, t] >= 0)
            distance = 1 - geometry.box_iou(geometry.clip_boxes(true[s, t, i]), geometry.clip_boxes(predicted[s, t, j]))
            distance[distance > 0.5] = np.nan
            accumulators[-1].update(i, object_id[s, t, j], distance)
    names = ["mota", "motp", "num_switches", "num_misses", "num_false_positives", "num_objects", "num_frames"]
    merged = motmetrics.metrics.create().compute_many(accumulators, metrics=names, generate_overall=True).loc["OVERALL"]
    found = tracking.track(true, truth, predicted, object_id)
    np.testing.assert_allclose(found, merged[names].to_numpy(float))
    assert found.id_switches > 0 and found.misses > 0 and found.false_positives > 0


def test_a_thousand_sequences_take_about_a_minute_at_most():
    case = random_case(50, 20)
    start = time.perf_counter()
    tracking.track(*case)
    assert time.perf_counter() - start < 4  # 20 times this for 1,000; about 0.3 s on a free core


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(true_boxes=np.zeros((1, 2, 3, 2))), "true_boxes must be"),
        (dict(boxes=np.zeros((1, 3, 2, 4)), object_id=np.full((1, 3, 2), -1)), r"share \[S, T\]"),
        (dict(truth=np.ones((1, 2, 2), bool)), "truth must be"),
        (dict(object_id=np.full((1, 2, 3), -1)), "object_id must be"),
        (dict(object_id=np.ones((1, 2, 2), int)), "twice"),
        (dict(min_iou=0), "min_iou"),
    ],
)
def test_wrong_input_is_refused_with_its_reason(change, message):
    good = dict(
        true_boxes=np.zeros((1, 2, 3, 4)),
        truth=np.ones((1, 2, 3), bool),
        boxes=np.zeros((1, 2, 2, 4)),
        object_id=np.tile([0, 1], (1, 2, 1)),
    )
    assert tracking.track(**good).frames == 2
    with pytest.raises(ValueError, match=message):
        tracking.track(**{**good, **change})


def test_a_perfect_model_on_balls_that_cross_the_edge_scores_one():
    # From stored truth to MOTA through every step: a ball drifts out over the left edge, another stays.
    T, radius = 12, 1.5
    leaving, staying = np.stack([np.linspace(4, -0.5, T), np.full(T, 6.0)], axis=-1), np.tile([9.0, 11.0], (T, 1))
    positions = np.stack([leaving, staying], axis=1)[:, None]  # [T, 1, 2, 2]
    row, column = (np.mgrid[:64, :64] + 0.5) * 15 / 64
    groups = np.zeros((T, 1, 64, 64, 1), int)
    for t, ball in np.ndindex(T, 2):
        x, y = positions[t, 0, ball]
        groups[t, 0, np.hypot(column - x, row - y) < radius, 0] = ball + 1
    centres = geometry.pixel_centres(positions, [2], 64 / 15, (7, 7))
    pixels = geometry.visible_pixels(groups[:, :, 7:57, 7:57, 0].swapaxes(0, 1), 2)
    truth, ignored = tracking.ground_truth(centres, pixels)
    assert truth[0, :, 0].any() and ignored[0, :, 0].any() and not pixels[0, -1, 0]
    balls = geometry.boxes_from_discs(centres, [[radius, radius]], 64 / 15)
    object_id = np.where(pixels > 0, [0, 1], -1)  # an object on whatever shows
    assert tracking.track(balls, truth, balls, object_id, ignored).mota == 1
    assert tracking.track(balls, truth, balls, object_id).mota < 1
