"""Settings of a training run, checked: a misspelt or impossible setting is a diagnostic, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nestflow.diagnostics.core import Diagnostic, NestflowError, Source, Span, fail
from nestflow.diagnostics.suggest import did_you_mean


class TrainConfig(BaseModel):
    """How long, on what and how often. Lengths in tokens (bytes), the rest in steps unless said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field(
        "shakespeare", description="a shipped text, a file, a folder of .txt files; or a file of examples"
    )
    steps: int = Field(400, ge=1, description="optimizer steps in all, counted from the first run")
    batch: int = Field(8, ge=1, le=65536, description="windows or examples per step")
    length: int = Field(256, ge=2, le=1 << 20, description="tokens per window, where sequences are longer")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the windows; the weights have the seed of `compile`")
    holdout: float = Field(
        0.1, gt=0, lt=1, description="share kept for validation: the end of each text, or examples drawn by seed"
    )
    eval_every: int = Field(100, ge=0, description="steps between validations; 0: only at the end")
    eval_windows: int = Field(64, ge=1, description="validation windows; of examples, batches at most")
    checkpoint_every: int = Field(
        100, ge=0, description="steps between checkpoints; 0: only at the end and on a signal"
    )
    keep: int = Field(2, ge=1, description="checkpoints kept")


def train_config(values: Mapping[str, Any], source: Source | None = None) -> TrainConfig:
    """A checked TrainConfig. Raises NestflowError with one NF524 per wrong setting, all in one go."""
    try:
        return TrainConfig(**values)
    except ValidationError as e:
        raise NestflowError([_diagnostic(item, source) for item in e.errors()]) from None


def load_train_config(path: str | Path) -> TrainConfig:
    """A TrainConfig from a YAML (or JSON) file of settings. Raises NF520 (unreadable), NF524 (wrong settings)."""
    import yaml

    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as e:
        raise fail("NF520", f"cannot read the settings in `{path}`: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise fail("NF520", f"the settings in `{path}` are not UTF-8 text (byte {e.start})") from e
    source = Source(str(path), text)
    try:
        values = yaml.load(text, Loader=_plain_loader())
    except (yaml.YAMLError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        span = Span(source, mark.index, mark.index + 1) if mark else None
        raise fail("NF524", f"the settings are not YAML: {getattr(e, 'problem', None) or e}", span) from e
    if values is None:
        values = {}
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise fail("NF524", "the settings are one mapping of names to values", Span(source, 0, min(len(text), 1)))
    return train_config(values, source)


def _plain_loader() -> Any:
    """pyyaml's safe loader without anchors' aliases, so that no small file grows large."""
    import yaml
    from yaml.composer import ComposerError

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise ComposerError(None, None, "settings have no aliases", event.start_mark)
            return super().compose_node(parent, index)

    return Plain


def _diagnostic(item: Any, source: Source | None) -> Diagnostic:
    name = ".".join(str(p) for p in item["loc"])
    span = _place(source, name) if source else None
    known = list(TrainConfig.model_fields)
    if item["type"] == "extra_forbidden":
        return Diagnostic(
            "NF524",
            f"there is no training setting `{name}`",
            span,
            did_you_mean(name, known) or "the settings are " + ", ".join(known),
        )
    asked = TrainConfig.model_fields[name].description if name in TrainConfig.model_fields else None
    reason = item["msg"][:1].lower() + item["msg"][1:]
    return Diagnostic("NF524", f"the training setting `{name}` is {item['input']!r}: {reason}", span, asked)


def _place(source: Source, name: str) -> Span | None:
    """Where a top-level setting is written."""
    offset = 0
    for line in source.text.splitlines(keepends=True):
        if line.lstrip(" {\"'").startswith(name):
            start = offset + line.index(name)
            return Span(source, start, start + len(name))
        offset += len(line)
    return None
