"""Sampler: chooses tokens from rows of logits, by each request's own parameters and random generator.

Processing of a row, in vLLM's order (vllm/v1/sample/sampler.py:22):

    model's logits -> logit_bias, min_tokens -> penalties -> greedy: argmax
                   \\-> logprobs                            -> else: / temperature -> min_p -> top_k -> top_p -> random draw
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mini_vllm.contract import ContractError
from mini_vllm.engine.request import Request
from mini_vllm.engine.scheduler import Chunk
from mini_vllm.outputs import Logprob, PositionLogprobs

DecodeToken = Callable[[int], str]
"""Token id -> its text."""


@dataclass(frozen=True)
class Sample:
    """The result of a chunk.

    Attributes:
        token: the request's next token; None when the chunk ends before the request's newest token.
        logprobs: log probabilities of ``token`` and the most likely tokens; None if not requested.
        prompt_logprobs: one entry for each prompt token that follows a token of the chunk; empty if not requested.
    """

    token: int | None = None
    logprobs: PositionLogprobs | None = None
    prompt_logprobs: list[PositionLogprobs] = field(default_factory=list)


def sample(chunks: Sequence[Chunk], logits: Tensor, decode_token: DecodeToken | None = None) -> list[Sample | Exception]:
    """Samples the next token of every chunk's request; returns, in order, a sample per chunk, or the error of its request.

    A request's random generator is used once per token, so that a seeded request does not depend on its batch, on the chunks of
    its prompt, or on preemption.

    ``logits`` are (R, V), ``chunk.num_logits`` rows of each chunk; ``decode_token`` returns a token's text, for logprobs.
    """
    best, argmax = (column.tolist() for column in logits.max(dim=-1))  # a NaN counts as the largest
    outcomes: list[Sample | Exception] = []
    stop = 0
    for chunk in chunks:
        start, stop = stop, stop + chunk.num_logits
        try:
            for position, value in enumerate(best[start:stop], start=chunk.stop - chunk.num_logits):
                if not math.isfinite(value):
                    raise ContractError(
                        f"request {chunk.request.request_id}: the largest logit after its token at position {position} is "
                        f"{value}, so no token is the most likely one; look for a division by zero, an overflow or an unloaded "
                        "weight in forward()"
                    )
            outcomes.append(_sample(chunk, logits[start:stop], argmax[stop - 1], decode_token))
        except Exception as error:  # an error caused by one request's parameters ends that request only
            outcomes.append(error)
    return outcomes


def _sample(chunk: Chunk, logits: Tensor, argmax: int, decode_token: DecodeToken | None) -> Sample:
    request, params = chunk.request, chunk.request.params
    prompt_logprobs: list[PositionLogprobs] = []
    if params.prompt_logprobs is not None:
        following = request.prompt_token_ids[chunk.start + 1 : chunk.stop + 1]
        prompt_logprobs = [
            top_logprobs(row, token, params.prompt_logprobs, decode_token) for row, token in zip(logits, following, strict=False)
        ]
    if not chunk.samples:
        return Sample(prompt_logprobs=prompt_logprobs)
    row = logits[-1]
    token = argmax if params.is_plain_greedy else next_token(row, request)
    logprobs = None if params.logprobs is None else top_logprobs(row, token, params.logprobs, decode_token)
    return Sample(token, logprobs, prompt_logprobs)


def next_token(logits: Tensor, request: Request) -> int:
    """Applies the request's parameters to its logits (V,); returns their argmax if temperature is 0, else a random draw."""
    params = request.params
    logits = biased(logits.float().clone(), request)
    if params.is_greedy:
        return int(logits.argmax())
    # Minus the largest, so that a tiny temperature gives -inf below it and no NaN.
    logits = (logits - logits.max()) / params.temperature
    probabilities = truncated(logits, params.min_p, params.top_k, params.top_p).softmax(dim=-1)
    # The argmax of p / e, with an e drawn from Exp(1) for each token of the vocabulary, is a draw from p.
    return int((probabilities / torch.empty_like(probabilities).exponential_(generator=request.generator)).argmax())


def biased(logits: Tensor, request: Request) -> Tensor:
    """Applies logit_bias, min_tokens, penalties to ``logits`` (V,) in place, and returns it; ValueError if no token is left."""
    params, vocab_size = request.params, logits.numel()
    for token, bias in (params.logit_bias or {}).items():
        if not 0 <= token < vocab_size:
            raise ValueError(f"logit_bias has token {token}; ids go from 0 to {vocab_size - 1}")
        logits[token] += bias
    if request.must_continue:
        logits[[token for token in request.stop_token_ids if token < vocab_size]] = -math.inf
        if logits.max() == -math.inf:
            raise ValueError(f"request {request.request_id}: min_tokens is {params.min_tokens}, and every token would stop it")
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(request.token_ids)))
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if params.frequency_penalty or params.presence_penalty:
        for token, times in Counter(request.output_token_ids).items():
            logits[token] -= params.frequency_penalty * times + params.presence_penalty
    return logits


def truncated(logits: Tensor, min_p: float, top_k: int, top_p: float) -> Tensor:
    """Returns the logits with -inf where min_p, then top_k, then top_p exclude a token; the most likely token always remains."""
    if min_p:
        logits = logits.masked_fill(logits < logits.max() + math.log(min_p), -math.inf)
    if 0 < top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
    if top_p < 1:
        values, order = logits.sort(descending=True)
        probabilities = values.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        logits = logits.index_fill(0, order[before >= top_p], -math.inf)
    return logits


def top_logprobs(logits: Tensor, token: int, count: int, decode_token: DecodeToken | None = None) -> PositionLogprobs:
    """Returns token id -> Logprob, from logits (V,): of ``token``, then of the ``count`` most likely tokens (-1: all)."""
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs[token]
    ranked = {token: (float(own), int((logprobs >= own).sum()))}
    top = logprobs.topk(logits.numel() if count == -1 else min(count, logits.numel()))
    for rank, (value, index) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), start=1):
        ranked.setdefault(index, (value, rank))
    return {index: Logprob(value, rank, decode_token(index) if decode_token else None) for index, (value, rank) in ranked.items()}
