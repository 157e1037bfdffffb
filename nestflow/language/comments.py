"""Gives each comment to the statement that it stands at, so that printing keeps it."""

from __future__ import annotations

from nestflow.language.lexer import Comment, Extra, Token


def attach(tokens: list[Token], comments: list[Comment], text: str) -> tuple[list[str], list[str], list[str]]:
    """Fills `extra` of the tokens that open statements (and of `}`); returns header comments, header docs, footer."""
    header: list[str] = []
    header_doc: list[str] = []
    footer: list[str] = []
    owners = _owners(tokens)
    anchors: dict[int, int] = {}
    shown = [i for i, t in enumerate(tokens) if t.type != "_SEP"]
    n = 0
    for c in comments:
        while n < len(shown) and tokens[shown[n]].start < c.start:
            n += 1
        following = tokens[shown[n]] if n < len(shown) else None
        if c.own_line and following is None:
            footer.append(c.text)
            continue
        if c.own_line and following is not None and (following.opens or following.type == "RBRACE"):
            target = following
            anchors.setdefault(id(target), c.start)
        else:
            target = owners[shown[n - 1]] if n else following
        if target is None:
            footer.append(c.text)
        elif target.type == "NESTFLOW":
            (header_doc if c.is_doc else header).append(c.text)
        else:
            _add(_extra(target), c, target.type == "RBRACE")
    _mark_blanks(tokens, comments, anchors, text)
    return header, header_doc, footer


def _owners(tokens: list[Token]) -> list[Token | None]:
    """For each token the one that opens the statement it belongs to; a body's braces belong to its statement."""
    owners: list[Token | None] = []
    stack: list[Token | None] = []
    current: Token | None = None
    for t in tokens:
        if t.opens:
            current = t
        if t.type == "RBRACE" and stack:
            current = stack.pop()
        owners.append(current)
        if t.type == "LBRACE":
            stack.append(current)
    return owners


def _extra(t: Token) -> Extra:
    if t.extra is None:
        t.extra = Extra()
    return t.extra


def _add(extra: Extra, c: Comment, closing: bool) -> None:
    if closing:
        extra.closing.append(c.text)
    elif c.is_doc:
        extra.doc.append(c.text)
    elif c.own_line:
        extra.comments.append(c.text)
    else:
        extra.trailing.append(c.text)


def _mark_blanks(tokens: list[Token], comments: list[Comment], anchors: dict[int, int], text: str) -> None:
    """A statement has `blank` if an empty line stands above it and its comments."""
    for i, t in enumerate(tokens):
        if not t.opens or i == 0 or tokens[i - 1].type == "LBRACE":
            continue
        start = anchors.get(id(t), t.start)
        above = text[max(0, start - 400) : start]
        space = above[len(above.rstrip()) :]
        if space.count("\n") >= 2:
            _extra(t).blank = True
