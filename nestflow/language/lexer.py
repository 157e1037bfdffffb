"""Text to tokens: words, numbers, strings, operators, line ends, with exact places; comments are kept aside.

A wrong character costs one diagnostic and is replaced by what was probably meant, so that the parser does not
stumble over it a second time.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from nestflow.diagnostics.core import Collector, Diagnostic, Edit, NestflowError, Source, Span

MAX_DIGITS = 4300
MAX_TOKENS = 100_000
MAX_ERRORS = 40  # more than are shown: a text with so many wrong characters is no spec
RESERVED = {"if": "IF", "else": "ELSE", "and": "AND", "or": "OR", "not": "NOT", "in": "IN", "of": "OF", "as": "AS"}
OPERATORS = {
    "(": "LPAR",
    ")": "RPAR",
    "[": "LSQB",
    "]": "RSQB",
    "{": "LBRACE",
    "}": "RBRACE",
    ",": "COMMA",
    ":": "COLON",
    ".": "DOT",
    ";": "SEMI",
    "=": "ASSIGN",
    "|>": "PIPE",
    "+": "PLUS",
    "-": "MINUS",
    "*": "MUL",
    "/": "MUL",
    "//": "MUL",
    "%": "MUL",
    "@": "MUL",
    "^": "POW",
    "==": "CMP",
    "!=": "CMP",
    "<": "CMP",
    "<=": "CMP",
    ">": "CMP",
    ">=": "CMP",
}
# What people type from other languages: (what to read it as, help).
FOREIGN = {
    "**": ("^", "a power is written `a ^ b`"),
    "&&": ("and", "write `and`"),
    "||": ("or", "write `or`"),
    "&": ("and", "write `and`"),
    "|": ("|>", "a pipe is written `x |> f`"),
    "->": (None, "a level, flow or optimizer says what it gives back with `return`"),
    "=>": (None, "a keyword argument is written `name = value`"),
    ":=": ("=", "a name is given with `=`"),
    "+=": ("=", "a name is given once: write `x = x + ...` in a flow"),
    "-=": ("=", "a name is given once: write `x = x - ...` in a flow"),
    "*=": ("=", "a name is given once: write `x = x * ...` in a flow"),
    "/=": ("=", "a name is given once: write `x = x / ...` in a flow"),
    "!": ("not", "write `not`"),
    "\\": (None, "a line that ends with an operator, a comma or an open bracket goes on by itself"),
    "\u2212": ("-", "this is the sign U+2212; the minus of a keyboard is meant"),
    "\u2013": ("-", "this is a dash; the minus of a keyboard is meant"),
    "\u00d7": ("*", "write `*`"),
    "\u00b7": ("*", "write `*`"),
    "\u2264": ("<=", "write `<=`"),
    "\u2265": (">=", "write `>=`"),
    "\u2260": ("!=", "write `!=`"),
    "\u00a0": (None, "this is a no-break space; write an ordinary one"),
}
MEANT_SPACE = "\u00a0"
UNITS = frozenset(["token", "tokens", "step", "steps", "tick", "ticks", "update", "updates"])
CURLY_QUOTES = "\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019"

_TOKEN = re.compile(
    r"""(?P<SPACE>[ \t]+)
      | (?P<NL>\r?\n)
      | (?P<COMMENT>\#[^\r\n]*)
      | (?P<NAME>[^\W\d](?:[\w\u0300-\u036f]|\{\w+\})*)
      | (?P<NUMBER>\d\w*(?:\.\d\w*)?(?:(?<=[eE])[+-]\d+)?)
      | (?P<STRING>"[^"\r\n]*")
      | (?P<BAD>\*\*|&&|\|\||->|=>|:=|\+=|-=|\*=|/=)
      | (?P<OP>\|>|//|==|!=|<=|>=|[()\[\]{},:.;=+\-*/%@^<>])
      | (?P<OTHER>.)""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"\d+(?:_\d+)*(?:\.\d+(?:_\d+)*)?(?:[eE][+-]?\d+)?")
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]|\r(?!\n)"
)


class Token:
    """One word of the text. `type` may be settled again by layout; `base` is what the lexer saw."""

    __slots__ = ("_span", "base", "end", "extra", "opens", "source", "start", "text", "type")

    def __init__(self, type: str, text: str, start: int, end: int, source: Source):
        self.type = self.base = type
        self.text = text
        self.start = start
        self.end = end
        self.source = source
        self.opens = False
        self.extra: Extra | None = None
        self._span: Span | None = None

    @property
    def span(self) -> Span:
        if self._span is None:
            self._span = Span(self.source, self.start, self.end)
        return self._span

    def __repr__(self) -> str:
        return f"{self.type}({self.text!r})"


class Extra:
    """What stands around a statement and is no part of its meaning, but of its printed form."""

    __slots__ = ("blank", "closing", "comments", "doc", "trailing")

    def __init__(self) -> None:
        self.doc: list[str] = []
        self.comments: list[str] = []
        self.trailing: list[str] = []
        self.closing: list[str] = []
        self.blank = False


class Comment:
    """`#` or `##` to the end of a line; `own_line` if nothing stands before it."""

    __slots__ = ("end", "is_doc", "own_line", "start", "text")

    def __init__(self, raw: str, start: int, end: int, own_line: bool):
        self.is_doc = raw.startswith("##") and not raw.startswith("###")
        self.text = comment_text(raw[2:] if self.is_doc else raw[1:])
        self.start = start
        self.end = end
        self.own_line = own_line


def comment_text(raw: str) -> str:
    """A comment without its mark, one leading space and trailing space."""
    raw = raw.rstrip()
    return raw[1:] if raw.startswith(" ") else raw


class Places:
    """Where each character of a piece of text stands in its source (a YAML scalar may be escaped or folded)."""

    __slots__ = ("offset", "table")

    def __init__(self, offset: int = 0, table: Sequence[int] | None = None):
        self.offset = offset
        self.table = table

    def at(self, i: int) -> int:
        if self.table is None:
            return self.offset + i
        return self.table[min(i, len(self.table) - 1)]


def forbidden_characters(source: Source, errors: Collector) -> bool:
    """Report control, zero-width and direction characters; true if there are any."""
    found = False
    for n, m in enumerate(_FORBIDDEN.finditer(source.text)):
        if n == 20:
            break
        found = True
        c = m.group()
        name = unicodedata.name(c, "") or ("carriage return" if c == "\r" else "control character")
        span = Span(source, m.start(), m.end())
        errors.error(
            "NF115",
            f"U+{ord(c):04X} ({name.lower()}) may not stand in a spec: it is not seen, or changes what is seen",
            span,
            "delete it",
            fix=(Edit(span, "\n" if c == "\r" else ""),),
        )
    return found


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def tokenize(
    text: str, source: Source, errors: Collector, places: Places | None = None, comments: list[Comment] | None = None
) -> list[Token]:
    """All tokens of a text, line ends included. Comments go to `comments`; where that is None, `#` is an error."""
    at = (places or Places()).at
    direct = places is None
    out: list[Token] = []
    line_empty = True
    skip_to = 0
    for m in _TOKEN.finditer(text):
        kind = m.lastgroup
        if kind == "SPACE":
            continue
        if len(out) >= MAX_TOKENS:
            at_end = Span(source, m.start(), m.end()) if direct else None
            raise NestflowError(
                [
                    Diagnostic(
                        "NF004",
                        f"the text has more than {MAX_TOKENS:,} words and signs",
                        at_end,
                        "split it, and `use` the parts",
                    )
                ]
            )
        raw = m.group()
        start, end = (m.start(), m.end()) if direct else (at(m.start()), at(m.end() - 1) + 1)
        if start < skip_to:
            continue
        if kind == "NL":
            out.append(Token("NL", raw, start, end, source))
            line_empty = True
            continue
        if kind == "COMMENT":
            if comments is not None:
                comments.append(Comment(raw, start, end, line_empty))
            else:
                errors.error(
                    "NF108", "`#` begins no comment here", Span(source, start, end), "put the comment outside the entry"
                )
            continue
        if raw == "//" and line_empty and comments is not None and direct:
            fix = (Edit(Span(source, start, end), "#"),)
            errors.error("NF108", "`//` begins no comment", fix[0].span, "comments begin with `#`", fix=fix)
            skip_to = _line_end(text, end)
            continue
        line_empty = False
        if kind == "NAME":
            out.append(_word(raw, start, end, source, errors))
        elif kind == "OP":
            out.append(Token(OPERATORS[raw], raw, start, end, source))
        elif kind == "NUMBER":
            out.append(_number(raw, start, end, source, errors))
        elif kind == "STRING":
            out.append(Token("STRING", raw, start, end, source))
        else:
            if raw in "\"'" + CURLY_QUOTES or raw == "`":
                out.append(Token("BROKEN", raw, start, end, source))
            else:
                _foreign(raw, start, end, source, errors, out)
                if len(errors.items) > MAX_ERRORS:
                    raise NestflowError(errors.items)
    if any(t.type == "BROKEN" for t in out):
        out = _broken_strings(out, source, errors)
    return out


def _word(raw: str, start: int, end: int, source: Source, errors: Collector) -> Token:
    if raw in RESERVED:
        return Token(RESERVED[raw], raw, start, end, source)
    if raw in ("true", "false"):
        return Token("BOOL", raw, start, end, source)
    if not raw.isascii():
        raw = unicodedata.normalize("NFC", raw)
        scripts = {unicodedata.name(c, "?").split()[0] for c in raw if c.isalpha()}
        if "CYRILLIC" in scripts and "LATIN" in scripts:
            bad = next(c for c in raw if unicodedata.name(c, "").startswith("CYRILLIC"))
            errors.error(
                "NF115",
                f"the name `{raw}` mixes Latin letters with U+{ord(bad):04X} "
                f"({unicodedata.name(bad).lower()}), which looks like one",
                Span(source, start, end),
                "type the name again in one alphabet",
            )
    return Token("NAME", raw, start, end, source)


def _number(raw: str, start: int, end: int, source: Source, errors: Collector) -> Token:
    token = Token("NUMBER", raw, start, end, source)
    problem = help = fixed = None
    digits = raw.replace("_", "")
    if _NUMBER.fullmatch(raw) is None:
        m = _NUMBER.match(raw)
        good = m.group() if m else "0"
        rest = raw[len(good) :]
        if rest[:1] in "xXbBoO" and good == "0":
            problem, help = f"`{raw}` is not a number of the language", "write numbers in decimal"
        elif rest.startswith("_"):
            problem, help = f"`{raw}` is not a number", "`_` stands between digits only: `1_000`"
        elif rest in ("e", "E"):
            problem, help = f"`{raw}` has no exponent", f"write `{good}e3`, or `{good}`"
        else:
            problem, help = (
                f"`{raw}` is a number with letters on it",
                f"write `{good} {rest}`, or a name that begins with a letter",
            )
            fixed = f"{good} {rest}" if rest in UNITS else None
        token.text = good
    elif digits.isdigit() and len(digits) > MAX_DIGITS:
        problem, help = (
            f"this integer has {len(digits)} digits; {MAX_DIGITS} are the most",
            "write it as a float: `1e300`",
        )
        token.text = "0"
    elif digits.isdigit() and len(digits) > 1 and digits[0] == "0" and digits.strip("0"):
        token.text = fixed = digits.lstrip("0")
        problem, help = f"`{raw}` begins with a zero", f"write `{fixed}`"
    elif not digits.isdigit() and float(digits) in (float("inf"),):
        problem, help = f"`{raw}` is larger than any float (1.8e308)", "write `inf` where no bound is meant"
        token.text = "0.0"
    if problem:
        span = Span(source, start, end)
        errors.error("NF109", problem, span, help, fix=(Edit(span, fixed),) if fixed else ())
    return token


def _foreign(raw: str, start: int, end: int, source: Source, errors: Collector, out: list[Token]) -> None:
    """A character or operator that the language does not have."""
    meant, help = FOREIGN.get(raw, (None, None))
    if raw == "$":
        help = "a name is written as it is: `dim`; inside a name a loop variable is `{p}`"
    if raw == "?":
        help = "a choice is written `a if condition else b`"
    span = Span(source, start, end)
    instead = " " if raw == MEANT_SPACE else meant
    errors.error(
        "NF108",
        f"`{raw}` is not part of the language"
        if raw.isprintable() and raw.strip()
        else f"the character U+{ord(raw):04X} is not part of the language",
        span,
        help,
        fix=(Edit(span, instead),) if instead else (),
    )
    if meant is not None:
        type = RESERVED.get(meant) or OPERATORS[meant]
        out.append(Token(type, meant, start, end, source))


def _broken_strings(tokens: list[Token], source: Source, errors: Collector) -> list[Token]:
    """Quotes that are no `"..."`: 'single', curly, or without an end. Each becomes one STRING token."""
    out: list[Token] = []
    i = 0
    while i < len(tokens):
        t = tokens[i]
        if t.type != "BROKEN":
            out.append(t)
            i += 1
            continue
        j = i + 1
        while j < len(tokens) and tokens[j].type not in ("NL", "BROKEN"):
            j += 1
        closed = j < len(tokens) and tokens[j].type == "BROKEN"
        while not closed and j > i + 2 and tokens[j - 1].type in ("RPAR", "RSQB", "RBRACE"):
            j -= 1  # the brackets at the end of the line close what was opened before the string
        end = tokens[j].end if closed else tokens[j - 1].end
        span = Span(source, t.start, end)
        inner = source.text[t.end : tokens[j].start if closed else end].strip("'")
        if t.text == '"' or not closed:
            errors.error(
                "NF107", "this string is never closed: a string ends on its own line", span, 'add the closing `"`'
            )
        else:
            errors.error(
                "NF107",
                f"a string is written in straight double quotes, not in {t.text}",
                span,
                f'write `"{inner}"`',
                fix=(Edit(span, f'"{inner}"'),) if '"' not in inner else (),
            )
        out.append(Token("STRING", '"' + inner.replace('"', "") + '"', t.start, end, source))
        i = j + 1 if closed else j
        if len(errors.items) > MAX_ERRORS:
            raise NestflowError(errors.items)
    return out
