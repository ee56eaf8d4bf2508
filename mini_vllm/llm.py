"""LLM: loads a checkpoint and answers prompts in batches; its methods and their arguments are named as in vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

from mini_vllm.build import build_engine
from mini_vllm.inputs import Prompt, TokenizedPrompt, tokenized
from mini_vllm.layers.quantization import weight_bytes
from mini_vllm.lora import LoRARequest
from mini_vllm.outputs import RequestOutput
from mini_vllm.sampling_params import SamplingParams
from mini_vllm.tokenizer import Message
from mini_vllm.worker import LeadingModel

T = TypeVar("T")
EachParams = SamplingParams | Sequence[SamplingParams] | None
EachLoRA = LoRARequest | Sequence[LoRARequest | None] | None


class RequestError(Exception):
    """A request ended with an error: ``__cause__`` is the first such error, ``outputs`` has the output of every prompt."""

    def __init__(self, outputs: list[RequestOutput]) -> None:
        self.outputs = outputs
        failed = [(output, answer.error) for output in outputs for answer in output.outputs if answer.error]
        request, error = failed[0]
        super().__init__(
            f"{len(failed)} of {len(outputs)} requests failed; request {request.request_id} (the prompt at index "
            f"{outputs.index(request)}): {type(error).__name__}: {error}. This error's .outputs has all answers"
        )
        self.__cause__ = error


class LLM:
    """Answers prompts with the model of a Hugging Face directory.

    Args:
        model: a directory with config.json and safetensors; tokenizer.json too, for prompts that are text.
        options: arguments of :func:`mini_vllm.build.build_engine`: dtype, device, quantization, kernels, max_model_len,
            step_trace and the engine's sizes.

    Raises:
        CheckpointError: the model cannot be built from the directory; the message says why.
        ValueError: an option is invalid.
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        self.llm_engine, self.tokenizer, self._lora_manager = build_engine(model, **options)
        self._ids = count()

    @property
    def weight_bytes(self) -> int:
        """Bytes that the model's weights take in memory, as packed or quantized; on rank 0 only."""
        served = self.llm_engine.runner.model
        return weight_bytes(served.model if isinstance(served, LeadingModel) else served)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: EachParams = None, lora_request: EachLoRA = None
    ) -> list[RequestOutput]:
        """Answers all prompts in one batch; returns one output per prompt, in the order of the prompts.

        Args:
            sampling_params: one for all prompts, or one for each; SamplingParams() by default.
            lora_request: the adapter for all prompts, or one for each; None for no adapter.

        Raises:
            ValueError: a prompt cannot be served; no prompt has run.
            AdapterError: an adapter cannot be loaded; no prompt has run.
            RequestError: the model failed on a request; all other requests have finished.
        """
        many: list[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        return self._run([tokenized(prompt, self.tokenizer) for prompt in many], sampling_params, lora_request)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: EachParams = None,
        lora_request: EachLoRA = None,
    ) -> list[RequestOutput]:
        """Answers one or many conversations, rendered by the checkpoint's chat template; returns one output per conversation.

        Args:
            messages: [{"role": "user", "content": "..."}], or a list of such lists.

        Raises:
            CheckpointError: there is no chat template, or the template fails on the messages.
            ValueError, AdapterError, RequestError: as :meth:`generate`.
        """
        if self.tokenizer is None:
            raise ValueError("the model has no tokenizer.json; pass {'prompt_token_ids': [...]} to generate() instead")
        one = bool(messages) and isinstance(messages[0], Mapping)
        conversations = cast("Sequence[Sequence[Message]]", [messages] if one else messages)
        texts = [self.tokenizer.apply_chat_template(conversation) for conversation in conversations]
        # The template adds the special tokens.
        ready = [tokenized(text, self.tokenizer, add_special_tokens=False) for text in texts]
        return self._run(ready, sampling_params, lora_request)

    def _run(self, prompts: list[TokenizedPrompt], params: EachParams, lora_request: EachLoRA) -> list[RequestOutput]:
        """Adds a request per prompt, steps until all have finished, and returns the outputs in order; on an error aborts all."""
        each_params = _for_each(prompts, SamplingParams() if params is None else params, "sampling_params")
        each_lora = [self._lora_manager.lora_id(one) for one in _for_each(prompts, lora_request, "lora_requests")]
        ids = [str(next(self._ids)) for _ in prompts]
        finished: dict[str, RequestOutput] = {}
        try:
            for request_id, prompt, own_params, lora_id in zip(ids, prompts, each_params, each_lora, strict=True):
                self.llm_engine.add_request(
                    request_id, prompt.token_ids, own_params, prompt=prompt.text, cache_salt=prompt.cache_salt, lora_id=lora_id
                )
            while not finished.keys() >= set(ids):
                finished |= {output.request_id: output for output in self.llm_engine.step() if output.finished}
        except BaseException:
            self.llm_engine.abort_requests(ids)
            raise
        outputs = [finished[request_id] for request_id in ids]
        if any(answer.error for output in outputs for answer in output.outputs):
            raise RequestError(outputs)
        return outputs


def _for_each(prompts: Sequence[TokenizedPrompt], given: T | Sequence[T], what: str) -> list[T]:
    each = list(given) if isinstance(given, Sequence) else [given] * len(prompts)
    if len(each) != len(prompts):
        raise ValueError(f"there are {len(prompts)} prompts and {len(each)} {what}; give one for all, or as many as prompts")
    return each
