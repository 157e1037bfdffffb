"""Mistakes get sentences: sources, spans, coded diagnostics and how they are shown."""

from nestflow.diagnostics.core import (
    Collector,
    Diagnostic,
    NestflowError,
    Related,
    Source,
    Span,
    fail,
)

__all__ = ["Collector", "Diagnostic", "NestflowError", "Related", "Source", "Span", "fail"]
