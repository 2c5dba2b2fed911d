"""Evaluation: metrics, tracking and statistics over stored predictions (numpy), and the tools that make them."""

import sqair  # noqa: F401  sets TensorFlow up before any module here imports it
