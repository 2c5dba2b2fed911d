"""Evaluation: metrics, tracking and statistics over stored predictions (numpy), and the tools that make them."""
