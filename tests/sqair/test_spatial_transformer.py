"""Crops and pastes against an explicit bilinear gather, their gradients in float64, boxes, colour."""

import numpy as np
import pytest
import tensorflow as tf

from sqair import crops
from sqair import spatial_transformer as st

GLIMPSE, IMAGE = (4, 4, 1), (7, 9)
PASTED = (4, 3, 1)


def draw(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape)


def coords(where):
    """(sx, sy, tx, ty) of logits, as the spec has them."""
    return np.concatenate([np.maximum(1 / (1 + np.exp(-where[..., :2])), 1e-4), np.tanh(where[..., 2:])], -1)


def bilinear(image, y, x):
    """The value of image [H, W] at (y, x), pixel by pixel; a pixel outside is zero."""
    value = 0.0
    for i in (int(np.floor(y)), int(np.floor(y)) + 1):
        for j in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                value += image[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return value


def resample(image, sx, sy, tx, ty, height, width):
    """An output of height x width pixels whose pixel (v, u) reads the image at (sy v + ty, sx u + tx)."""
    grid_y, grid_x = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    return np.array(
        [
            [
                bilinear(
                    image, (sy * v + ty + 1) * (image.shape[0] - 1) / 2, (sx * u + tx + 1) * (image.shape[1] - 1) / 2
                )
                for u in grid_x
            ]
            for v in grid_y
        ]
    )


@pytest.mark.parametrize("spread", [0.5, 3.0])  # 3: most windows stand partly or wholly outside
def test_crop_is_a_bilinear_gather(spread):
    images, where = draw(2, *IMAGE), spread * draw(2, 6, 4, seed=1)  # 2 images, 3 particles each, 2 windows
    ours = crops.crop(crops.image_to_columns(tf.constant(images), 1), tf.constant(where), GLIMPSE).numpy()
    assert ours.shape == (2, 6, 16)
    for p in range(6):
        for s in range(2):
            expected = resample(images[p // 3], *coords(where[s, p]), *GLIMPSE[:2])
            np.testing.assert_allclose(ours[s, p].reshape(GLIMPSE[:2]), expected, atol=1e-10)


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_paste_is_the_sum_of_inverse_gathers(spread):
    glimpse, where = draw(3, 2, 12), spread * draw(3, 2, 4, seed=1)
    presence = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    ours = st.paste(*map(tf.constant, (glimpse, where, presence)), PASTED, IMAGE).numpy()
    covered = st.coverage(tf.constant(where), tf.constant(presence), PASTED, IMAGE).numpy()
    for p in range(3):
        expected, ones = np.zeros(IMAGE), np.zeros(IMAGE)
        for s in range(2):
            sx, sy, tx, ty = coords(where[p, s])
            inverse = 1 / sx, 1 / sy, -tx / sx, -ty / sy
            expected += presence[p, s] * resample(glimpse[p, s].reshape(PASTED[:2]), *inverse, *IMAGE)
            ones += presence[p, s] * resample(np.ones(PASTED[:2]), *inverse, *IMAGE)
        np.testing.assert_allclose(ours[p], expected, atol=1e-9)
        np.testing.assert_allclose(covered[p], ones, atol=1e-9)


def test_whole_image_crops_and_pastes_to_itself():
    image = draw(1, 5, 5)
    where = tf.constant([[[40.0, 40.0, 0.0, 0.0]]], tf.float64)  # scale 1, no shift
    glimpse = crops.crop(crops.image_to_columns(tf.constant(image), 1), where, (5, 5, 1))
    np.testing.assert_allclose(glimpse[0, 0], image.ravel(), atol=1e-12)
    pasted = st.paste(glimpse, where, tf.ones([1, 1], tf.float64), (5, 5, 1), (5, 5))
    np.testing.assert_allclose(pasted, image, atol=1e-12)


def test_gradients_in_float64():
    image, where = draw(1, *IMAGE), 0.4 * draw(2, 1, 4, seed=3)
    glimpse, presence = draw(2, 1, 12, seed=4), tf.ones([2, 1], tf.float64)
    weights = draw(2, 16, seed=5), draw(2, *IMAGE, seed=6)

    def cropped(where):
        return tf.reduce_sum(crops.crop(crops.image_to_columns(image, 1), where, GLIMPSE)[:, 0] * weights[0])

    def pasted(glimpse, where):
        return tf.reduce_sum(st.paste(glimpse, where, presence, PASTED, IMAGE) * weights[1])

    def covered(where):
        return tf.reduce_sum(st.coverage(where, presence, PASTED, IMAGE) * weights[1])

    for function, arguments in ((cropped, [where]), (pasted, [glimpse, where]), (covered, [where])):
        theory, numeric = tf.test.compute_gradient(function, [tf.constant(x) for x in arguments], delta=1e-6)
        for ours, expected in zip(theory, numeric):
            assert np.abs(expected).max() > 1e-3
            np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_only_square_glimpses_are_cropped():
    with pytest.raises(ValueError, match="4 x 3 pixels: expected square"):
        crops.crop(crops.image_to_columns(tf.zeros([1, *IMAGE]), 1), tf.zeros([1, 4]), PASTED)


def test_smallest_scale_is_bounded_with_its_gradient():
    where = tf.constant([[-20.0, -30.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(where)
        sx, sy, _, _ = st.to_coords(where)
    np.testing.assert_allclose([sx[0], sy[0]], [1e-4, 1e-4], rtol=1e-6)
    gradient = tape.gradient([sx, sy], where)[0].numpy()
    np.testing.assert_allclose(gradient[:2], np.exp([-20.0, -30.0]), rtol=1e-4)


def test_colour_is_grey_for_every_channel():
    images, where = draw(2, *IMAGE, 3), draw(4, 2, 4, seed=1)
    rows = st.image_to_rows(tf.constant(images), 3)
    np.testing.assert_array_equal(st.rows_to_image(rows, 3), images)
    glimpse = crops.crop(crops.image_to_columns(tf.constant(images), 3), tf.constant(where), (4, 4, 3)).numpy()
    pixels = glimpse.reshape(4, 2, 4, 4, 3)
    presence = tf.constant([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], tf.float64)
    canvas = st.rows_to_image(st.paste(tf.constant(glimpse), tf.constant(where), presence, (4, 4, 3), IMAGE), 3)
    for c in range(3):
        grey = crops.crop(crops.image_to_columns(tf.constant(images[..., c]), 1), tf.constant(where), GLIMPSE).numpy()
        np.testing.assert_allclose(pixels[..., c].reshape(4, 2, 16), grey, atol=1e-12)
        np.testing.assert_allclose(
            canvas[..., c], st.paste(tf.constant(grey), tf.constant(where), presence, GLIMPSE, IMAGE), atol=1e-12
        )


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 3, 5, 4, 1)])
def test_grey_images_may_have_a_channel_axis(shape):
    image = draw(*shape)
    np.testing.assert_array_equal(st.image_to_rows(tf.constant(image), 1), image.reshape(2, 3, 5, 4))
