"""loss.png: training and validation curves beside the n-gram yardsticks, and loss against position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nestflow.diagnostics.core import fail
from nestflow.train.evaluate import PositionLoss
from nestflow.train.history import History


def plot_loss(
    path: str | Path,
    history: History,
    baselines: Mapping[str, float] | None = None,
    positions: Sequence[PositionLoss] = (),
    trained_length: int | None = None,
    title: str = "",
) -> Path:
    """Write a PNG. baselines: name -> bits per byte, drawn as level lines. positions: of `loss_by_position`.

    Raises NF529 if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise fail("NF529", "drawing loss.png needs matplotlib", help="pip install 'nestflow[view]'") from e
    figure = Figure(figsize=(11 if positions else 7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if positions else 1, squeeze=False)[0]
    curve = axes[0]
    steps = [r.step for r in history.records]
    curve.plot(steps, [r.bpb for r in history.records], color="#9ab8d8", linewidth=0.8, label="training, each step")
    if history.val:
        curve.plot(*zip(*history.val), color="#1f4e8c", marker="o", linewidth=1.6, label="validation")
    for (name, bpb), style in zip((baselines or {}).items(), ("--", ":", "-.", (0, (1, 4)))):
        curve.axhline(bpb, color="#b0413e", linestyle=style, linewidth=1.1, label=f"byte {name} {bpb:.2f}")
    curve.set(xlabel="step", ylabel="bits per byte", title=title)
    curve.legend(frameon=False, fontsize=8)
    if positions:
        _plot_positions(axes[1], positions, trained_length)
    for a in axes:
        a.spines[["top", "right"]].set_visible(False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _plot_positions(axis, positions: Sequence[PositionLoss], trained_length: int | None) -> None:
    axis.plot([(p.start + p.stop) / 2 for p in positions], [p.bpb for p in positions], color="#1f4e8c", marker="o")
    if trained_length is not None:
        axis.axvline(trained_length, color="#777777", linestyle="--", linewidth=1)
        axis.annotate("length trained on", (trained_length, axis.get_ylim()[1]), fontsize=8, color="#555555",
                      xytext=(4, -10), textcoords="offset points")  # fmt: skip
    axis.set(xlabel="position in the window (tokens)", title="validation, by position")
