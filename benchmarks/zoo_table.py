"""The zoo's results as Markdown and as curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HEAD = (
    "| spec | paper | lines | lowering | compiled − interpreted | width | parameters | bits per byte | with rate 0 |"
    " recall moves scores by | tokens/s |"
)
# the panels of the picture
FAMILIES: dict[str, tuple[str, ...]] = {
    "attention and hybrids": (
        "transformer", "gqa", "swa", "samba", "hybrid", "titans_mac", "titans_mag", "titans_mal", "hope_attention",
        "lact",
    ),
    "matrices, dot": (
        "linear_attention", "normalized_attention", "retnet", "gla", "hgrn2", "mamba2", "longhorn", "mesanet",
    ),
    "matrices, delta rule": ("deltanet", "gated_deltanet", "kda", "comba", "deltaproduct", "rwkv7"),
    "networks": (
        "cms_sequential", "cms_independent", "cms_nested",
        "titans", "hope", "ttt_linear", "ttt_mlp", "tnt", "yaad", "moneta", "memora", "dla", "omega", "atlas",
    ),
}  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """One row a spec, in the order of the families, and under it what was run."""
    order = [n for family in FAMILIES.values() for n in family]
    rows = sorted(result["rows"], key=lambda r: order.index(r["name"]) if r["name"] in order else len(order))
    lines = [HEAD, "|---|---|---|---|---|---|---|---|---|---|---|"]
    for r in rows:
        without = "–" if r["without"] is None else f"{r['without']:.3f}"
        moved = "–" if r["moved"] is None else f"{r['moved']:.0%}"
        lines.append(
            f"| [{r['name']}](../specs/architectures/{r['name']}.nl) | {r['paper']} | {r['lines']} | "
            f"{', '.join(r['lowering'])} | {r['difference']:.0e} | {r['dim']} | {r['parameters']:,} | {r['bpb']:.3f} | "
            f"{without} | {moved} | {r['tokens_per_cpu_s']:,.0f} |"
        )
    run, machine = result["run"], result["machine"]
    grams = ", ".join(f"byte {n} {b:.2f}" for n, b in result["baselines"].items())
    lines += [
        "",
        f"What was run ({result['mode']}, {result['date']}): each spec at the width that makes it as large as a "
        f"transformer of width {run['dim']} ({result['target']:,} parameters; widths are multiples of "
        f"{4 * run['n_heads']}), "
        f"{run['depth']} blocks, {run['n_heads']} heads, "
        f"{run['steps']} steps of {run['batch']} × {run['length']} bytes of Shakespeare, one seed, one peak rate "
        f"({run['lr']:g}), tuned for none. Bits per byte over {run['windows']} held-out windows; yardsticks: {grams}. "
        f"{machine['threads']} thread, torch {machine['torch']}, {machine['platform']}, speeds in CPU time.",
    ]
    return "\n".join(lines)


def smooth(curve: list[float], keep: float = 0.8) -> list[float]:
    """A running mean, unbiased at the start."""
    out, mean, weight = [], 0.0, 0.0
    for x in curve:
        mean, weight = keep * mean + (1 - keep) * x, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out


def picture(result: dict[str, Any], path: Path) -> None:
    """Training curves, one panel a family, the transformer in each as a grey line."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "zoo"
    curves = {r["name"]: smooth(r["curve"]) for r in result["rows"]}
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
    low = min(min(c) for c in curves.values())
    for axis, (family, members) in zip(panels, FAMILIES.items(), strict=True):
        if "transformer" in curves and "transformer" not in members:
            axis.plot(curves["transformer"], color="#bbbbbb", linewidth=3, label="transformer")
        for i, name in enumerate(n for n in members if n in curves):
            axis.plot(curves[name], color=f"C{i % 10}", linestyle="-" if i < 10 else "--", linewidth=1.1, label=name)
        axis.set(title=family, ylim=(low - 0.05, low + 2.2))
        axis.legend(frameon=False, fontsize=8, ncols=1 if len(members) < 12 else 2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("step")
    figure.supylabel("bits per byte while training, running mean")
    figure.savefig(path, metadata={"Date": None})
