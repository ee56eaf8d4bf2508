"""Runs vLLM's and transformers' models on prompts on the CPU in float32, and captures the inputs and outputs of modules."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import vllm
from torch import Tensor, nn
from vllm.distributed import cleanup_dist_env_and_memory

from labkit.checkpoints.known_models import Model
from labkit.load.library_output import describe_error, silence_stderr
from labkit.system.errors import UserError

MAX_PROMPT = 24  # the number of tokens of a prompt


@dataclass
class Activations:
    """The values that one prompt of T tokens produced; ``logits`` is float32 (T, V).

    Attributes:
        inputs, outputs: module name -> the module's input or output, float32 (T, features), in the order of execution.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


@contextmanager
def _captured(model: nn.Module) -> Iterator[Activations]:
    """Yields Activations; adds the input and the output of every module with own parameters or a quantization method."""
    activations, hooks = Activations(), []

    def before(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        tensors = [each for each in args if isinstance(each, Tensor)]
        if tensors and tensors[0].is_floating_point():
            # vLLM's norms may get a residual as a second argument, and add it in place.
            residual = len(tensors) == 2 and tensors[1].shape == tensors[0].shape
            activations.inputs[name] = _rows(tensors[0] + tensors[1] if residual else tensors[0])

    def after(name: str, _: nn.Module, __: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(out, Tensor) and out.is_floating_point():
            activations.outputs[name] = _rows(out)

    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None or hasattr(module, "quant_method"):
            hooks.append(module.register_forward_pre_hook(partial(before, name)))
            hooks.append(module.register_forward_hook(partial(after, name)))
    try:
        yield activations
    finally:
        for hook in hooks:
            hook.remove()


def _rows(tensor: Tensor) -> Tensor:
    """A float32 copy as (T, features)."""
    return tensor.detach().float().clone().reshape(-1, tensor.shape[-1])


def run_transformers(directory: Path, prompts: list[list[int]], trusted: bool) -> list[Activations]:
    """Runs transformers' model of a checkpoint; returns the activations of each prompt; raises UserError if it cannot run."""
    captured = []
    try:
        with silence_stderr():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=trusted
            )
            with torch.inference_mode():
                for prompt in prompts:
                    with _captured(model) as activations:
                        activations.logits = model(torch.tensor([prompt]), use_cache=False).logits[0].float()
                    captured.append(activations)
    except Exception as error:
        raise UserError(f"transformers {transformers.__version__} cannot run {directory}: {describe_error(error)}") from error
    return captured


def run_vllm(model: Model, prompts: list[list[int]]) -> list[Activations]:
    """Runs vLLM's engine; returns the activations of each prompt; raises UserError with vLLM's message if that fails."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the model runs in this process, where it can be captured
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    settings: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "skip_tokenizer_init": True, "disable_log_stats": True}
    settings |= {"max_model_len": 2 * MAX_PROMPT, "max_num_seqs": 1, "enable_prefix_caching": False}
    llm: Any = None
    with silence_stderr():
        try:
            llm = vllm.LLM(str(model.directory), trust_remote_code=model.trust_remote_code, **settings)
            return [llm.apply_model(partial(_run_prompt, llm, prompt))[0] for prompt in prompts]
        except Exception as error:
            raise UserError(
                f"vLLM {vllm.__version__} cannot serve {model.architecture} on this CPU: {describe_error(error)}; "
                "correct what the error names, or verify the load alone with --no-logits"
            ) from error
        finally:
            del llm
            gc.collect()
            cleanup_dist_env_and_memory()


def _run_prompt(llm: Any, prompt: list[int], model: nn.Module) -> Activations:
    """Generates one token with ``llm``, whose model is ``model``; returns the activations and logits of the prompt's tokens."""
    hidden: list[Tensor] = []
    forward = model.forward

    def capturing(*args: Any, **kwargs: Any) -> Tensor:
        hidden.append(forward(*args, **kwargs).detach().clone())
        return hidden[-1]

    model.forward = capturing
    with _captured(model) as activations:
        params = vllm.SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    del model.forward
    with torch.inference_mode():
        activations.logits = model.compute_logits(hidden[0][: len(prompt)]).float()  # type: ignore[operator]
    return activations
