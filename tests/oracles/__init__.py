"""Independent references for the tests: plain float64 loops written from the published equations.

Nothing here imports nestflow. Sequence tensors are ``[B, H, T, D]``, rates and gates ``[B, H, T, 1]`` (or
``[B, H, T, D]`` where a gate acts on the key channels), matrices ``[B, H, out, in]``. Everything is differentiable by
autograd, initial states included. Each module is checked against something else in ``tests/test_oracles.py``.
"""

from tests.oracles.attention import attention, rope
from tests.oracles.hope import FIVE_MEMORIES, dgd_step, self_modifying
from tests.oracles.matrix import delta_rule, gated_delta, linear_attention, momentum_delta
from tests.oracles.mlp import init_mlp, mlp
from tests.oracles.titans import titans_memory

__all__ = [
    "FIVE_MEMORIES",
    "attention",
    "delta_rule",
    "dgd_step",
    "gated_delta",
    "init_mlp",
    "linear_attention",
    "mlp",
    "momentum_delta",
    "rope",
    "self_modifying",
    "titans_memory",
]
