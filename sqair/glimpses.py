"""Glimpse encoder q(what | glimpse) and decoder p(x | z): the original's AIREncoder and AIRDecoder."""

from collections.abc import Sequence
from typing import NamedTuple

import sonnet as snt
import tensorflow as tf

from sqair import crops, spatial_transformer
from sqair.neural import MLP, GaussianHead, constant


class GlimpseEncoder(snt.Module):
    """q(what | glimpse), shared by discovery and propagation (docs/spec/sqair.md, "Shared modules")::

        glimpse = crop(frame, where) * mask,   mask = sigmoid(MLP(temporal state)), the same in every channel
        what ~ N(loc, scale),                  loc, scale = Gaussian head(MLP(glimpse))

    Without masked_glimpse there is no mask.
    """

    def __init__(self, glimpse_shape: Sequence[int], n_what: int, n_hidden: int, masked: bool, name: str | None = None):
        """Args: glimpse_shape: (h, w, C). n_what: D. n_hidden: R. masked: whether there is a mask MLP."""
        super().__init__(name=name)
        self.glimpse_shape = tuple(glimpse_shape)
        h, w, channels = self.glimpse_shape
        self.mlp = MLP(h * w * channels, [n_hidden, n_hidden], name="mlp")
        self.head = GaussianHead(n_hidden, n_what, name="what")
        self.mask_mlp = MLP(n_hidden, [128], h * w, b_init=constant(1.0), name="mask") if masked else None

    def mask(self, state: tf.Tensor) -> tf.Tensor | None:
        """The mask [..., h*w*C] for a temporal state [..., R]; None if glimpses are not masked."""
        if self.mask_mlp is None:
            return None
        mask = tf.sigmoid(self.mask_mlp(state))
        channels = self.glimpse_shape[2]
        return mask if channels == 1 else tf.repeat(mask, channels, axis=-1)

    def __call__(
        self, columns: crops.Columns, where: tf.Tensor, mask: tf.Tensor | None = None, image: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Args: columns [B, ...] of images; where [..., P, 4]; mask [..., P, h*w*C] or None; image: see `crop`.

        Returns: loc, scale [..., P, D].
        """
        glimpse = crops.crop(columns, where, self.glimpse_shape, image)
        return self.head(self.mlp(glimpse if mask is None else glimpse * mask))


class Decoded(NamedTuple):
    """The decoder's output: canvas [T, P, H, C*W] rows, the mean of p(x|z); glimpse [T, P, N, h*w*C]."""

    canvas: tf.Tensor
    glimpse: tf.Tensor


class Decoder(snt.Module):
    """p(x | z), the likelihood in equations 1 and 3 of the R-SQAIR paper, AIR's decoder.

    a is a trainable scalar, mean a trainable image, if there is one (docs/spec/sqair.md, "Decoder and likelihood")::

        glimpse_i = a MLP(what_i)
        canvas = sum_i presence_i paste(glimpse_i, where_i) + mask * mean
        mask = sigmoid(-10 + 20 sum_i presence_i paste(ones, where_i))
        p(x | z) = N(canvas, output_std) for every pixel

    The original mixes a foreground and a background deviation by that mask, but never sets them to different
    values: the mixture is output_std.
    """

    UNROLLED = 10  # the most frames that are unrolled in the graph

    def __init__(
        self,
        image_shape: Sequence[int],
        glimpse_shape: Sequence[int],
        n_what: int,
        n_hidden: int,
        output_scale: float,
        output_std: float,
        mean_image: bool,
        name: str | None = None,
    ):
        """Args: image_shape (H, W, C); glimpse_shape (h, w, C); D; R; starting scale; deviation; mean image or not."""
        super().__init__(name=name)
        self.image_shape, self.glimpse_shape = tuple(image_shape), tuple(glimpse_shape)
        h, w, channels = self.glimpse_shape
        self.mlp = MLP(n_what, [n_hidden, n_hidden], h * w * channels, name="mlp")
        self.output_scale = tf.Variable(output_scale, dtype=tf.float32, name="output_scale")
        self.output_std = output_std
        self.mean_image = tf.Variable(tf.zeros(self.image_shape), name="mean_image") if mean_image else None

    def __call__(self, what: tf.Tensor, where: tf.Tensor, presence: tf.Tensor) -> Decoded:
        """Args: what [T, P, N, D], where [T, P, N, 4], presence [T, P, N]."""
        glimpse = self.mlp(what) * self.output_scale
        # Frame by frame, so that the weights of a paste stay in the cache; many frames in a loop of the graph.
        inputs = (glimpse, where, presence)
        if glimpse.shape[0] <= self.UNROLLED or tf.executing_eagerly():
            canvas = tf.stack([self._draw(*frame) for frame in zip(*map(tf.unstack, inputs))])
        else:
            canvas = tf.map_fn(lambda frame: self._draw(*frame), inputs, fn_output_signature=tf.float32)
        return Decoded(canvas, glimpse)

    def _draw(self, glimpse: tf.Tensor, where: tf.Tensor, presence: tf.Tensor) -> tf.Tensor:
        """The canvases [P, H, C*W] of one frame."""
        height, width, channels = self.image_shape
        canvas = spatial_transformer.paste(glimpse, where, presence, self.glimpse_shape, (height, width))
        if self.mean_image is not None:
            written = spatial_transformer.coverage(where, presence, self.glimpse_shape, (height, width))
            mask = tf.sigmoid(-10.0 + 20.0 * written)
            mean = spatial_transformer.image_to_rows(self.mean_image, channels)
            canvas += mean * (tf.tile(mask, [1, 1, channels]) if channels > 1 else mask)
        return canvas
