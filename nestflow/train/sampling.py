"""Sampling text from a bundle through its stream: state carried, one token at a time."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from nestflow.diagnostics.core import fail
from nestflow.train.protocol import Trainable, device_of, require_vocab, token_input


def generate(
    bundle: Trainable,
    prompt: str | bytes = "\n",
    tokens: int = 400,
    temperature: float = 0.7,
    seed: int = 0,
    top_k: int | None = None,
    on_token: Callable[[int], None] | None = None,
) -> bytes:
    """The bytes that follow a prompt. temperature 0 takes the likeliest byte; top_k keeps the k likeliest.

    The same seed gives the same text. on_token is called with each byte as it is drawn.
    Raises NF528 for settings that make no sense, NF527 if the spec does not read bytes.
    """
    if isinstance(bundle, (str, os.PathLike)):
        help = f'`nestflow.load("{bundle}")` gives the bundle of a folder'
        raise fail("NF528", "`generate` takes a bundle, and this is a path", help=help)
    start = prompt.encode("utf-8") if isinstance(prompt, str) else bytes(prompt)
    _check(start, tokens, temperature, top_k)
    require_vocab(bundle, max(start))
    name = token_input(bundle)
    device = device_of(bundle.module)
    rng = torch.Generator().manual_seed(seed)
    was_training = bundle.module.training
    bundle.module.eval()
    out = bytearray()
    try:
        with torch.no_grad():
            stream = bundle.stream(batch=1)
            logits_1TV = stream.feed(**{name: torch.tensor([list(start)], device=device)})
            for i in range(tokens):
                byte = sample(logits_1TV[0, -1].float().cpu(), temperature, rng, top_k)
                out.append(byte)
                if on_token is not None:
                    on_token(byte)
                if i + 1 < tokens:
                    logits_1TV = stream.feed(**{name: torch.tensor([[byte]], device=device)})
    finally:
        bundle.module.train(was_training)
    return bytes(out)


def sample(logits_V: Tensor, temperature: float, rng: torch.Generator, top_k: int | None = None) -> int:
    """One byte from logits over the vocabulary. Numbers above 255 are never drawn."""
    logits_V = logits_V[:256]
    if temperature == 0:
        return int(logits_V.argmax())
    scaled_V = logits_V / temperature
    if top_k is not None and top_k < len(scaled_V):
        least = scaled_V.topk(top_k).values[-1]
        scaled_V = scaled_V.masked_fill(scaled_V < least, float("-inf"))
    return int(torch.multinomial(scaled_V.softmax(-1), 1, generator=rng))


def _check(start: bytes, tokens: int, temperature: float, top_k: int | None) -> None:
    if not start:
        raise fail("NF528", "the prompt is empty", help='give at least one byte to start from, for example "\\n"')
    if tokens < 1:
        raise fail("NF528", f"cannot write {tokens} tokens", help="ask for at least one")
    if not 0 <= temperature < float("inf"):
        raise fail(
            "NF528", f"the temperature is {temperature}", help="0 takes the likeliest byte; 0.7 is a usual start"
        )
    if top_k is not None and top_k < 1:
        raise fail("NF528", f"top_k is {top_k}", help="keep at least the one likeliest byte")
