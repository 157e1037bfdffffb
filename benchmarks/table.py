"""The results of Titans' memory as Markdown, and marked blocks of pages that tables fill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.machine import caption


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
    lines += [
        "",
        "Multiples of the matmul floor: median of interleaved rounds (lowest–highest). A dash: not run. "
        + caption(result),
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


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a block."""
    return f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"


def write_block(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of that name. Raises ValueError where the page has none."""
    begin, end = marks(name)
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    if begin not in old or end not in old.split(begin, 1)[1]:
        raise ValueError(f"{page.name} has no block between {begin} and {end}")
    head, rest = old.split(begin, 1)
    page.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")
