"""One request, from arrival to its last token: the only place where its state lives."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch

from mini_vllm.config import EngineConfig
from mini_vllm.engine.block_pool import BlockHash, block_hash, salt_hash
from mini_vllm.engine.detokenizer import Detokenizer, TokenDecoder
from mini_vllm.outputs import CompletionOutput, FinishReason, PositionLogprobs, RequestOutput
from mini_vllm.sampling_params import SamplingParams


class Request:
    """A prompt, what was generated so far, and how much of both has its keys and values in the cache.

    There is no prefill state and no decode state: a request with more than one token to compute prefills, one with a single
    token decodes, and a preempted request simply has everything to compute again.

    Attributes:
        lora_id: which adapter the model is to use, 0 for none; the engine hands it on, and never shares blocks between two.
        token_ids: prompt and output, end to end.
        num_prompt_tokens: how many of them are the prompt.
        num_computed_tokens: how many have their keys and values in the cache.
        num_cached_tokens: how many the prefix cache had when the request first ran; None before.
        blocks: the block table: ids of the blocks held, in the order of positions.
        block_hashes: one for each full block of ``token_ids``; none without prefix caching.
        finish_reason: None while it runs.
        stop_reason: the stop token or stop text that ended it.
        error: what went wrong when ``finish_reason`` is "error".
        num_preemptions: how often it lost its blocks.
        logprobs: one entry per output token, if they were asked for.
        prompt_logprobs: one entry per prompt token computed so far, if they were asked for; None for the first.
    """

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        config: EngineConfig,
        tokenizer: TokenDecoder | None = None,
        cache_salt: str = "",
        lora_id: int = 0,
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.config = config
        self.lora_id = lora_id
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None
        self.blocks: list[int] = []
        self.block_hashes: list[BlockHash] = []
        self._salt = salt_hash(cache_salt, lora_id)
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.error: Exception | None = None
        self.num_preemptions = 0
        self.logprobs: list[PositionLogprobs] = []
        self.prompt_logprobs: list[PositionLogprobs | None] = [None]
        self._detokenizer = Detokenizer(tokenizer, params) if tokenizer and params.detokenize else None
        self._hash_full_blocks()

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """What was generated."""
        return len(self.token_ids) - self.num_prompt_tokens

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

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """Every token that ends this request."""
        own = frozenset(self.params.stop_token_ids or ())
        return own if self.params.ignore_eos else own | self.config.eos_token_ids

    @property
    def must_go_on(self) -> bool:
        """Whether ``min_tokens`` keeps the next token from being one that stops."""
        return self.num_output_tokens < self.params.min_tokens

    @cached_property
    def generator(self) -> torch.Generator:
        """The request's own dice."""
        generator = torch.Generator()
        if self.params.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.params.seed)
        return generator

    @property
    def shareable_hashes(self) -> list[BlockHash]:
        """The blocks that may come from the prefix cache: one token at least is left to compute, for its logits.

        None when the prompt's logprobs are asked for: they need every token of it computed.
        """
        return (
            []
            if self.params.prompt_logprobs is not None
            else self.block_hashes[: (self.num_tokens - 1) // self.config.block_size]
        )

    def start(self, cached_blocks: list[int]) -> None:
        """Takes note of the blocks that the prefix cache had, whose tokens need no computing."""
        self.blocks = list(cached_blocks)
        self.num_computed_tokens = len(cached_blocks) * self.config.block_size
        if self.num_cached_tokens is None:
            self.num_cached_tokens = self.num_computed_tokens

    def computed(self, num_tokens: int) -> None:
        """Takes note that a step has put the next ``num_tokens`` tokens into the cache."""
        self.num_computed_tokens += num_tokens

    def lose_blocks(self) -> list[int]:
        """Gives all blocks up; what was in them has to be computed again, what was generated stays."""
        blocks, self.blocks = self.blocks, []
        self.num_computed_tokens = 0
        return blocks

    def append(self, token: int, logprobs: PositionLogprobs | None = None) -> None:
        """Adds a sampled token and decides whether the request ends with it."""
        may_stop = not self.must_go_on
        self.token_ids.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        self._hash_full_blocks()
        if may_stop and token in self.stop_token_ids:
            self.finish_reason = "stop"
            self.stop_reason = token if token in (self.params.stop_token_ids or ()) else None
            if self._detokenizer and self.params.include_stop_str_in_output:
                self._detokenizer.append(token, may_stop=False)
        elif self._detokenizer and (stop_text := self._detokenizer.append(token, may_stop)):
            self.finish_reason, self.stop_reason = "stop", stop_text
            return
        elif self.num_output_tokens == self.params.max_tokens or self.num_tokens >= self.config.max_model_len:
            self.finish_reason = "length"
        if self.finish_reason and self._detokenizer:
            self._detokenizer.flush()

    def add_prompt_logprobs(self, first: int, entries: list[PositionLogprobs]) -> None:
        """Takes the entries of prompt tokens ``first``, ``first + 1``, ...; what is known from before a preemption stays."""
        self.prompt_logprobs += entries[len(self.prompt_logprobs) - first :]

    def abort(self) -> None:
        """Ends the request where it stands, unless it has ended already."""
        self.finish_reason = self.finish_reason or "abort"

    def fail(self, error: Exception) -> None:
        """Ends the request with what went wrong."""
        self.finish_reason, self.error = "error", error

    def output(self, index: int) -> CompletionOutput:
        """The answer as far as it has come."""
        text = "" if self._detokenizer is None else self._detokenizer.text if self.finish_reason else self._detokenizer.safe_text
        output_token_ids, logprobs = self.output_token_ids, None if self.params.logprobs is None else list(self.logprobs)
        return CompletionOutput(
            index=index,
            text=text,
            token_ids=output_token_ids,
            logprobs=logprobs,
            cumulative_logprob=None
            if logprobs is None
            else sum(entry[token].logprob for token, entry in zip(output_token_ids, logprobs, strict=True)),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=self.error,
        )

    def _hash_full_blocks(self) -> None:
        size = self.config.block_size
        while self.config.enable_prefix_caching and (len(self.block_hashes) + 1) * size <= self.num_tokens:
            start = len(self.block_hashes) * size
            parent = self.block_hashes[-1] if self.block_hashes else self._salt
            self.block_hashes.append(block_hash(parent, self.token_ids[start : start + size]))


class ParentRequest:
    """What the caller asked for: one prompt and its n answers, each a :class:`Request` of its own with dice of its own.

    Attributes:
        request_id: the caller's name for it.
        children: the answers.
    """

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        config: EngineConfig,
        tokenizer: TokenDecoder | None = None,
        cache_salt: str = "",
        lora_id: int = 0,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.children = [
            Request(
                request_id if params.n == 1 else f"{index}_{request_id}",
                prompt_token_ids,
                _child_params(params, index),
                config,
                tokenizer,
                cache_salt,
                lora_id,
            )
            for index in range(params.n)
        ]

    @property
    def finished(self) -> bool:
        """Whether every answer has ended."""
        return all(child.finish_reason for child in self.children)

    def output(self) -> RequestOutput:
        """All answers as far as they have come."""
        first = self.children[0]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=first.prompt_token_ids,
            outputs=[child.output(index) for index, child in enumerate(self.children)],
            finished=self.finished,
            prompt_logprobs=None if first.params.prompt_logprobs is None else list(first.prompt_logprobs),
            num_cached_tokens=first.num_cached_tokens or 0,
        )


def _child_params(params: SamplingParams, index: int) -> SamplingParams:
    """Each answer throws its own dice, and the prompt's logprobs are worked out once."""
    return replace(
        params,
        n=1,
        seed=None if params.seed is None else params.seed + index,
        prompt_logprobs=params.prompt_logprobs if index == 0 else None,
    )
