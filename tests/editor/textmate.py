"""A small TextMate engine in Python: enough of it to run this project's grammar without Node.

A rule is `match` with captures, or `begin` and `end` with patterns; the leftmost match wins, then the earlier rule; a
`begin` opens a state that goes on over line ends until its `end`, which is tried before the patterns inside.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

Rule = dict[str, Any]


@cache
def regex(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


class Engine:
    """Gives every character of a text the names (scopes) that the grammar puts on it, outermost first."""

    def __init__(self, grammar: Rule):
        self.grammar = grammar

    def scopes(self, text: str) -> list[tuple[str, ...]]:
        out: list[tuple[str, ...]] = []
        stack: list[Rule] = []
        for line in text.split("\n"):
            out += self._line(line, stack)
            out.append(())
        return out[:-1]

    def _rules(self, patterns: list[Rule]) -> list[Rule]:
        found: list[Rule] = []
        for rule in patterns:
            if "include" in rule:
                target = self.grammar["repository"][rule["include"].removeprefix("#")]
                found += [target] if "match" in target or "begin" in target else self._rules(target["patterns"])
            else:
                found.append(rule)
        return found

    def _line(self, line: str, stack: list[Rule]) -> list[tuple[str, ...]]:
        names: list[list[str]] = [[] for _ in line]
        at = 0
        while True:
            top = stack[-1] if stack else None
            best = self._next(line, at, top)
            outer = [r["name"] for r in stack if "name" in r]
            for i in range(at, best[0].start() if best else len(line)):
                names[i] += outer
            if best is None:
                break
            m, rule, ends = best
            captures = rule.get("endCaptures" if ends else "beginCaptures" if "begin" in rule else "captures", {})
            own = [rule["name"]] if "name" in rule and not (ends or "begin" in rule) else []
            whole = [] if not (ends or "begin" in rule) or "name" not in rule else [rule["name"]]
            base = outer if ends or not whole else outer + whole
            self._put(names, m, base + own, captures)
            if ends:
                stack.pop()
            elif "begin" in rule:
                stack.append(rule)
            elif m.end() == m.start():
                raise AssertionError(f"{rule['match']!r} matches nothing at {line!r}:{at}")
            at = m.end()
        while stack and regex(stack[-1]["end"]).match(line, len(line)):
            stack.pop()  # `$` ends what is open
        return [tuple(x) for x in names]

    def _next(self, line: str, at: int, top: Rule | None) -> tuple[re.Match[str], Rule, bool] | None:
        best: tuple[re.Match[str], Rule, bool] | None = None
        if top is not None:
            m = regex(top["end"]).search(line, at)
            if m and m.start() < len(line):
                best = (m, top, True)
        for rule in self._rules(top.get("patterns", []) if top is not None else self.grammar["patterns"]):
            m = regex(rule.get("match") or rule["begin"]).search(line, at)
            if m and (best is None or m.start() < best[0].start()):
                best = (m, rule, False)
        return best

    @staticmethod
    def _put(names: list[list[str]], m: re.Match[str], base: list[str], captures: dict[str, Rule]) -> None:
        for i in range(m.start(), m.end()):
            names[i] += base
        for number, capture in captures.items():
            start, end = m.span(int(number))
            for i in range(start, end):
                names[i].append(capture["name"])
