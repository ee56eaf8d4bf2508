"""What this machine allows: the rates at which it reads memory and multiplies matrices, and the tokens per second they leave.

    python limits.py TASK RESULT.json

TASK is JSON: ``folder``, the checkpoint, and ``works``, pairs of requests and tokens out. Read by engine.py, in the same run.

The limit is a roofline. A step reads every weight once, whatever the number of its requests, and multiplies every weight with
every row, so it takes at least

    max(bytes / read rate, flops / gemm rate)        bytes = width * weights + the keys and values of all requests
                                                     flops = 2 * weights * rows

and the whole work one prefill of all prompts, then a decode step for every token but the first. The embedding is tied: the LM
head reads the table whole in each step, and in the prefill it has only the last row of each request. Attention's own
multiplications, norms, sampling and the looking up of embeddings count as nothing, so nobody reaches the limit.

A weight is 4 bytes wide in fp32. The checkpoint is in bfloat16, so 2 hold each of its numbers as well, whatever is computed with
them, and that is the other limit. The read rate is that of a buffer as large as the weights, read again and again: where a cache
keeps some of it, that counts, as it does for the engine. With int8 weights it is a buffer a quarter as large. The limit for them
is given for one request only; the prefill is still counted in fp32, and for more rows one would have to know the rate of int8
gemms as well.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from mini_vllm.kernels.packed_linear import onednn_matmul
from mini_vllm.kernels.packed_matmul import PackedWeight, lanes, packed_matmul

PROMPT = 128
FP32, BF16, INT8 = 4, 2, 1
"""Bytes of a weight."""

RUNS = 5
GEMMS = ((4096, 576, 3072), (4096, 1536, 576), (2048, 2048, 2048))
"""Rows, inputs, outputs: a prefill of 32 prompts through the model's widest layers, and the shape that gemms are praised for."""


@dataclass(frozen=True)
class Size:
    """What a step reads and multiplies with.

    Attributes:
        layers: weights of all linear layers between embedding and LM head.
        head: weights of the LM head.
        kv: bytes of the fp32 keys and values of one token.
    """

    layers: int
    head: int
    kv: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Size:
        """Of a Llama, by its config.json."""
        hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        kv_size = config.get("head_dim", hidden // heads) * config["num_key_value_heads"]
        layer = hidden * (2 * hidden + 2 * kv_size + 3 * config["intermediate_size"])
        return cls(layers * layer, config["vocab_size"] * hidden, layers * 2 * kv_size * FP32)

    @property
    def weights(self) -> int:
        """All that a step reads."""
        return self.layers + self.head


def tokens_per_second(size: Size, requests: int, out: int, read: float, gemm: float, width: int = FP32) -> float:
    """The limit for one work.

    Args:
        size: of the model.
        requests: how many, each with a prompt of PROMPT tokens.
        out: tokens each is answered with.
        read: bytes per second.
        gemm: flops per second.
        width: bytes of a weight.
    """
    weights = width * size.weights
    prefill = max(weights / read, 2 * requests * (PROMPT * size.layers + size.head) / gemm)
    kv = requests * size.kv * (PROMPT + out / 2)
    decode = max((weights + kv) / read, 2 * requests * size.weights / gemm)
    return requests * out / (prefill + (out - 1) * decode)


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of RUNS runs, after one that does not count."""
    seconds = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def read_rate(num_bytes: int) -> float:
    """Bytes per second, reading ``num_bytes`` of float32 with all cores: the fastest of torch's dot, torch's product of one row
    with a matrix, and mini_vllm's."""
    width = lanes(torch.float32)
    matrix = torch.ones(num_bytes // FP32 // 1024 // width * width, 1024)
    row, flat = torch.ones(1, 1024), matrix.view(-1)
    scale, zero = torch.ones(1, len(matrix)), torch.empty(0, 0)
    weight = PackedWeight.of(matrix.view(-1, 1024, width), scale, zero, None, len(matrix))
    reads = (
        lambda: linear(row, matrix),
        lambda: torch.dot(flat, flat),
        lambda: packed_matmul(row, weight),
    )
    return flat.nbytes / min(map(fastest, reads))


def gemm_rate() -> float:
    """Flops per second of the best of GEMMS in fp32, with all cores, by whichever of torch's libraries is faster here."""
    rates = []
    for rows, inputs, outputs in GEMMS:
        x, weight = torch.randn(rows, inputs), torch.randn(inputs, outputs)
        for matmul in (torch.matmul, onednn_matmul):
            rates.append(2 * rows * inputs * outputs / fastest(lambda f=matmul, x=x, weight=weight: f(x, weight)))
    return max(rates)


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Measures the rates and works out the limits: ``fp32`` and ``bf16`` for each work, ``int8`` for the first."""
    size = Size.of(json.loads(Path(task["folder"], "config.json").read_text()))
    read, read_bf16, read_int8 = (read_rate(width * size.weights) for width in (FP32, BF16, INT8))
    gemm = gemm_rate()
    return {
        "threads": torch.get_num_threads(),
        "machine": f"{torch.get_num_threads()} cores, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}",
        "read": [FP32 * size.weights, read],
        "read_int8": [size.weights, read_int8],
        "gemm": gemm,
        "bf16": [tokens_per_second(size, *work, read_bf16, gemm, width=BF16) for work in task["works"]],
        "fp32": [tokens_per_second(size, requests, out, read, gemm) for requests, out in task["works"]],
        "int8": [tokens_per_second(size, *task["works"][0], read_int8, gemm, width=INT8)],
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(sys.argv[1]))))
