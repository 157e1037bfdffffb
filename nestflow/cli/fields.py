"""The fields of a level, a sentence each, for `nestflow explain`."""

from __future__ import annotations

FIELDS: dict[str, tuple[str, str]] = {
    "memory": (
        "memory KIND   or   memory NAME : KIND { fields }",
        "What the level stores in: matrix, mlp(...), cache(...), vector, scalar, like(w), weights(F, globs), rest(F), "
        "or any flow.",
    ),
    "key": ("key EXPRESSION", "What a memory is asked with when it learns: its input in the objective."),
    "value": (
        "value EXPRESSION",
        "What the memory should answer for the key; a memory without a key takes it as what it tracks.",
    ),
    "query": (
        "query EXPRESSION",
        "What the memory is asked with when it is read: y in `return` is the recall at the query.",
    ),
    "weight": ("weight EXPRESSION", "A number that multiplies the gradient of a tick. Default: 1."),
    "objective": (
        "objective dot | l2 | EXPRESSION",
        "What the level minimises. dot is minus the inner product of recall and value, l2 half their squared distance; "
        "on the step clock a loss over the model's outputs.",
    ),
    "update": (
        "update EXPRESSION",
        "The step that is added to the memory; g is the gradient, summed since the last update. "
        "`adam(1e-3)` is short for `g |> adam(1e-3)`; the same optimisers serve on every clock.",
    ),
    "retain": (
        "retain GATE",
        "What multiplies the memory before the step is added: 1 keeps everything, 0 forgets. Default: 1.",
    ),
    "every": (
        "every N tokens | N steps | never",
        "How often the level learns. In between, gradients are summed. Default: every 1 token on "
        "a token input, every 1 step on weights.",
    ),
    "chunk": (
        "chunk C",
        "Errors are taken at the state that the current C ticks began with, so that a chunk is computed at once. "
        "Default: every.",
    ),
    "heads": (
        "heads H",
        "The level is evaluated H times, each with weights and a memory of its own; `merge_heads` joins the results.",
    ),
    "read": (
        "read after | before | chunk_start",
        "Which state a recall in `return` sees. Default: after the tick's own update.",
    ),
    "init": (
        "init zeros | learned | EXPRESSION",
        "How the memory starts. Default: zeros for a matrix, a learned start for networks.",
    ),
    "gradient": ("gradient through | stop", "Whether slower levels' gradients pass through this memory's updates."),
    "return": (
        "return EXPRESSION",
        "What the level gives back; y is the recall at the query. Default: merge_heads(y).",
    ),
    "reset": ("reset each(sequence) | each(chunk) | never", "When the memory goes back to its start."),
    "per": ("per sequence | model", "How many copies of the memory there are."),
}
