"""Tensor parallelism by real processes under torchrun: the tokens of one rank, and no hanging when a rank is gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from mini_vllm import LLM, SamplingParams

TinyModel = Callable[..., tuple[Path, PreTrainedModel]]

SERVE = Path(__file__).with_name("serve_ranks.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PROMPTS = [[5], [1, 2, 3], [7] * 20, list(range(40)), list(range(90, 30, -1))]


def task(folder: Path, prompts: list[list[int]], max_tokens: int = 12, die: int | None = None, **options: Any) -> str:
    return json.dumps({"folder": str(folder), "prompts": prompts, "max_tokens": max_tokens, "die": die, "options": options})


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


def answers_of_ranks(ranks: int, folder: Path, prompts: list[list[int]], tmp_path: Path, **options: Any) -> list[list[int]]:
    result = tmp_path / "answers.json"
    job = torchrun("--standalone", "--nproc-per-node", str(ranks), SERVE, task(folder, prompts, **options), result)
    assert job.returncode == 0, job.stderr
    return json.loads(result.read_text())  # type: ignore[no-any-return]


def answers_alone(folder: Path, prompts: list[list[int]], max_tokens: int = 12) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    outputs = LLM(folder, dtype="float32").generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize(
    ("ranks", "family", "changes"),
    [
        pytest.param(2, "llama", {"mlp_bias": True, "attention_bias": True}, id="llama with biases, a kv head each"),
        pytest.param(2, "qwen3", {"head_dim": 16, "tie_word_embeddings": True}, id="qwen3, tied"),
        pytest.param(4, "qwen2", {"num_attention_heads": 8, "hidden_size": 64}, id="qwen2, 4 ranks for 2 kv heads"),
    ],
)
def test_ranks_together_answer_as_one_alone(
    tiny_model: TinyModel, tmp_path: Path, ranks: int, family: str, changes: dict[str, Any]
) -> None:
    folder, _ = tiny_model(family, **changes)
    expected = answers_alone(folder, PROMPTS)
    # Chunks of prompts, too few blocks for all: requests are cut, preempted and let in again, and every rank keeps pace.
    sizes = {"max_num_batched_tokens": 16, "block_size": 4, "num_blocks": 40}
    assert answers_of_ranks(ranks, folder, PROMPTS, tmp_path, **sizes) == expected


def test_smollm2_on_three_ranks(smollm2: Path, tmp_path: Path) -> None:
    """9 query heads and 3 kv heads: three ranks share them, two cannot."""
    prompts = [[504, 3575, 282, 4649, 314], list(range(1000, 1100))]
    assert answers_of_ranks(3, smollm2, prompts, tmp_path) == answers_alone(smollm2, prompts)
    job = torchrun("--standalone", "--nproc-per-node", "2", "-m", "mini_vllm", "generate", smollm2, "Hello")
    assert job.returncode == 1
    assert "9 query heads cannot be shared evenly by 2 ranks; start 1 or 3 ranks" in job.stderr
    assert "mini_vllm/" not in job.stderr, "a sentence, and no traceback of ours"


@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_that_dies_takes_the_job_down(tiny_model: TinyModel, tmp_path: Path, dying: int) -> None:
    folder, _ = tiny_model("llama")
    result = tmp_path / "answers.json"
    job = torchrun("--standalone", "--nproc-per-node", "2", SERVE, task(folder, PROMPTS, die=dying), result)
    assert job.returncode == 1
    assert "SIGKILL" in job.stderr, "torchrun says what became of the rank"
    assert not result.exists()


TWO_HOSTS = """
set -euo pipefail
ip link set lo up
unshare --net sleep 300 & host=$!
trap 'kill $host' EXIT
until [ "$(readlink /proc/$host/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
there() { nsenter --target $host --net "$@"; }
ip link add here type veth peer name there netns $host
ip address add 10.93.0.1/24 dev here
ip link set here up
there ip link set lo up
there ip address add 10.93.0.2/24 dev there
there ip link set there up
node() { "$PYTHON" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --master-addr 10.93.0.1 --node-rank "$@"; }
export -f node
GLOO_SOCKET_IFNAME=there there bash -c 'node 1 "$@" > "$SAID.1" 2>&1; echo $? > "$SAID.1.status"' - "$@" & other=$!
GLOO_SOCKET_IFNAME=here node 0 "$@" > "$SAID.0" 2>&1 && status=0 || status=$?
echo $status > "$SAID.0.status"
wait $other
"""
"""Two network namespaces with a cable between them stand for two hosts: neither sees the other but through the cable."""


def on_two_hosts(*arguments: str | Path, said: Path) -> list[tuple[int, str]]:
    """Exit status and last words of the job on each host."""
    # In processes of their own as well, which end together whatever happens.
    new_network = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("ip") is None or subprocess.run([*new_network, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make network namespaces (unshare --user --net), or has no iproute2")
    command = [*new_network, "bash", "-c", TWO_HOSTS, "two-hosts", *map(str, arguments)]
    hosts = subprocess.run(
        command,
        env=ENVIRONMENT | {"PYTHON": sys.executable, "SAID": str(said)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert hosts.returncode == 0, hosts.stderr
    return [(int(Path(f"{said}.{n}.status").read_text()), Path(f"{said}.{n}").read_text()) for n in (0, 1)]


def test_two_hosts(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, _ = tiny_model("llama")
    result = tmp_path / "answers.json"
    ended = on_two_hosts(SERVE, task(folder, PROMPTS), result, said=tmp_path / "said")
    assert [status for status, _ in ended] == [0, 0], ended
    assert json.loads(result.read_text()) == answers_alone(folder, PROMPTS)


def test_a_host_that_is_lost_ends_the_other(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, _ = tiny_model("llama")
    (here, said_here), (there, said_there) = on_two_hosts(
        SERVE, task(folder, PROMPTS, die=1), tmp_path / "answers.json", said=tmp_path / "said"
    )
    assert (here, there) == (1, 1)
    assert "rank 0 of 2 has lost another rank, and the model cannot run without it" in said_here
    assert "SIGKILL" in said_there


def test_one_job_serves_one_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The other ranks follow the first; of a second they would run the first's layers."""
    folder, _ = tiny_model("llama")
    script = tmp_path / "twice.py"
    script.write_text(
        "import sys\nfrom mini_vllm import LLM\n"
        "try:\n    first, second = LLM(sys.argv[1]), LLM(sys.argv[1])\nexcept ValueError as error:\n    sys.exit(str(error))\n"
    )
    job = torchrun("--standalone", "--nproc-per-node", "2", script, folder)
    assert job.returncode == 1
    assert "these 2 ranks serve a model already, and the other ranks run its steps only; start a job for each model" in job.stderr
