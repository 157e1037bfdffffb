"""Mistakes get sentences: sources, spans, coded diagnostics and how they are shown."""

from nestflow.diagnostics.core import (
    Collector,
    Diagnostic,
    Edit,
    NestflowError,
    Related,
    Source,
    Span,
    fail,
)

__all__ = ["Collector", "Diagnostic", "Edit", "NestflowError", "Related", "Source", "Span", "fail"]
