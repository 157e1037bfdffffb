"""One way to write a spec: what `nestflow fmt` and `nestflow convert` do."""

from __future__ import annotations

from nestflow.language.printer import print_nl, print_yaml
from nestflow.language.reader import looks_like_yaml, read_text


def format_text(text: str, name: str = "<text>") -> str:
    """The same spec in canonical form, in the front end it is written in. Raises NestflowError if it does not parse."""
    spec = read_text(text, name)
    return print_yaml(spec) if looks_like_yaml(text) else print_nl(spec)


def convert_text(text: str, name: str = "<text>") -> str:
    """The same spec in the other front end."""
    spec = read_text(text, name)
    return print_nl(spec) if looks_like_yaml(text) else print_yaml(spec)
