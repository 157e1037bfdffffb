"""The interpreter that defines what a spec means: short, slow, exact."""

from nestflow.reference.model import Reference
from nestflow.reference.plain import eval_weights, init_slots, run_rule
from nestflow.reference.slow import Slow

__all__ = ["Reference", "Slow", "eval_weights", "init_slots", "run_rule"]
