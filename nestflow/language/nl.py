"""Reads the .nl surface: text to tree, all mistakes of one text in one run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

from nestflow.diagnostics.core import Collector, Diagnostic, NestflowError, Source, Span
from nestflow.language import tree as T
from nestflow.language.checks import check_tree, check_words
from nestflow.language.comments import attach
from nestflow.language.failure import Failure
from nestflow.language.layout import MAX_ERRORS, Layout, check_header
from nestflow.language.lexer import Comment, Token, forbidden_characters, tokenize
from nestflow.language.order import ordered
from nestflow.language.repairs import parses
from nestflow.language.sentences import explain

STATEMENT_ENDS = frozenset(["_SEP", "RBRACE", "LBRACE", "$END"])
MAX_CHARACTERS = 1_000_000


def parse_nl(text: str, name: str) -> T.Spec:
    """The tree of a spec in .nl text; `name` is what diagnostics call the file.

    Raises NestflowError with every mistake found (NF1xx), at most 20.
    """
    source = Source(name, text)
    errors = Collector()
    check_text(source, errors)
    comments: list[Comment] = []
    tokens = tokenize(text, source, errors, None, comments)
    return parse_spec(check_header(tokens, errors), source, errors, lambda laid: attach(laid, comments, text))


def check_text(source: Source, errors: Collector) -> None:
    """Refuse texts that are empty, too long, or hold characters that cannot be seen."""
    text = source.text
    if len(text) > MAX_CHARACTERS:
        raise NestflowError(
            [
                Diagnostic(
                    "NF004",
                    f"the text has {len(text):,} characters; {MAX_CHARACTERS:,} are the most",
                    Span(source, 0, 0),
                    "split it, and `use` the parts",
                )
            ]
        )
    if forbidden_characters(source, errors):
        errors.stop_on_errors()
    if not any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        raise NestflowError(
            [
                Diagnostic(
                    "NF102",
                    "the text holds no statement",
                    Span(source, 0, 0),
                    "a spec begins with the line `nestflow 1`",
                )
            ]
        )


Around = tuple[list[str], list[str], list[str]]


def parse_spec(
    tokens: list[Token],
    source: Source,
    errors: Collector,
    keep: Callable[[list[Token]], Around],
    doc: str | None = None,
) -> T.Spec:
    """The tree of a spec whose tokens are known, from either front end.

    keep: gives the comments to the laid-out tokens, and returns those of the header, its docs, and of the footer.
    """
    laid = Layout(tokens, errors).run()
    check_words(laid, errors)
    header, header_doc, footer = keep(laid)
    found = run_parser(laid, "start", errors)
    version = 0
    body: tuple[T.Statement, ...] = ()
    if found is not None:
        _, number, body = found
        version = _version(number, errors)
        check_tree(body, errors)
    raise_sorted(errors)
    doc = "\n".join(header_doc).strip("\n") or doc
    spec = T.Spec(version, body, source, doc, tuple(header), tuple(footer))
    return ordered(spec)


def parse_expression(text: str, name: str = "<expression>") -> T.Expr:
    """The tree of one expression, as in `--set dim=2 * 64`."""
    source = Source(name, text)
    errors = Collector()
    check_text(source, errors)
    laid = Layout(tokenize(text, source, errors), errors, statements=False).run()
    found = run_parser(laid, "expression", errors)
    errors.stop_on_errors()
    check_tree((found,), errors)
    errors.stop_on_errors()
    return found


def raise_sorted(errors: Collector) -> None:
    """Raise what was gathered, in the order of the text."""
    if errors.errors:
        raise NestflowError(sorted(errors.errors, key=lambda d: d.span.start if d.span else -1))


def _version(number: Token, errors: Collector) -> int:
    if number.text != "1":
        errors.error(
            "NF103",
            f"this is version 1 of the language, and the text asks for {number.text}",
            number.span,
            "write `nestflow 1`, or install a newer nestflow",
        )
    return 1


@cache
def _lark() -> Any:
    from nestflow.language.builder import Builder
    from nestflow.language.make_tables import GRAMMAR, build, restore, stamp

    try:
        from nestflow.language import nl_tables
    except ImportError:
        return build(transformer=Builder())
    if stamp(GRAMMAR.read_text(encoding="utf-8")) != nl_tables.STAMP:
        return build(transformer=Builder())
    return restore(nl_tables.DATA, nl_tables.MEMO, transformer=Builder())


def run_parser(tokens: list[Token], start: str, errors: Collector) -> Any:
    """Feed laid-out tokens to the LALR tables; every statement is tried. None if nothing could be made of the text."""
    from lark.exceptions import UnexpectedToken
    from lark.parsers.lalr_parser_state import ParseConf, ParserState

    tables = _lark().parser.parser.parser
    # lark's parser asks of a token nothing but its `type`; the lexer it would pull from is not used
    state: Any = ParserState(ParseConf(tables.parse_table, tables.callbacks, start), cast("Any", None))
    run = _Run(state, tokens, errors, start == "start")
    end = tokens[-1].end if tokens else 0
    while run.i < len(tokens):
        token = tokens[run.i]
        run.before(token)
        try:
            state.feed_token(token)
        except UnexpectedToken as e:
            if not run.recover(frozenset(e.expected)):
                return None
            continue
        run.after(token)
    tokens.append(Token("$END", "", end, end, tokens[-1].source))
    try:
        found = state.feed_token(tokens[-1], True)
    except UnexpectedToken as e:
        run.i = len(tokens) - 1
        if not run.recover(frozenset(e.expected)):
            return None
        try:
            found = state.feed_token(tokens[-1], True)
        except UnexpectedToken:
            return None
    return found


class _Run:
    """The parser's stack as it stood where each open statement began: what recovery goes back to."""

    def __init__(self, state: Any, tokens: list[Token], errors: Collector, statements: bool):
        self.state = state
        self.tokens = tokens
        self.errors = errors
        self.statements = statements
        self.i = 0
        self.frames: list[tuple[int, int]] = [
            (1, 0)
        ]  # per body: height of the stack, and token, where its statement began

    def before(self, token: Token) -> None:
        if token.opens and token.type != "NESTFLOW":
            self.frames[-1] = (len(self.state.state_stack), self.i)

    def after(self, token: Token) -> None:
        self.i += 1
        if token.type == "LBRACE":
            self.frames.append((len(self.state.state_stack), self.i))
        elif token.type == "RBRACE" and len(self.frames) > 1:
            self.frames.pop()
        elif self.i == 2 and self.tokens[0].type == "NESTFLOW":
            self.frames[-1] = (len(self.state.state_stack), 0)

    def report(self, expected: frozenset[str]) -> None:
        height, start = self.frames[-1]
        last_token = next((t for t in self.tokens[self.i :] if t.type in STATEMENT_ENDS), self.tokens[-1])
        first, last = self.tokens[start].start, last_token.end
        if any(d.span is not None and first <= d.span.start < last for d in self.errors.errors):
            return  # the lexer or the layout said what is wrong with this statement
        taken = parses(self.state.parse_conf.states, self.state.state_stack[:height]) if self.statements else None
        d = explain(Failure(self.tokens, self.i, start, expected, self.state.value_stack[height - 1 :], taken))
        self.errors.error(d.code, d.message, d.span, d.help, d.related, d.fix)

    def recover(self, expected: frozenset[str]) -> bool:
        """Report, forget the statement, and go to its end, or into its body. False where that is not possible."""
        self.report(expected)
        height, _ = self.frames[-1]
        wrong = self.tokens[self.i]
        if wrong.text == ";" and any(d.span == wrong.span for d in self.errors.errors):
            self.i += 1  # it ends no statement: what stands behind it belongs to this one
        if (
            not self.statements
            or len(self.errors.errors) >= MAX_ERRORS
            or (self.i < 2 and self.tokens[0].type == "NESTFLOW")
        ):
            return False
        del self.state.state_stack[height:]
        del self.state.value_stack[height - 1 :]
        while self.i < len(self.tokens):
            token = self.tokens[self.i]
            if token.type in ("_SEP", "RBRACE", "$END"):
                break
            if token.type == "LBRACE":  # a body whose head is wrong is read for mistakes of its own
                header = self.frames[-1][1] == 0 and self.tokens[0].type == "NESTFLOW"
                for type in ("_SEP", "IFS", "BOOL") if header else ("IFS", "BOOL"):
                    self.state.feed_token(Token(type, "true", token.start, token.start, token.source))
                break
            self.i += 1
        return True
