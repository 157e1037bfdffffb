"""The speed of every architecture as a picture: multiples of the GEMM floor, and how far a per-token loop is behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def picture(result: dict[str, Any], path: Path) -> None:
    """Two panels of dots, forward and training; in each a spec's multiple of the floor, and the loop's, on a log axis.

    result: of `benchmarks.layers`. The loop's multiple is ours times how many times as long it took."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "speed"
    modes = ("forward", "training")
    rows = [r for r in result["rows"] if "failed" not in r and all({"floor", "loop"} <= set(r[m]) for m in modes)]
    rows.sort(key=lambda r: r["forward"]["floor"]["ratio"])
    figure = Figure(figsize=(11, 1.6 + 0.22 * len(rows)), layout="constrained")
    FigureCanvasSVG(figure)
    at = list(range(len(rows)))
    for axis, mode in zip(figure.subplots(1, 2, sharey=True), modes):
        ours = [r[mode]["floor"]["ratio"] for r in rows]
        loop = [o * r[mode]["loop"]["ratio"] for o, r in zip(ours, rows)]
        spread = [[r[mode]["floor"][f"ratio_{end}"] for r in rows] for end in ("low", "high")]
        axis.hlines(at, ours, loop, color="#dddddd", linewidth=1)
        axis.hlines(at, *spread, color="C0", linewidth=3, alpha=0.4)
        axis.plot(ours, at, "o", color="C0", markersize=5, label="compiled (bar: lowest to highest round)")
        axis.plot(loop, at, "o", color="#aaaaaa", markersize=4, label="the same as a per-token loop")
        axis.axvline(1, color="#888888", linewidth=0.8)
        axis.set(xscale="log", title=mode, xlabel="multiples of the GEMM floor")
        axis.set_yticks(at, [r["spec"] for r in rows], fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, metadata={"Date": None})
