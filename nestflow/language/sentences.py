"""A sentence for each way in which a statement can fail to parse."""

from __future__ import annotations

from itertools import pairwise

from nestflow.diagnostics.core import Diagnostic, Edit, Span
from nestflow.diagnostics.suggest import did_you_mean, nearest
from nestflow.language.failure import (
    ENDS,
    FIELDS_OF_A_LINE,
    NEEDS_BODY,
    OPERATOR_TYPES,
    VALUE_ENDS,
    VALUE_STARTS,
    Failure,
    expected_words,
    show,
    source_of,
)
from nestflow.language.layout import OPENERS, WANTS_MORE
from nestflow.language.lexer import RESERVED, Token
from nestflow.language.repairs import repair, semicolon, sentence
from nestflow.language.words import EXACT_WORDS, EXAMPLES, FOREIGN_WORDS


def explain(f: Failure) -> Diagnostic:
    """The diagnostic for one failure."""
    for rule in (
        _foreign_first_word,
        _optimizer_as_field,
        _arguments_without_function,
        _dangling,
        _bare_pipe,
        _reserved,
        _missing_else,
        _body,
        _equals,
        _chain,
        _bare_statement,
        _semicolon,
        _ends_early,
        _behind_a_bracket,
        _nothing_between,
        _separator,
        _no_operator,
    ):
        d = rule(f)
        if d is not None:
            return d
    if f.token.text == "else":
        return Diagnostic(
            "NF101",
            "this `else` belongs to no `if`",
            f.token.span,
            "a choice is `a if condition else b`; a statement's `else` stands right after the `}` of its `if`",
        )
    example = EXAMPLES.get(f.first.type)
    form = f"for example `{example}`" if example else None
    found = repair(f.tokens, f.i, f.start, f.taken) if f.taken else None
    if found is not None:
        return sentence(f.tokens, f.start, found, form)
    return _last_resort(f, form)


def _last_resort(f: Failure, form: str | None) -> Diagnostic:
    """More than one slip: what the statement was until here, and what may follow."""
    if f.before is None:
        help = "a field is `field value`, a name `name = value`; declarations begin with their word, as `level`"
        return Diagnostic("NF101", f"{show(f.token)} begins no statement", f.token.span, help)
    if f.token.type in ("RPAR", "RSQB") and "COMMA" in f.expected and any(t.type == "IN" for t in f.words):
        return Diagnostic("NF101", "an interval has two ends", f.token.span, "for example `[1, 65536]` or `[0, vocab)`")
    head = source_of(f, f.first.start, f.before.end)
    head = head if len(head) <= 40 else "..." + head[-37:]
    help = f"{expected_words(f.expected)} was expected" + (f"; {form}" if form else "")
    return Diagnostic("NF101", f"{show(f.token)} cannot follow `{head}`", f.token.span, help)


def _foreign_first_word(f: Failure) -> Diagnostic | None:
    word = f.first
    if word.type != "NAME" or f.i == f.start:
        return None
    if word.text in FOREIGN_WORDS and f.token.type in VALUE_STARTS | {"LBRACE", "COLON", "ASSIGN", "COMMA"} | ENDS:
        said = f"`{word.text}` is not a word of the language"
        return Diagnostic("NF117", said, word.span, FOREIGN_WORDS[word.text], fix=_exact(f))
    second = f.tokens[f.start + 1] if f.start + 1 < len(f.tokens) else None
    if second is None or (second.type not in ("NAME", "LBRACE", "STRING") and f.token.type != "LBRACE"):
        return None
    near = nearest(word.text, OPENERS)
    if near and near != word.text and f.token.type in ("LBRACE", "ASSIGN", "COLON", "IN", "AS", "OF", "DOT"):
        help = did_you_mean(word.text, OPENERS)
        return Diagnostic("NF117", f"`{word.text}` opens no statement", word.span, help)
    return None


def _optimizer_as_field(f: Failure) -> Diagnostic | None:
    """`optimizer adamw(1e-3)` in a level, where the field is `update`."""
    braces = sum((t.type == "LBRACE") - (t.type == "RBRACE") for t in f.tokens[: f.start])
    if f.first.type != "OPTIMIZER" or braces < 1 or f.i == f.start:
        return None
    said = "`optimizer` declares one, at the top of a spec"
    fix = (Edit(f.first.span, "update"),)
    return Diagnostic("NF117", said, f.first.span, "in a level the field is `update`, as `update adamw(1e-3)`", fix=fix)


def _arguments_without_function(f: Failure) -> Diagnostic | None:
    """`x |> (lr = 1)`."""
    bracket = f.in_brackets
    if f.token.type != "ASSIGN" or bracket is None or bracket.type != "LPAR" or f.before is None:
        return None
    at = next(i for i, t in enumerate(f.tokens) if t is bracket)
    if at == f.start or f.tokens[at - 1].type in VALUE_ENDS:
        return None
    said = f"`{f.before.text} =` names an argument, and no function stands before this bracket"
    return Diagnostic("NF101", said, bracket.span, "a call is `f(name = value)`", ())


def _exact(f: Failure) -> tuple[Edit, ...]:
    """The word that a foreign first word stands for; `let` and its like go, with the space after them."""
    meant = EXACT_WORDS.get(f.first.text)
    if meant is None:
        return ()
    end = f.first.end if meant else f.tokens[f.start + 1].start
    return (Edit(Span(f.first.source, f.first.start, end), meant),)


def _bare_pipe(f: Failure) -> Diagnostic | None:
    """`h + h |> f`: say both things that can be meant."""
    if f.token.type != "PIPE" or f.before is None or f.before.type not in VALUE_ENDS:
        return None
    values = list(f.stack)
    if len(values) < 2 or isinstance(values[-1], Token):
        return None
    last = values[-1].span
    k = len(values) - 1
    while k > 0 and (not isinstance(values[k - 1], Token) or values[k - 1].type in OPERATOR_TYPES | {"NOT"}):
        if not isinstance(values[k - 1], Token) and not isinstance(values[k], Token):
            break
        k -= 1
    first = values[k].span
    if first.start == last.start:
        if len(values) == 1 or not isinstance(values[-1], Token):
            whole = source_of(f, last.start, last.end)
            return Diagnostic(
                "NF104",
                "a pipe cannot start from an operation without brackets",
                f.token.span,
                f"write `({whole}) {_rest(f)}`",
                fix=(Edit(Span(f.token.source, last.start, last.end), f"({whole})"),),
            )
        return None
    left, operand, rest = source_of(f, first.start, last.start), source_of(f, last.start, last.end), _rest(f)
    return Diagnostic(
        "NF104",
        "a pipe starts from a name, a call, an index or brackets, not from a bare operation",
        f.token.span,
        f"write `{left} ({operand} {rest})` or `({left} {operand}) {rest}`",
    )


def _rest(f: Failure) -> str:
    """From the pipe to the end of its part of the statement."""
    depth = 0
    end = f.token.end
    for t in f.tokens[f.i : f.i + 60]:
        if t.type in ("LPAR", "LSQB", "LRECORD"):
            depth += 1
        elif t.type in ("RPAR", "RSQB", "RRECORD"):
            depth -= 1
        if (
            depth < 0
            or t.type in ENDS
            or (depth == 0 and t.type in ("COMMA", "IF", "ELSE", "LBRACE", "PLUS", "MINUS", "MUL", "CMP"))
        ):
            break
        end = t.end
    return source_of(f, f.token.start, end)


def _reserved(f: Failure) -> Diagnostic | None:
    t = f.token
    if t.base not in RESERVED.values() or t.text not in RESERVED:
        return None
    following = f.tokens[f.i + 1] if f.i + 1 < len(f.tokens) else None
    if f.i == f.start and t.type != "IFS":
        if t.type == "ELSES" or t.text == "else":
            return Diagnostic(
                "NF101", "this `else` belongs to no `if`", t.span, "it stands right after the `}` of its `if`"
            )
        return Diagnostic(
            "NF114", f"`{t.text}` is a reserved word, and opens no statement", t.span, "choose another name"
        )
    if (
        "NAME" in f.expected
        and "_SEP" not in f.expected
        and following is not None
        and following.type in {"ASSIGN", "COMMA", "LPAR", "COLON", "RPAR", "RSQB", "DOT", "LBRACE", "PIPE"} | ENDS
    ):
        return Diagnostic("NF114", f"`{t.text}` is a reserved word, and no name", t.span, "choose another name")
    return None


def _missing_else(f: Failure) -> Diagnostic | None:
    if (
        "ELSE" in f.expected
        and f.token.type in ENDS | {"COMMA", "RPAR", "RSQB", "RRECORD"}
        and any(t.type == "IF" for t in f.words)
    ):
        where = next(t for t in reversed(f.words) if t.type == "IF")
        return Diagnostic(
            "NF112", "a choice needs both values: `a if condition else b`", where.span, "add `else` and the other value"
        )
    return None


def _body(f: Failure) -> Diagnostic | None:
    if f.token.type != "LBRACE":
        if "LBRACE" in f.expected and f.first.type in NEEDS_BODY and f.token.type in ENDS:
            head = source_of(f, f.first.start, f.tokens[f.i - 1].end)
            return Diagnostic(
                "NF112",
                f"`{head}` has no body",
                Span(f.first.source, f.first.start, f.tokens[f.i - 1].end),
                f"for example `{EXAMPLES.get(f.first.type, head + ' { ... }')}`",
            )
        return None
    words = f.words
    if words and words[0].text == "memory" and len(words) == 2 and words[1].type == "NAME":
        return Diagnostic(
            "NF101",
            f"the memory `{words[1].text}` says no kind",
            words[1].span,
            f"write `memory {words[1].text} : matrix {{ ... }}`",
        )
    if words and f.before is not None and f.before.type in VALUE_ENDS and words[0].type not in NEEDS_BODY:
        name = words[0].text
        return Diagnostic(
            "NF101",
            f"a body in braces cannot follow `{name}`",
            f.token.span,
            "only level, flow, optimizer, execution, extends, for, repeat, if and `memory name : kind` have bodies",
        )
    return None


def _equals(f: Failure) -> Diagnostic | None:
    t = f.token
    if t.type != "ASSIGN":
        return None
    if f.first.type in ("IFS", "ASSERT") or (any(w.type == "IF" for w in f.words) and not f.in_brackets):
        fix = (Edit(t.span, "=="),)
        return Diagnostic("NF113", "`=` gives a name a value; `==` compares", t.span, "write `==`", fix=fix)
    above = _line_above(f, f.before)
    if any(w.type == "ASSIGN" for w in f.words) and not f.in_brackets:
        return Diagnostic(
            "NF113",
            "there is a second `=` in this statement",
            t.span,
            above or "one statement gives one value; `==` compares",
        )
    if f.i == f.start:
        return Diagnostic("NF101", "`=` has no name before it", t.span, "write `name = value`")
    if f.first.type == "NAME" and f.words and len(f.words) > 1 and not f.in_brackets:
        return Diagnostic(
            "NF113",
            f"a field has no `=`, and only a plain name can be given with it: `{source_of(f, f.first.start, t.start)}`",
            t.span,
            f"write `{f.first.text} value` for a field, `name = value` for a name",
        )
    return None


def _dangling(f: Failure) -> Diagnostic | None:
    """A line that ends with an operator took in the next, which begins with a word that opens a statement."""
    for a, b in pairwise([*f.words, f.token]):
        opens = b.text in OPENERS or b.text in FIELDS_OF_A_LINE
        if a.type in WANTS_MORE and opens and "\n" in a.source.text[a.end : b.start]:
            help = f"finish the line, or delete the `{a.text}`"
            return Diagnostic("NF112", f"nothing follows `{a.text}`", a.span, help)
    return None


def _line_above(f: Failure, before: Token | None) -> str | None:
    """Help for a statement that took in the next line because its own ends with an operator."""
    words = f.words + [f.token]
    for a, b in pairwise(words):
        if a.type in WANTS_MORE and "\n" in a.source.text[a.end : b.start]:
            return f"the line that ends with `{a.text}` goes on in the next one: finish it, or delete the `{a.text}`"
    return None


def _chain(f: Failure) -> Diagnostic | None:
    if (
        f.token.type == "CMP"
        and f.before is not None
        and f.before.type in VALUE_ENDS
        and any(w.type == "CMP" for w in f.words)
    ):
        return Diagnostic("NF101", "comparisons do not chain", f.token.span, "write `a < b and b < c`")
    return None


def _bare_statement(f: Failure) -> Diagnostic | None:
    """An expression that stands alone."""
    second = f.tokens[f.start + 1] if f.i > f.start else None
    if f.token.type == "ASSIGN" and f.first.type == "NAME" and second and second.type == "LPAR" and f.in_brackets:
        end = next((t.start for t in f.tokens[f.i :] if t.type in ENDS), f.tokens[-1].end)
        whole = source_of(f, f.first.start, end)
        return Diagnostic(
            "NF101",
            f"`{f.first.text}(...)` alone is no statement",
            f.first.span,
            f"put its field before it, as in `update {whole}`, or give it a name: `name = {whole}`",
        )
    if f.i != f.start + 1 or f.first.type != "NAME" or f.token.type not in OPERATOR_TYPES | {"DOT", "IF", "IN"}:
        return None
    end = next((t.start for t in f.tokens[f.i :] if t.type in ENDS), f.tokens[-1].end)
    whole = source_of(f, f.first.start, end)
    return Diagnostic(
        "NF101",
        "an expression alone is no statement",
        f.first.span,
        f"give it a name, `name = {whole}`, or write `return {whole}`",
    )


def _semicolon(f: Failure) -> Diagnostic | None:
    """`input tokens ; int[T]`: the sign beside it on the keyboard was meant."""
    if f.token.text != ";" or f.before is None or f.taken is None:
        return None
    found = semicolon(f.tokens, f.i, f.start, f.taken)
    example = EXAMPLES.get(f.first.type)
    return found and sentence(f.tokens, f.start, found, f"for example `{example}`" if example else None)


def _behind_a_bracket(f: Failure) -> Diagnostic | None:
    """A bracket that ends a statement begins a line, and more stands behind it."""
    before = f.before
    if before is None or before.type not in ("RPAR", "RSQB") or f.token.type not in VALUE_STARTS or f.i - f.start < 3:
        return None
    text, line = f.token.source.text, f.token.source.text.rfind("\n", 0, before.start) + 1
    if text[line : before.start].strip() or f.first.start >= line or "\n" in text[before.end : f.token.start]:
        return None
    said = f"{show(f.token)} stands behind the `{before.text}` that ends what line {f.first.span.line} began"
    return Diagnostic("NF101", said, f.token.span, "a statement begins a line of its own, or stands after `;`")


def _ends_early(f: Failure) -> Diagnostic | None:
    t, before = f.token, f.before
    if t.type not in ENDS or before is None:
        return None
    head = source_of(f, f.first.start, before.end)
    span = Span(before.source, before.start, before.end)
    if before.type in WANTS_MORE or before.type in ("LPAR", "LSQB"):
        return Diagnostic(
            "NF112", f"nothing follows `{before.text}`", span, f"finish the line, or delete the `{before.text}`"
        )
    example = EXAMPLES.get(f.first.type)
    if before.type == "NESTFLOW":
        fix = (Edit(Span(before.source, before.end, before.end), " 1"),)
        return Diagnostic("NF103", "the version of the language is missing", span, "write `nestflow 1`", fix=fix)
    if f.i - f.start == 1:
        if f.first.type in EXAMPLES:
            return Diagnostic("NF112", f"`{before.text}` says nothing yet", span, f"for example `{example}`")
        return Diagnostic(
            "NF112",
            f"`{before.text}` has no value",
            span,
            f"a field is `{before.text} value`, a name is `{before.text} = value`",
        )
    return Diagnostic(
        "NF112",
        f"`{head}` ends too early; {expected_words(f.expected - {'_SEP', '$END', 'RBRACE'})} was expected",
        span,
        f"for example `{example}`" if example else None,
    )


def _nothing_between(f: Failure) -> Diagnostic | None:
    t, before = f.token, f.before
    if before is None or not (before.type in WANTS_MORE or before.type in ("LPAR", "LSQB", "LRECORD")):
        return None
    if t.type in OPERATOR_TYPES | {"COMMA", "RPAR", "RSQB", "RRECORD", "COLON", "DOT", "ASSIGN", "IF", "ELSE"}:
        return Diagnostic(
            "NF101",
            f"a value is missing between `{before.text}` and {show(t)}",
            t.span,
            _line_above(f, before)
            or ("to do something n times: `repeat n as i { ... }`" if before.type == t.type == "DOT" else None)
            or "write the value, or delete one of the two",
        )
    return None


def _separator(f: Failure) -> Diagnostic | None:
    """What other languages put after a field's name, between fields, or around a list."""
    t, before = f.token, f.before
    if before is None:
        return None
    named = f.first.text == "memory" and f.i - f.start == 2
    if (
        t.type in ("COMMA", "COLON")
        and f.in_brackets is None
        and f.first.type == "NAME"
        and f.i - f.start > 1
        and not named
    ):
        said, help = f"{show(t)} separates no statements", "statements end with their line, or with `;`"
        return Diagnostic("NF101", said, t.span, help, fix=(Edit(t.span, ";"),))
    if t.type == "COLON" and f.i == f.start + 1 and f.first.type == "NAME":
        end = f.tokens[f.i + 1].start if f.i + 1 < len(f.tokens) and f.tokens[f.i + 1].type in VALUE_STARTS else t.end
        fix = (Edit(Span(t.source, f.first.end, end), " "),)
        help = f"a field is `{f.first.text} value`, a name `{f.first.text} = value`"
        return Diagnostic("NF101", f"no `:` stands after `{f.first.text}`", t.span, help, fix=fix)
    if t.type == "COMMA" and f.in_brackets is not None and f.in_brackets.type == "LPAR" and "RPAR" in f.expected:
        return Diagnostic("NF101", "there are no values in round brackets", t.span, "a list is `[a, b]`")
    return None


def _no_operator(f: Failure) -> Diagnostic | None:
    t, before = f.token, f.before
    if before is None or before.type not in VALUE_ENDS or t.type not in VALUE_STARTS:
        return None
    above = _line_above(f, before)
    if above:
        return Diagnostic("NF111", f"there is no operator between `{before.text}` and {show(t)}", t.span, above)
    bracket = f.in_brackets
    if bracket is not None:
        help = f"entries are separated by commas: `{before.text}, {t.text}`"
    elif f.first.type in EXAMPLES and not f.expected & OPERATOR_TYPES:
        return None
    elif t.type == "NAME":
        pipe, product = f"{before.text} |> {t.text}", f"{before.text} * {t.text}"
        help = f"a pipe is `{pipe}`, a product `{product}`; a new statement begins on a new line or after `;`"
    else:
        help = "put an operator between them, or a line end or `;` if a new statement begins"
    return Diagnostic("NF111", f"there is no operator between `{before.text}` and {show(t)}", t.span, help)
