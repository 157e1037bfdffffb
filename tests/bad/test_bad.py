"""Every wrong spec is told, in one reviewed file: tests/bad/errors.expected.

After a change on purpose: `NESTFLOW_UPDATE=1 python -m pytest tests/bad`, then read the difference.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nestflow
from tests.bad.cases import CASES, GOOD, Bad

EXPECTED = Path(__file__).parent / "errors.expected"
CPU_SECONDS = 2.0
RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect",
             "os.remove", "os.rename", "os.mkdir")  # fmt: skip

_watching: list[str] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching is not None and (
        event in RUNS_CODE or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))
    ):
        _watching.append(f"{event} {args!r:.80}")


sys.addaudithook(_audit)


class TooSlow(BaseException):
    """Not an Exception, so that nothing on the way can catch it."""


@contextmanager
def limited() -> Iterator[list[str]]:
    """Ends what uses over 2 seconds of this process (a busy machine takes none of them); lists what ran or wrote."""
    global _watching

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    _watching = events = []
    try:
        yield events
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        _watching = None


def report(case: Bad, folder: Path) -> str:
    """What a user reads, with the folder's name taken out."""
    target = case.make(folder)
    with limited() as events:
        try:
            nestflow.check(target, **dict(case.params))
            text = "accepted"
        except nestflow.NestflowError as e:
            text = str(e)
        except TooSlow:
            text = "TOO SLOW"
    assert not events, f"checking ran or wrote something: {events}"
    return text.replace(str(folder.resolve()), "FOLDER").replace(str(folder), "FOLDER")


def golden() -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in EXPECTED.read_text(encoding="utf-8").split("=== ")[1:]:
        name, _, text = part.partition("\n")
        parts[name] = text.rstrip("\n")
    return parts


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """The first check of a process imports; that is not the spec's fault."""
    nestflow.check(GOOD)


@pytest.fixture(scope="module")
def written() -> Iterator[dict[str, str]]:
    found: dict[str, str] = {}
    yield found
    if os.environ.get("NESTFLOW_UPDATE") and len(found) == len(CASES):
        text = "".join(f"=== {name}\n{found[name]}\n\n" for name in (c.name for c in CASES))
        EXPECTED.write_text(text, encoding="utf-8")


def test_the_good_spec_is_good() -> None:
    nestflow.check(GOOD)


def test_there_are_at_least_sixty() -> None:
    assert len(CASES) >= 60
    assert len({c.name for c in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_told(case: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: dict[str, str]) -> None:
    monkeypatch.chdir(tmp_path)
    text = report(case, tmp_path)
    written[case.name] = text
    assert text.startswith(("error[NF", "accepted")) and text != "accepted", f"no coded error:\n{text}"
    assert len(text) < 20_000
    if not os.environ.get("NESTFLOW_UPDATE"):
        assert text == golden().get(case.name), "read the difference, then run with NESTFLOW_UPDATE=1"
