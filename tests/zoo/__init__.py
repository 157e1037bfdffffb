"""Each published memory of specs/architectures beside the tick loop of its paper, in float64.

Nothing in `matrices`, `deep` or `layers*` imports nestflow: they are written from the papers. Streams are
``[B, H, T, D]``, gates and rates ``[B, H, T, 1]`` or one per channel, matrices ``[B, H, out, in]``.
"""
