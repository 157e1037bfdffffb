"""Files and texts to specs: what cannot be read is said before anything is parsed."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from nestflow.diagnostics.core import Diagnostic, NestflowError, Source, Span, fail
from nestflow.diagnostics.suggest import nearest
from nestflow.language import tree as T
from nestflow.language.nl import parse_nl

MAX_BYTES = 1_000_000
SUFFIXES = (".nl", ".yaml", ".yml")
_YAML_START = re.compile(r"\A(?:\s*#[^\n]*\n|\s+|---[ \t]*\r?\n|%YAML[^\n]*\n)*(?:[\"']?\w+[\"']?[ \t]*:(?:\s|\Z)|\{)")


def is_file_name(target: str) -> bool:
    """Whether a string names a file: the one rule of the language."""
    return target.endswith(SUFFIXES) and "\n" not in target


def read_text(text: str, name: str = "<text>") -> T.Spec:
    """A spec in text, .nl or YAML (told apart by its first line). Raises NestflowError with all mistakes."""
    if looks_like_yaml(text):
        from nestflow.language.yaml import parse_yaml

        return parse_yaml(text, name)
    return parse_nl(text, name)


def looks_like_yaml(text: str) -> bool:
    """Whether the first line that says something is `key: ...`, as YAML's first line is and .nl's never."""
    return _YAML_START.match(text) is not None


def read_file(path: str | os.PathLike[str]) -> T.Spec:
    """The spec in a file, by its suffix. Raises NestflowError (NF001 to NF008, then NF1xx)."""
    path = Path(path)
    return parse_named(read_source(path).text, path)


def parse_named(text: str, path: Path) -> T.Spec:
    """The spec in the text of a file, by the file's suffix."""
    if path.suffix == ".nl":
        return parse_nl(text, str(path))
    if path.suffix in (".yaml", ".yml"):
        from nestflow.language.yaml import parse_yaml

        return parse_yaml(text, str(path))
    raise fail("NF008", f"`{path}` is no spec by its name", None, "a spec's file ends in .nl, .yaml or .yml")


def read_source(path: Path) -> Source:
    """The text of a file that is safe to read: an ordinary file, small, UTF-8."""
    return source_of(_bytes_of(path), path)


def source_of(data: bytes, path: Path) -> Source:
    """The text of bytes that came from a file or a pipe. Raises NestflowError NF004 to NF007."""
    if len(data) > MAX_BYTES:
        raise fail("NF004", f"`{path}` has more than {MAX_BYTES:,} bytes", None, "split it, and `use` the parts")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:4]:
        raise fail("NF007", f"`{path}` is in UTF-16 or UTF-32", None, "save it as UTF-8")
    if b"\x00" in data:
        raise fail(
            "NF005", f"`{path}` is no text: it has a zero byte at {data.index(0):,}", None, "is this the file you mean?"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        before = data[: e.start].decode("utf-8", "replace")
        source = Source(str(path), data.decode("utf-8", "replace"))
        span = Span(source, len(before), len(before) + 1)
        raise NestflowError(
            [Diagnostic("NF006", f"byte {data[e.start]:#04x} is not UTF-8", span, "save the file as UTF-8")]
        ) from None
    return Source(str(path), text.removeprefix("\ufeff"))


def _bytes_of(path: Path) -> bytes:
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as e:
        raise _cannot_open(path, e) from None
    except ValueError:
        raise fail("NF001", "a file's name cannot hold a zero byte", None) from None
    try:
        info = os.fstat(handle)
        if stat.S_ISDIR(info.st_mode):
            raise fail("NF002", f"`{path}` is a folder", None, _specs_inside(path))
        if not stat.S_ISREG(info.st_mode):
            raise fail("NF003", f"`{path}` is no ordinary file", None, "a spec is read from a file; copy it to one")
        if info.st_size > MAX_BYTES:
            raise fail(
                "NF004",
                f"`{path}` has {info.st_size:,} bytes; {MAX_BYTES:,} are the most",
                None,
                "split it, and `use` the parts",
            )
        with os.fdopen(handle, "rb", closefd=False) as f:
            data = f.read(MAX_BYTES + 1)
    finally:
        os.close(handle)
    return data


def _cannot_open(path: Path, e: OSError) -> NestflowError:
    if e.errno == errno.EISDIR:
        return fail("NF002", f"`{path}` is a folder", None, _specs_inside(path))
    if e.errno in (errno.ENOENT, errno.ENOTDIR):
        return fail("NF001", f"there is no file `{path}`", None, _neighbour(path))
    if e.errno == errno.ENAMETOOLONG:
        return fail("NF001", "this file's name is too long for a file", None)
    if e.errno == errno.ELOOP:
        return fail("NF001", f"`{path}` is a link that leads to itself", None)
    return fail("NF001", f"`{path}` cannot be read: {os.strerror(e.errno or 0)}", None)


def _neighbour(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder `{folder}`"
    names = [p.name for p in list(folder.iterdir())[:2000] if p.suffix in SUFFIXES]
    near = nearest(path.name, names)
    if near:
        return f"did you mean `{folder / near}`?"
    shown = [repr(n) if "\n" in n else f"`{n}`" for n in sorted(names)[:5]]
    return "the folder has " + ", ".join(shown) if shown else "the folder holds no spec"


def _specs_inside(path: Path) -> str:
    try:
        names = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)[:5]
    except OSError:
        names = []
    return (
        "name a file in it: " + ", ".join(f"`{n}`" for n in names) if names else "name a file that ends in .nl or .yaml"
    )
