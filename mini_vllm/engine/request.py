"""A request and all of its state, from arrival to its last token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from mini_vllm.config import EngineConfig
from mini_vllm.engine.block_pool import BlockHash, block_hash, salt_hash
from mini_vllm.engine.detokenizer import Detokenizer, TokenDecoder
from mini_vllm.outputs import CompletionOutput, FinishReason, PositionLogprobs, RequestOutput
from mini_vllm.sampling_params import SamplingParams


class Request:
    """A prompt, the tokens generated so far, and how many of all these tokens are computed.

    There is no prefill state and no decode state: a request with more than one uncomputed token prefills, one with a single
    uncomputed token decodes, and a preempted request has all of its tokens uncomputed again.

    Attributes:
        token_ids: prompt and output.
        num_computed_tokens: how many of ``token_ids``, from the first on, have their keys and values in the KV cache.
        num_cached_tokens: how many tokens the prefix cache had when the request first ran; None before.
        blocks: the block table: block ids in the order of positions.
        block_hashes: one for each full block of ``token_ids``; empty without prefix caching.
        stop_reason: the stop token or stop text that ended the request; None for the model's end-of-sequence token.
        logprobs: one entry per output token; empty if not requested.
        prompt_logprobs: None for the first prompt token, then, if requested, one entry per prompt token computed so far.
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
        self.request_id, self.params, self.config, self.lora_id = request_id, params, config, lora_id
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
        """Number of tokens of prompt and output."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Number of tokens generated."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Number of tokens without keys and values in the KV cache."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        """Token ids of the prompt."""
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        """Ids of the tokens generated."""
        return self.token_ids[self.num_prompt_tokens :]

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end this request."""
        own = frozenset(self.params.stop_token_ids or ())
        return own if self.params.ignore_eos else own | self.config.eos_token_ids

    @property
    def must_continue(self) -> bool:
        """Whether ``min_tokens`` forbids the next token to be a stop token."""
        return self.num_output_tokens < self.params.min_tokens

    @cached_property
    def generator(self) -> torch.Generator:
        """The request's own random generator."""
        generator = torch.Generator()
        return generator.manual_seed(generator.seed() if self.params.seed is None else self.params.seed)

    @property
    def shareable_hashes(self) -> list[BlockHash]:
        """Hashes to look up in the prefix cache: of the full blocks before the newest token; none if prompt_logprobs is set."""
        num_blocks = (self.num_tokens - 1) // self.config.block_size if self.params.prompt_logprobs is None else 0
        return self.block_hashes[:num_blocks]

    def start(self, cached_blocks: list[int]) -> None:
        """Makes cached blocks the request's first blocks, and counts their tokens as computed."""
        self.blocks = list(cached_blocks)
        self.num_computed_tokens = len(cached_blocks) * self.config.block_size
        if self.num_cached_tokens is None:
            self.num_cached_tokens = self.num_computed_tokens

    def lose_blocks(self) -> list[int]:
        """Empties the block table; returns the block ids that it had, for the caller to free. All tokens are uncomputed again."""
        blocks, self.blocks = self.blocks, []
        self.num_computed_tokens = 0
        return blocks

    def append(self, token: int, logprobs: PositionLogprobs | None = None) -> None:
        """Appends a sampled token; sets ``finish_reason`` if the request ends with this token."""
        may_stop = not self.must_continue
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
        """Adds the entries of prompt tokens ``first``, ``first + 1``, ..., except those added before a preemption."""
        self.prompt_logprobs += entries[len(self.prompt_logprobs) - first :]

    def output(self, index: int) -> CompletionOutput:
        """Returns the answer so far, as answer number ``index``."""
        text = "" if self._detokenizer is None else self._detokenizer.text if self.finish_reason else self._detokenizer.safe_text
        tokens, logprobs, total = self.output_token_ids, None, None
        if self.params.logprobs is not None:
            logprobs = list(self.logprobs)
            total = sum(entry[token].logprob for token, entry in zip(tokens, logprobs, strict=True))
        return CompletionOutput(index, text, tokens, logprobs, total, self.finish_reason, self.stop_reason, self.error)

    def _hash_full_blocks(self) -> None:
        size = self.config.block_size
        while self.config.enable_prefix_caching and (len(self.block_hashes) + 1) * size <= self.num_tokens:
            start = len(self.block_hashes) * size
            parent = self.block_hashes[-1] if self.block_hashes else self._salt
            self.block_hashes.append(block_hash(parent, self.token_ids[start : start + size]))


@dataclass(eq=False)
class ParentRequest:
    """One prompt, its text if it has one, and its n answers, each a :class:`Request` with its own random generator."""

    request_id: str
    prompt: str | None
    children: list[Request]

    @property
    def finished(self) -> bool:
        """Whether every answer has ended."""
        return all(child.finish_reason for child in self.children)

    def output(self) -> RequestOutput:
        """Returns all answers so far."""
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
