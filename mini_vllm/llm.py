"""The front door: a directory in, answers out; the calls are vLLM's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch

from mini_vllm.config import EngineConfig
from mini_vllm.engine.engine import LLMEngine
from mini_vllm.engine.request import Request
from mini_vllm.layers.quantization import process_weights_after_loading
from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError, read_json
from mini_vllm.models.registry import build_model
from mini_vllm.outputs import CompletionOutput, RequestOutput
from mini_vllm.sampling_params import SamplingParams
from mini_vllm.tokenizer import Message, Tokenizer

Prompt = str | Mapping[str, list[int]]
"""A text, or {"prompt_token_ids": [...]}."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LLM:
    """A model from a Hugging Face directory, ready to answer.

    Args:
        model: a directory with config.json and safetensors; tokenizer.json too, for prompts that are text.
        dtype: "float32", "bfloat16", "float16" or torch's own, or "auto" for what config.json says.
        quantization: "int8" keeps the weights of linear layers in 8 bits (layers/quantization.py); None keeps them as they are.
        max_model_len: the most tokens of a request, prompt and output; config.json's max_position_embeddings unless told.
        sizes: what else :class:`EngineConfig` takes: block_size, num_blocks, max_num_batched_tokens, max_num_seqs.

    Raises:
        CheckpointError: the directory cannot be served; the message says why.
        ValueError: a size or the dtype is not possible.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        **sizes: int,
    ) -> None:
        folder = Path(model)
        if not folder.is_dir():
            raise CheckpointError(f"there is no directory {folder}; give one with config.json and safetensors")
        config = read_json(folder / "config.json")
        with default_dtype(_dtype(dtype, config)):
            served = build_model(config, Checkpoint(folder))
        process_weights_after_loading(served, quantization)
        self.tokenizer = Tokenizer.find(folder)
        self.vocab_size: int | None = config.get("vocab_size")
        self.llm_engine = LLMEngine(
            served,
            EngineConfig(
                max_model_len=_max_model_len(config, max_model_len), eos_token_ids=_eos_token_ids(folder, config), **sizes
            ),
        )
        self._ids = count()

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Answers to all prompts, batched together, in their order.

        Args:
            prompts: one or many.
            sampling_params: for all prompts, or one for each; SamplingParams() when left out.

        Raises:
            ValueError: a prompt cannot be served; none of them has run then.
        """
        many: list[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        return self._run([(p if isinstance(p, str) else None, self._token_ids(p)) for p in many], sampling_params)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answers to one conversation or to many, through the checkpoint's chat template.

        Args:
            messages: [{"role": "user", "content": "..."}], or a list of such lists.
            sampling_params: as in :meth:`generate`.
        """
        tokenizer = self._needed_tokenizer()
        one = bool(messages) and isinstance(messages[0], Mapping)
        conversations = cast("Sequence[Sequence[Message]]", [messages] if one else messages)
        texts = [tokenizer.apply_chat_template(conversation) for conversation in conversations]
        # The template has written the special tokens already.
        return self._run([(text, tokenizer.encode(text, add_special_tokens=False)) for text in texts], sampling_params)

    def _run(
        self, prompts: list[tuple[str | None, list[int]]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[RequestOutput]:
        """Adds all, steps until all are done; whatever goes wrong, the engine is left without any of them."""
        params = SamplingParams() if params is None else params
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts and {len(each)} sampling_params; give one for all, or as many")
        ids = [str(next(self._ids)) for _ in prompts]
        finished: dict[str, Request] = {}
        try:
            for request_id, (_, token_ids), own_params in zip(ids, prompts, each, strict=True):
                self.llm_engine.add_request(request_id, token_ids, own_params)
            while not finished.keys() >= set(ids):
                finished |= {request.request_id: request for request in self.llm_engine.step()}
        except BaseException:
            self.llm_engine.abort_requests(ids)
            raise
        return [self._output(finished[request_id], text) for request_id, (text, _) in zip(ids, prompts, strict=True)]

    def _output(self, request: Request, prompt: str | None) -> RequestOutput:
        assert request.finish_reason is not None
        text = self.tokenizer.decode(request.output_token_ids) if self.tokenizer else ""
        answer = CompletionOutput(0, text, request.output_token_ids, request.finish_reason)
        return RequestOutput(request.request_id, prompt, request.prompt_token_ids, [answer])

    def _token_ids(self, prompt: Prompt) -> list[int]:
        token_ids = self._needed_tokenizer().encode(prompt) if isinstance(prompt, str) else prompt["prompt_token_ids"]
        for token in token_ids:
            if self.vocab_size is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary; ids go from 0 to {self.vocab_size - 1}")
        return list(token_ids)

    def _needed_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("the model has no tokenizer.json; pass {'prompt_token_ids': [...]} to generate() instead of text")
        return self.tokenizer


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters made inside have this dtype, unless they ask for another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _dtype(dtype: str | torch.dtype, config: Mapping[str, Any]) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    name = config.get("dtype") or config.get("torch_dtype") or "float32" if dtype == "auto" else dtype
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; it must be auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _max_model_len(config: Mapping[str, Any], asked: int | None) -> int:
    positions: int | None = config.get("max_position_embeddings")
    if asked is not None and positions is not None and asked > positions:
        raise ValueError(f"max_model_len is {asked}, above config.json's max_position_embeddings, {positions}; ask for no more")
    return asked or positions or 2048


def _eos_token_ids(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """generation_config.json has the last word, as in vLLM; one id or a list of them."""
    own_file = folder / "generation_config.json"
    generation = read_json(own_file) if own_file.exists() else {}
    ids = generation.get("eos_token_id", config.get("eos_token_id"))
    return frozenset([ids] if isinstance(ids, int) else ids or [])
