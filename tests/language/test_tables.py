"""The kept LALR tables are those of the grammar, and reading needs nothing heavy."""

from __future__ import annotations

import subprocess
import sys

from nestflow.language import nl_tables
from nestflow.language.make_tables import GRAMMAR, STARTS, build, restore, stamp


def test_tables_belong_to_the_grammar() -> None:
    assert nl_tables.STAMP.split("-lark-")[0] == stamp(GRAMMAR.read_text(encoding="utf-8")).split("-lark-")[0], (
        "run: python -m nestflow.language.make_tables"
    )
    kept = restore(nl_tables.DATA, nl_tables.MEMO)
    fresh = build()
    assert {r.origin.name for r in kept.rules} == {r.origin.name for r in fresh.rules}
    assert len(kept.parser.parser.parser.parse_table.states) == len(fresh.parser.parser.parser.parse_table.states)
    assert set(kept.parser.parser.parser.parse_table.start_states) == set(STARTS)


def test_the_grammar_has_no_hidden_conflicts() -> None:
    """lark settles shift against reduce silently: only `in` after a slot's or param's type may need that."""
    import logging

    from lark import logger

    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda r: records.append(r.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        build(debug=True)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert {m.split("terminal ")[1].split(":")[0] for m in records if m.startswith("Shift/Reduce")} <= {"IN"}


def test_reading_is_light() -> None:
    code = (
        "import sys; from nestflow.language.resolve import load; load('nestflow 1\\nx = 1'); load({'nestflow': 1});"
        "bad = {'torch', 'networkx', 'rich', 'numpy', 'pydantic', 'click'} & set(sys.modules); "
        "print(sorted(bad)); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
