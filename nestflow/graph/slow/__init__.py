"""Levels on slower clocks: steps, declared clocks, levels inside a step."""
