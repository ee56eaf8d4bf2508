"""From a row of logits to a token, each request with its own dice."""

from __future__ import annotations

import torch
from torch import Tensor

from mini_vllm.engine.request import Request


def sample(logits: Tensor, request: Request) -> int:
    """The request's next token.

    The dice are the request's own and are thrown once per token, so that a seeded request does not depend on who shares its
    batch, on the chunks its prompt was cut into, or on having been preempted.

    Args:
        logits: (V,).
        request: whose parameters and generator are used.
    """
    if request.params.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / request.params.temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=request.generator))
