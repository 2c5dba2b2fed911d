"""Encoder and decoder of glimpses: masks, the mean image behind objects, colour."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from sqair import crops, spatial_transformer
from sqair.glimpses import Decoder, GlimpseEncoder
from tests.model_helpers import draw, make_busy
from tests.reference.numpy_sqair import crop, elu, paste, sigmoid


@pytest.mark.parametrize("channels", [1, 3])
def test_encoder_masks_the_glimpse_in_every_channel(channels):
    encoder = GlimpseEncoder((4, 4, channels), n_what=3, n_hidden=8, masked=True)
    make_busy(encoder)
    image, where, state = draw(1, 9, 11, channels), draw(2, 1, 4, seed=1), draw(2, 1, 8, seed=2)
    mask = encoder.mask(tf.constant(state))
    columns = crops.image_to_columns(tf.constant(image), channels)
    loc, scale = encoder(columns, tf.constant(where), mask)
    plain, _ = encoder(columns, tf.constant(where))
    for p in range(2):
        first, last = encoder.mask_mlp.layers
        expected_mask = sigmoid(elu(state[p, 0] @ first.w["x"].numpy() + first.b) @ last.w["x"].numpy() + last.b)
        glimpse = crop(image[0], where[p, 0], 4)
        for ours, g in ((loc, glimpse * expected_mask.reshape(4, 4, 1)), (plain, glimpse)):
            expected, _ = encoder.head(encoder.mlp(tf.constant(np.float32(g.reshape(1, -1)))))
            np.testing.assert_allclose(ours[p], expected, rtol=1e-3, atol=1e-5)
    assert np.abs(loc - plain).max() > 1e-2 and np.all(scale > 0.01)


def test_mask_starts_open_and_may_be_missing():
    encoder = GlimpseEncoder((4, 4, 1), 3, 8, masked=True)
    np.testing.assert_array_equal(encoder.mask_mlp.layers[-1].b, np.ones(16))
    assert [layer.output_size for layer in encoder.mask_mlp.layers] == [128, 16]
    assert GlimpseEncoder((4, 4, 1), 3, 8, masked=False).mask(tf.zeros([2, 1, 8])) is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mean_image", [True, False])
def test_decoder_adds_the_mean_image_where_it_drew(channels, mean_image):
    decoder = Decoder(
        (9, 11, channels),
        (4, 4, channels),
        n_what=3,
        n_hidden=8,
        output_scale=0.7,
        output_std=0.3,
        mean_image=mean_image,
    )
    make_busy(decoder)
    what, where = draw(3, 2, 3, 3), draw(3, 2, 3, 4, seed=1)
    presence = np.float32([[[1, 0, 1], [0, 0, 0]], [[1, 1, 1], [0, 1, 0]], [[0, 0, 1], [1, 1, 0]]])
    decoded = decoder(*map(tf.constant, (what, where, presence)))
    canvas = spatial_transformer.rows_to_image(decoded.canvas, channels).numpy().reshape(3, 2, 9, 11, channels)
    glimpse = 0.7 * decoder.mlp(tf.constant(what)).numpy().reshape(3, 2, 3, 4, 4, channels)
    np.testing.assert_allclose(decoded.glimpse, glimpse.reshape(3, 2, 3, -1), rtol=1e-5)
    for p in itertools.product(range(3), range(2)):
        drawn = sum(presence[p][k] * paste(glimpse[p][k], where[p][k], 9, 11) for k in range(3))
        covered = sum(presence[p][k] * paste(np.ones([4, 4, channels]), where[p][k], 9, 11) for k in range(3))
        if mean_image:
            drawn += decoder.mean_image.numpy() * sigmoid(-10 + 20 * covered)
        np.testing.assert_allclose(canvas[p], drawn, atol=1e-4)
    assert decoder.output_scale.trainable and decoder.output_scale == 0.7
