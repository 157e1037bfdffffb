"""Levels on the token clock: their memories and fields."""
