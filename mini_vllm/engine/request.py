"""One request, from arrival to its last token: the only place where its state lives."""

from __future__ import annotations

import torch

from mini_vllm.outputs import FinishReason
from mini_vllm.sampling_params import SamplingParams


class Request:
    """A prompt, what was generated so far, and how much of both has its keys and values in the cache.

    There is no prefill state and no decode state: a request with more than one token to compute prefills, one with a single
    token decodes, and a preempted request simply has everything to compute again.

    Attributes:
        token_ids: prompt and output, end to end.
        num_prompt_tokens: how many of them are the prompt.
        num_computed_tokens: how many have their keys and values in the cache.
        blocks: the block table: ids of the blocks held, in the order of positions.
        finish_reason: None while it runs.
        num_preemptions: how often it lost its blocks.
    """

    def __init__(self, request_id: str, prompt_token_ids: list[int], params: SamplingParams) -> None:
        self.request_id = request_id
        self.params = params
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        self.blocks: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.num_preemptions = 0
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """What the model has still to see."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt."""
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        """What was generated."""
        return self.token_ids[self.num_prompt_tokens :]

    def computed(self, num_tokens: int) -> None:
        """Takes note that a step has put the next ``num_tokens`` tokens into the cache."""
        self.num_computed_tokens += num_tokens

    def lose_blocks(self) -> list[int]:
        """Gives all blocks up; what was in them has to be computed again, what was generated stays."""
        blocks, self.blocks = self.blocks, []
        self.num_computed_tokens = 0
        return blocks

    def append(self, token: int, eos_token_ids: frozenset[int], max_model_len: int) -> None:
        """Adds a sampled token and decides whether the request ends with it."""
        self.token_ids.append(token)
        if token in self.params.stop_token_ids or (token in eos_token_ids and not self.params.ignore_eos):
            self.finish_reason = "stop"
        elif len(self.output_token_ids) >= self.params.max_tokens or self.num_tokens >= max_model_len:
            self.finish_reason = "length"
