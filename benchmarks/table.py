"""The results as Markdown, and the marked block of the README that they fill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench:titans -->", "<!-- /bench:titans -->"


def markdown(result: dict[str, Any]) -> str:
    """One row for each chunk and implementation: multiples of the floor first, then peak memory."""
    lengths = result["lengths"]
    over = " / ".join(f"{n:,}" for n in lengths)
    lines = [
        f"| Titans memory, batch {result['batch']} | forward, T = {over} | training, T = {over} | "
        f"peak MB of training, T = {lengths[-1]:,} |",
        "|---|---|---|---|",
    ]
    for chunk in result["chunks"]:
        for case in result["cases"]:
            rows = [r for r in result["rows"] if r["chunk"] == chunk and r["case"] == case]
            if rows:
                lines.append(
                    f"| chunk {chunk}: {case} | {_ratios(rows, lengths, 'forward')} | "
                    f"{_ratios(rows, lengths, 'training')} | {_peak(rows, lengths[-1])} |"
                )
    machine = result["machine"]
    lines += [
        "",
        f"Multiples of the matmul floor: median of interleaved rounds (lowest–highest), {machine['threads']} thread, "
        f"torch {machine['torch']}, {result['device']}. A dash: not run.",
    ]
    return "\n".join(lines)


def _ratios(rows: list[dict[str, Any]], lengths: list[int], mode: str) -> str:
    cells = []
    for length in lengths:
        found = [r[mode] for r in rows if r["length"] == length and r.get(mode)]
        if not found:
            cells.append("–")
            continue
        r = found[0]
        spread = f" ({r['ratio_low']:.1f}–{r['ratio_high']:.1f})" if r["rounds"] > 1 else " (1 run)"
        cells.append(f"**{r['ratio']:.1f}**{spread}")
    return " / ".join(cells)


def _peak(rows: list[dict[str, Any]], length: int) -> str:
    found = [r["peak_mb"] for r in rows if r["length"] == length and r.get("peak_mb") is not None]
    return f"{found[0]:,.0f}" if found else "–"


def write_block(readme: Path, table: str) -> bool:
    """Replace what stands between the marks; False if the file has no such marks."""
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if BEGIN not in text or END not in text.split(BEGIN, 1)[1]:
        return False
    head, rest = text.split(BEGIN, 1)
    readme.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
    return True
