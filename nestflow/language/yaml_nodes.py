"""YAML text to nodes with exact places, strictly: what YAML does on its own (types, merging, aliases, tags) is off.

PyYAML's `compose` gives the marks. Scalars are never turned into values here: the expression grammar reads them.
"""

# pyright: basic
# (lark and PyYAML have few types)

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import yaml
import yaml.composer
import yaml.parser
import yaml.reader
import yaml.resolver
import yaml.scanner

from nestflow.diagnostics.core import Collector, Diagnostic, NestflowError, Related, Source, Span
from nestflow.language.lexer import Comment, Places

MAX_DEPTH = 100
MAX_NODES = 20_000
STR = "tag:yaml.org,2002:str"
NULL = "tag:yaml.org,2002:null"
_ALLOWED = frozenset((STR, NULL, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"))
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))


class StrictLoader(
    yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, yaml.resolver.BaseResolver
):
    """Composes one document; refuses tags, `<<`, deep nesting and aliases that blow up or contain themselves."""

    def __init__(self, source: Source):
        yaml.reader.Reader.__init__(self, source.text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        yaml.resolver.BaseResolver.__init__(self)
        self.source = source
        self.depth = 0
        self.open_anchors: set[str] = set()
        self.sizes: dict[int, int] = {}
        self.nodes = 0
        self.scalars: list[tuple[int, int]] = []

    def span(self, x: Any) -> Span:
        return Span(self.source, x.start_mark.index, max(x.end_mark.index, x.start_mark.index))

    def fail(self, code: str, message: str, x: Any, help: str | None = None) -> NestflowError:
        return NestflowError([Diagnostic(code, message, self.span(x), help)])

    def resolve(self, kind: type[Any], value: Any, implicit: Any) -> str:
        """Nothing but null has a type of its own: `on`, `1:30`, `3e-4` stay what was written."""
        if kind is yaml.ScalarNode:
            return NULL if implicit[0] and value in _NULLS else STR
        return "tag:yaml.org,2002:map" if kind is yaml.MappingNode else "tag:yaml.org,2002:seq"

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.open_anchors:
                raise self.fail(
                    "NF124", f"the alias `*{event.anchor}` contains itself", event, "write out what is meant"
                )
            node = super().compose_node(parent, index)
            self._count(self.sizes.get(id(node), 1), event)
            return node
        if event.tag is not None and event.tag not in ("!", *_ALLOWED):
            shown = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise self.fail("NF122", f"the tag `{shown}` means nothing here", event, "a spec holds no tags: delete it")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fail(
                "NF110", f"this is nested more than {MAX_DEPTH} deep", event, "give parts of it names under `let:`"
            )
        before = self.nodes
        if event.anchor is not None:
            self.open_anchors.add(event.anchor)
        node = super().compose_node(parent, index)
        self.open_anchors.discard(event.anchor)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode):
            self.scalars.append((node.start_mark.index, node.end_mark.index))
        self._count(1, event)
        self.sizes[id(node)] = self.nodes - before
        return node

    def _count(self, n: int, event: Any) -> None:
        self.nodes += n
        if self.nodes > MAX_NODES:
            raise self.fail(
                "NF124",
                f"with its aliases written out the text has more than {MAX_NODES:,} entries",
                event,
                "use a level, flow or optimizer with slots where things repeat",
            )


def compose(source: Source) -> tuple[Any, list[tuple[int, int]]]:
    """The root node of a YAML text, and where its scalars stand. Raises NestflowError (NF110, NF120 to NF124)."""
    loader = StrictLoader(source)
    try:
        node = loader.get_single_node()
    except yaml.YAMLError as e:
        raise _broken(e, source) from None
    if not isinstance(node, yaml.MappingNode):
        raise NestflowError(
            [Diagnostic("NF125", "a spec in YAML is a mapping", Span(source, 0, 0), "begin with `nestflow: 1`")]
        )
    errors = Collector()
    _check_keys(node, source, errors)
    errors.stop_on_errors()
    return node, sorted(loader.scalars)


def _check_keys(root: Any, source: Source, errors: Collector) -> None:
    """Keys are plain, said once, and never `<<`."""
    queue, seen_nodes = [root], set()
    while queue:
        node = queue.pop()
        if id(node) in seen_nodes or isinstance(node, yaml.ScalarNode):
            continue
        seen_nodes.add(id(node))
        if node.flow_style:
            _check_commas(node, source, errors)
        if isinstance(node, yaml.SequenceNode):
            queue.extend(node.value)
            continue
        seen: dict[str, Any] = {}
        for key, value in node.value:
            span = Span(source, key.start_mark.index, key.end_mark.index)
            if not isinstance(key, yaml.ScalarNode):
                errors.error(
                    "NF125", "a key is a word or a head, not a list or mapping", span, "quote it if it holds `{` or `[`"
                )
            elif key.value == "<<" and key.style is None:
                errors.error(
                    "NF123",
                    "`<<` does not merge here",
                    span,
                    "derive a spec with `extends my.nl:`, or give a template slots",
                )
            elif key.value in seen:
                first = seen[key.value]
                related = (Related(Span(source, first.start_mark.index, first.end_mark.index), "given here first"),)
                errors.error(
                    "NF121",
                    f"the key `{key.value}` stands twice in one mapping",
                    span,
                    "delete one of the two",
                    related,
                )
            else:
                seen[key.value] = key
            queue.append(value)


def _check_commas(node: Any, source: Source, errors: Collector) -> None:
    """`{x: f(a, b)}` are two entries to YAML, `x: f(a` and `b)`; no mistake further on would make sense."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [x for entry in node.value for x in entry]
    for item in items:
        if isinstance(item, yaml.ScalarNode) and item.style is None:
            open: list[int] = []
            for i, c in enumerate(item.value):
                if c in "([{":
                    open.append(i)
                elif c in ")]}" and open:
                    open.pop()
            if open:
                at = places(item, source).at(open[0])
                errors.error(
                    "NF127",
                    f"this `{source.text[at]}` is not closed in its entry",
                    Span(source, at, at + 1),
                    "quote it: a comma ended this entry",
                )
                errors.stop_on_errors()


_HELP = [
    (
        r"mapping values are not allowed here",
        "`: ` begins a value only after a key",
        "quote the whole entry if the `:` belongs to it",
    ),
    (r"found character '\\t'", "a tab cannot indent", "indent with spaces"),
    (r"found character '(.)' that cannot start", r"an entry cannot begin with `\1`", "quote it"),
    (
        r".*expected ',' or '\]'",
        "this list in brackets goes wrong here",
        "a comma ends an entry: quote entries that hold commas or brackets",
    ),
    (
        r"expected ',' or '\}'",
        "this mapping in braces goes wrong here",
        "a comma ends an entry: quote entries that hold commas or brackets",
    ),
    (r"expected <block end>, but found '-'", "a list begins where a key is due", "indent the `-` below its key"),
    (
        r"expected <block end>",
        "the indentation does not fit the lines above",
        "entries of one mapping begin in one column",
    ),
    (
        r"could not find expected ':'",
        "a key without its `:`",
        "write `key: value`; quote an entry that runs over several lines",
    ),
    (r"found undefined alias (.*)", r"there is no anchor \1", "write out what is meant"),
    (r"found unexpected end of stream", "the text ends inside a quoted entry", "close the quote"),
    (r"expected a single document", "a spec is one document", "delete what follows `---`"),
    (r"found unknown escape character '(.)'", r"`\\\1` is no escape", "use single quotes, where a backslash is itself"),
    (r"found duplicate anchor", "one anchor stands twice", "give the second another name"),
]


def _broken(e: yaml.YAMLError, source: Source) -> NestflowError:
    mark = getattr(e, "problem_mark", None) or getattr(e, "context_mark", None)
    at = min(mark.index if mark is not None else getattr(e, "position", 0), max(0, len(source.text) - 1))
    said = getattr(e, "problem", None) or getattr(e, "reason", None) or str(e)
    if getattr(e, "context", None) == "expected a single document in the stream":
        said = "expected a single document"
    related: tuple[Related, ...] = ()
    context = getattr(e, "context_mark", None)
    if context is not None and mark is not None and context.line != mark.line:
        related = (Related(Span(source, context.index, min(context.index + 1, len(source.text))), "it began here"),)
    related = (*related, *_slips_above(source, at))
    for pattern, message, help in _HELP:
        m = re.match(pattern, str(said))
        if m:
            return NestflowError([Diagnostic("NF120", m.expand(message), Span(source, at, at + 1), help, related)])
    return NestflowError([Diagnostic("NF120", f"this is not YAML: {said}", Span(source, at, at + 1), None, related)])


def _slips_above(source: Source, at: int) -> Iterator[Related]:
    """YAML finds out late: a quote that a line leaves open, or the line above without its `:`."""
    number = source.position(at)[0]
    for n in range(1, number):
        line = source.line(n)
        if line.count('"') % 2 and not line.lstrip().startswith(("#", "doc")):
            start = at_line(source, n) + line.rindex('"')
            yield Related(Span(source, start, start + 1), "this quote is not closed in its line")
            return
    above = next((n for n in range(number - 1, 0, -1) if source.line(n).strip()), None)
    if above is not None and re.fullmatch(r"[ ]*(- )?[\w(), =]+[;.,]? *[^:#]*", source.line(above)):
        start = at_line(source, above)
        line = source.line(above)
        blank = len(line) - len(line.lstrip())
        yield Related(Span(source, start + blank, start + len(line)), "this line has no `:`")


def at_line(source: Source, number: int) -> int:
    """The offset of a line's first character."""
    return sum(len(line) + 1 for line in source.text.split("\n")[: number - 1])


def places(node: Any, source: Source) -> Places:
    """Where each character of a scalar's value stands in the text."""
    start, end = node.start_mark.index, node.end_mark.index
    raw = source.text[start:end]
    if raw == node.value:
        return Places(start)
    if raw[1:-1] == node.value and node.style in ("'", '"'):
        return Places(start + 1)
    table: list[int] = []
    at = 0
    if node.style in ("|", ">"):
        at = raw.find("\n") + 1
    elif node.style:
        at = 1
    for c in node.value:
        if not c.isspace():
            found = raw.find(c, at)
            if found < 0:
                return Places(start, [start] * (max(1, len(node.value)) - 1) + [max(start, end - 1)])
            at = found
        table.append(start + min(at, len(raw) - 1))
        at += 1 if not c.isspace() or (at < len(raw) and raw[at].isspace()) else 0
    return Places(start, table or [start])


def find_comments(source: Source, scalars: list[tuple[int, int]]) -> list[Comment]:
    """The comments of a YAML text: every `#` after a space or at a line's start that lies in no scalar."""
    starts = [s for s, _ in scalars]
    found: list[Comment] = []
    for m in re.finditer(r"(?:^|(?<=[ \t\n]))#[^\r\n]*", source.text):
        if found and m.start() < found[-1].end:
            continue
        i = bisect_right(starts, m.start()) - 1
        if i >= 0 and scalars[i][0] <= m.start() < scalars[i][1]:
            continue
        line_start = source.text.rfind("\n", 0, m.start()) + 1
        comment = Comment(
            "#" + m.group().lstrip("#"), m.start(), m.end(), not source.text[line_start : m.start()].strip()
        )
        found.append(comment)
    return found
