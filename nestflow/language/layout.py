"""Settles what a grammar cannot: which line ends end statements, which words are keywords, which braces hold what.

Brackets that do not match are repaired here, one diagnostic each, so that the parser sees balanced brackets and a
mistake stays inside its own statement.
"""

from __future__ import annotations

from typing import NoReturn

from nestflow.diagnostics.core import Collector, Edit, NestflowError, Related, Span
from nestflow.diagnostics.suggest import nearest
from nestflow.language.lexer import Token

OPENERS = frozenset(
    [
        "use",
        "param",
        "input",
        "clock",
        "extern",
        "extends",
        "level",
        "flow",
        "optimizer",
        "execution",
        "shared",
        "return",
        "emit",
        "for",
        "repeat",
        "assert",
    ]
)
TOP_ONLY = frozenset(["use", "param", "input", "clock", "extern", "extends", "level", "flow", "optimizer", "execution"])
NAMED = frozenset(["level", "flow", "optimizer", "extern"])
MAX_DEPTH = 200
MAX_ERRORS = 20

# After these a statement goes on in the next line, and `{` begins a record.
WANTS_MORE = frozenset(
    [
        "ASSIGN",
        "COMMA",
        "COLON",
        "PIPE",
        "PLUS",
        "MINUS",
        "MUL",
        "POW",
        "CMP",
        "AND",
        "OR",
        "NOT",
        "IF",
        "ELSE",
        "IN",
        "OF",
        "AS",
        "DOT",
    ]
)
# A line that begins with one of these belongs to the line before.
GOES_ON = frozenset(["PIPE", "PLUS", "MUL", "POW", "CMP", "AND", "OR", "ELSE"])
INSIDE = GOES_ON | {"COMMA", "RPAR", "RSQB", "IF", "DOT"}
CLOSES = {"RPAR": "LPAR", "RSQB": "LSQB", "RBRACE": "LBRACE", "RRECORD": "LRECORD"}
MIRROR = {"LPAR": ("RPAR", ")"), "LSQB": ("RSQB", "]"), "LBRACE": ("RBRACE", "}"), "LRECORD": ("RRECORD", "}")}


class _Again(Exception):
    """The tokens were repaired: lay them out anew."""


class Layout:
    """One pass over the tokens of a text; `run` repeats it until the brackets match."""

    def __init__(self, tokens: list[Token], errors: Collector, statements: bool = True):
        self.tokens = tokens
        self.errors = errors
        self.statements = statements
        self.indented = False  # whether indentation is taken as a hint where a `}` is missing

    def run(self) -> list[Token]:
        """The tokens the grammar sees; marks each token that opens a statement."""
        for _ in range(2 * MAX_ERRORS + 2):
            try:
                return self._pass()
            except _Again:
                if len(self.errors.errors) >= MAX_ERRORS:
                    break
        raise NestflowError(self.errors.errors)

    def _pass(self) -> list[Token]:
        self.out: list[Token] = []
        self.stack: list[tuple[Token, int]] = []  # open brackets, and where they stand in self.tokens
        # each `;` inside brackets, and the outermost: an error, unless the brackets are what is wrong
        self.inner: list[tuple[Token, Token | None]] = []
        self.closed: list[tuple[int, Token]] = []  # each `}`, and what it closes
        self.pending: Token | None = None  # a line end or `;` not yet judged
        self.hard = False  # whether it was a `;`
        for i, t in enumerate(self.tokens):
            t.type, t.opens = t.base, False
            if t.type in ("NL", "SEMI"):
                self._separator(t)
                continue
            starts = self._start(t)
            if starts:
                self._open_statement(i, t)
            elif t.type == "ELSE" and self.out and self.out[-1].type == "RBRACE":
                t.type = "ELSES"
            elif t.type == "IF" and self.out and self.out[-1].type == "ELSES":
                t.type = "IFS"
            self.pending, self.hard = None, False
            if t.type in ("LPAR", "LSQB", "LBRACE"):
                self._open(i, t)
            elif t.type in ("RPAR", "RSQB", "RBRACE"):
                self._close(i, t)
            self.out.append(t)
        if self.stack:
            self._unclosed_at_end()
        self._told: set[int] = set()
        for t, opener in self.inner:
            self._inner_end(t, opener)
        return self.out

    # --- separators and statement starts -----------------------------------------------------------

    def _inside(self) -> bool:
        """Whether line ends mean nothing here."""
        return not self.statements or (bool(self.stack) and self.stack[-1][0].type != "LBRACE")

    def _separator(self, t: Token) -> None:
        if t.type == "SEMI":
            if self._inside():
                outer = next((o for o, _ in self.stack if o.type != "LBRACE"), None)
                self.inner.append((t, outer))
                return
            self.hard = True
        if self._inside():
            return
        if self.pending is None or t.type == "SEMI":
            self.pending = t

    def _inner_end(self, t: Token, opener: Token | None) -> None:
        """Report a `;` inside brackets, once for the outermost of them."""
        if opener is not None:
            if opener.start in self._told:
                return
            self._told.add(opener.start)
        if opener is not None and opener.type == "LRECORD":
            said = "this `{` holds statements, and what stands before it has no body"
            help = (
                "level, flow, optimizer, execution, extends, for, repeat, if, else and `memory name : kind` have bodies"
            )
            self.errors.error("NF101", said, opener.span, help, (Related(t.span, "a `;` ends a statement"),))
            return
        said = "`;` ends a statement, and cannot stand inside brackets or an expression"
        self.errors.error("NF101", said, t.span, "entries are separated by commas" if self.statements else "delete it")

    def _start(self, t: Token) -> bool:
        """Whether the token opens a statement; puts the separator before it where one is due."""
        if self._inside() or t.type == "RBRACE":
            return False
        last = self.out[-1] if self.out else None
        if last is None or last.type in ("LBRACE", "_SEP"):
            return True
        if last.type == "RBRACE" and t.type != "ELSE":  # a body ends its statement
            self.out.append(self._sep(self.pending or t))
            return True
        if self.pending is None:
            return False
        if not self.hard and (last.type in WANTS_MORE or t.type in GOES_ON or t.type == "LBRACE"):
            return False
        self.out.append(self._sep(self.pending))
        return True

    def _sep(self, t: Token) -> Token:
        return Token(
            "_SEP",
            t.text if t.base in ("NL", "SEMI") else "",
            t.start,
            t.start if t.base != "SEMI" else t.end,
            t.source,
        )

    def _open_statement(self, i: int, t: Token) -> None:
        t.opens = True
        if not self.out and t.base == "NAME" and t.text == "nestflow":
            t.type = "NESTFLOW"
        elif t.type == "IF":
            t.type = "IFS"
        elif t.base == "NAME" and t.text in OPENERS and self._next(i).base not in ("ASSIGN", "COMMA"):
            t.type = t.text.upper()
        if self.indented and self.pending is not None and t.text in TOP_ONLY:
            self._perhaps_unclosed(i, t)

    def _next(self, i: int, skip_lines: bool = False) -> Token:
        for j in range(i + 1, len(self.tokens)):
            if self.tokens[j].base != "NL" or not skip_lines:
                return self.tokens[j]
        end = self.tokens[-1].end
        return Token("END", "", end, end, self.tokens[-1].source)

    # --- brackets ----------------------------------------------------------------------------------

    def _open(self, i: int, t: Token) -> None:
        if t.type == "LBRACE" and self._is_record(i, t):
            t.type = "LRECORD"
        self.stack.append((t, i))
        if len(self.stack) > MAX_DEPTH:
            self.errors.error(
                "NF110",
                f"brackets are nested more than {MAX_DEPTH} deep here",
                t.span,
                "give parts of it names, and write the names",
            )
            raise NestflowError(self.errors.errors)

    def _is_record(self, i: int, t: Token) -> bool:
        if self._inside():
            return True
        last = self.out[-1] if self.out else None
        if last is None:
            return True
        if last.type in WANTS_MORE or last.type in ("RETURN", "ASSERT"):
            return True
        if last.opens and last.type in ("NAME", "IFS", "REPEAT"):  # `weight {gate: r1}`
            first = self._next(i, True)
            j = self.tokens.index(first, i) if first.base in ("NAME", "STRING") else -1
            return j >= 0 and self._next(j, True).base == "COLON"
        return False

    def _close(self, i: int, t: Token) -> None:
        if not self.stack:
            self._stray(i, t)
        opener, where = self.stack[-1]
        kind = "RRECORD" if t.type == "RBRACE" and opener.type == "LRECORD" else t.type
        interval = where > 0 and self._before(where).base == "IN"
        if CLOSES[kind] == opener.type or (interval and {kind, opener.type} <= {"RPAR", "RSQB", "LPAR", "LSQB"}):
            if self.indented and kind == "RBRACE" and self._first_on_line(i) and _column(t) < _indent(opener):
                self._unclosed(opener, where, i, before=self._line_before(i), at=t)
            t.type = kind
            self.stack.pop()
            self.closed.append((i, opener))
            return
        if t.type == "RBRACE":
            if any(o.type in ("LBRACE", "LRECORD") for o, _ in self.stack):
                self._unclosed(opener, where, i)
            if self._next(where).base == "NL":  # `flow f(x) (` and a line end: a body
                self._swap(where, opener, t, "{", "LBRACE")
            self._stray(i, t)
        if opener.type in ("LPAR", "LSQB"):
            deeper = len(self.stack) > 1 and CLOSES[t.type] == self.stack[-2][0].type
            if deeper and self._counts(where, t):
                self._unclosed(opener, where, i, before=i)
            if self._is_opener_wrong(i, where, opener):
                text = "(" if opener.text == "[" else "["
                self._swap(where, opener, t, text, "LPAR" if text == "(" else "LSQB")
            self._swap(i, t, opener, MIRROR[opener.type][1], MIRROR[opener.type][0])
        if opener.type == "LRECORD":
            self._unclosed(opener, where, i, before=i)
        if self._braces_after(i) < len(self.stack):  # a `}` is missing, and this stands where it belongs
            self._swap(i, t, opener, "}", "RBRACE")
        self._stray(i, t)

    def _swap(self, i: int, t: Token, other: Token, text: str, type: str) -> NoReturn:
        """Report a bracket of the wrong kind beside its other half, and put the right one there."""
        closes = t.type in ("RPAR", "RSQB", "RBRACE")
        said = (
            f"`{t.text}` closes the `{other.text}` of another kind"
            if closes
            else f"`{other.text}` closes this `{t.text}`"
        )
        related = (Related(other.span, "opened here" if closes else "closed here"),)
        self.errors.error("NF106", said, t.span, f"write `{text}`", related, (Edit(t.span, text),))
        self.tokens[i] = Token(type, text, t.start, t.end, t.source)
        raise _Again

    def _is_opener_wrong(self, i: int, where: int, opener: Token) -> bool:
        """Whether of two halves that do not match the first is the wrong one: slots, arguments and types tell."""
        if where == 0 or self.tokens[where - 1].end != opener.start or self.tokens[where - 1].base != "NAME":
            return False
        name = self.tokens[where - 1].text
        if opener.type == "LPAR":
            return name in ("int", "float", "bool")
        inside = {t.base for t in self.tokens[where + 1 : i]}
        return where > 1 and (self.tokens[where - 2].text in NAMED or bool(inside & {"ASSIGN", "COMMA"}))

    def _braces_after(self, i: int) -> int:
        """How many more braces the rest of the text closes than it opens."""
        rest = self.tokens[i + 1 :]
        return sum((t.base == "RBRACE") - (t.base == "LBRACE") for t in rest)

    def _first_on_line(self, i: int) -> bool:
        return i == 0 or self.tokens[i - 1].base == "NL"

    def _line_before(self, i: int) -> int:
        """After the last token of the lines before."""
        while i > 0 and self.tokens[i - 1].base == "NL":
            i -= 1
        return i

    def _counts(self, where: int, t: Token) -> bool:
        """Whether a bracket of t's kind still follows on this line to close what t seems to close."""
        return not any(o.base == t.base for o in self._rest_of_line(self.tokens.index(t, where) + 1))

    def _rest_of_line(self, i: int) -> list[Token]:
        line: list[Token] = []
        while i < len(self.tokens) and self.tokens[i].base != "NL":
            line.append(self.tokens[i])
            i += 1
        return line

    def _before(self, i: int) -> Token:
        while i > 0 and self.tokens[i - 1].base == "NL":
            i -= 1
        return self.tokens[i - 1] if i > 0 else self.tokens[i]

    def _stray(self, i: int, t: Token) -> NoReturn:
        """A closing bracket without an opening one; of braces, an earlier one that did not begin its line may be it."""
        if t.type == "RBRACE":
            for j, opener in reversed(self.closed):
                early = self.tokens[j]
                if opener.type == "LBRACE" and not self._first_on_line(j) and opener.span.line != early.span.line:
                    i, t = j, early
                    break
        self.errors.error("NF106", f"this `{t.text}` closes nothing", t.span, "delete it, or open its bracket before")
        del self.tokens[i]
        raise _Again

    def _unclosed(
        self, opener: Token, where: int, stop: int, before: int | None = None, at: Token | None = None
    ) -> NoReturn:
        """Report a bracket without its end, and put the end where its line seems to end.

        at: the token before which the end is missing."""
        close, text = MIRROR[opener.type]
        place = before if before is not None else self._likely_end(where, stop)
        end = self.tokens[place - 1].end if place > 0 else 0
        last = self.tokens[place - 1] if place > 0 else opener
        if at is not None:
            related = (Related(at.span, f"a `{text}` is missing before this"),)
        elif opener.type != "LBRACE" and "\n" in opener.source.text[opener.end : last.start]:
            related = (Related(last.span, f"a `{text}` is missing after this, or before"),)
        else:
            related = ()
        line_end = "\n" if opener.type == "LBRACE" and "\n" in opener.source.text[opener.end : end] else ""
        self.errors.error(
            "NF105",
            f"this `{opener.text}` is never closed",
            opener.span,
            f"add the `{text}`",
            related,
            (Edit(Span(opener.source, end, end), line_end + text),),
        )
        self.tokens.insert(place, Token("RBRACE" if close == "RRECORD" else close, text, end, end, opener.source))
        raise _Again

    def _likely_end(self, where: int, stop: int) -> int:
        """Before the first line end that no comma, operator or bracket carries over; before a body's `{`."""
        depth = 0
        for j in range(where + 1, stop):
            t = self.tokens[j]
            if t.base in ("LPAR", "LSQB"):
                depth += 1
            elif t.base in ("RPAR", "RSQB"):
                depth -= 1
            elif t.base == "SEMI" or (t.base == "LBRACE" and self._before(j).base not in WANTS_MORE):
                return j
            elif t.base == "NL" and depth <= 0:
                last, following = self._before(j), self._next(j, True)
                carried = last.base in WANTS_MORE or last.base in ("LPAR", "LSQB", "LBRACE")
                if not carried and following.base not in INSIDE:
                    return j
        return stop

    def _unclosed_at_end(self) -> None:
        opener, where = self.stack[-1]
        if opener.type != "LBRACE":
            self._unclosed(opener, where, len(self.tokens))
        if not self.indented:
            self.indented = True
            raise _Again
        self._unclosed(opener, where, len(self.tokens), before=len(self.tokens))

    def _perhaps_unclosed(self, i: int, t: Token) -> None:
        """A declaration at the margin, while a body is open that began at the margin: its `}` is missing."""
        if not self.stack or t.type == "NAME":
            return
        opener, where = self.stack[-1]
        if _column(t) <= _indent(opener):
            self._unclosed(opener, where, i, before=self._line_before(i), at=t)


def _column(t: Token) -> int:
    return t.source.position(t.start)[1]


def _indent(t: Token) -> int:
    """The column at which the line of a token begins."""
    line = t.source.line(t.source.position(t.start)[0])
    return len(line) - len(line.lstrip()) + 1


def check_header(tokens: list[Token], errors: Collector) -> list[Token]:
    """Tokens that begin with `nestflow 1`, reported and put there if they do not."""
    words = [t for t in tokens[:50] if t.base not in ("NL", "SEMI")][:2]
    if words and words[0].base == "NAME" and words[0].text == "nestflow":
        return tokens
    if not words:
        raise AssertionError("an empty text is refused before")
    first = words[0]
    if (
        len(words) == 2
        and words[1].base == "NUMBER"
        and (nearest(first.text, ["nestflow"]) or first.text in ("version", "nl"))
    ):
        errors.error(
            "NF102",
            f"a spec begins with `nestflow 1`, not with `{first.text}`",
            first.span,
            "did you mean `nestflow`?",
            fix=(Edit(first.span, "nestflow"),),
        )
        first.text, first.base = "nestflow", "NAME"
        return tokens
    s = first.source
    line = s.text.rfind("\n", 0, first.start) + 1
    errors.error(
        "NF102",
        "a spec begins with the line `nestflow 1`",
        first.span,
        "put `nestflow 1` above this line",
        fix=(Edit(Span(s, line, line), "nestflow 1\n"),),
    )
    head = [Token("NAME", "nestflow", 0, 0, s), Token("NUMBER", "1", 0, 0, s), Token("SEMI", ";", 0, 0, s)]
    return head + tokens
