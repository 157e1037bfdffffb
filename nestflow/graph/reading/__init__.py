"""Weights that learn while the model reads."""
