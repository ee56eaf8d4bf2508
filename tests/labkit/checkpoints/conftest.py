"""A hub on loopback with two models, and ``./lab fetch`` run against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fetched import GATED, MIB, MODEL, SHARDS, Fetch, Ran
from loopback_hub import Hub, Repository, running

from labkit.checkpoints.fetch.dummy_weights import write_dummy
from labkit.checkpoints.headers import INDEX
from labkit.system.labs import ROOT


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository as they are: two files of weights with an index, the first of 12 MB, and much that no load needs."""
    folder = tmp_path_factory.mktemp("files")
    write_dummy(folder / SHARDS[0], {"model.layers.0.big.weight": (6, MIB)})
    write_dummy(folder / SHARDS[1], {"model.norm.weight": (64,)})
    index = {"weight_map": {"model.layers.0.big.weight": SHARDS[0], "model.norm.weight": SHARDS[1]}}
    return {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}' * 100,
        INDEX: json.dumps(index).encode(),
        **{name: (folder / name).read_bytes() for name in SHARDS},
        "README.md": b"theirs",
        "modeling_evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"a pickle",
        "consolidated.safetensors": b"the same once more",
    }


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    with running({MODEL: Repository(dict(files)), GATED: Repository(dict(files), gated=True)}) as hub:
        yield hub


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """One in which the client knows this hub, no token, and nothing that was fetched before."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "MINI_VLLM_LABS_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def fetch(environment: dict[str, str]) -> Fetch:
    """Runs ``./lab fetch ... --json`` and waits; further variables by name."""

    def run(*arguments: str, **variables: str) -> Ran:
        command = [sys.executable, "-P", "-m", "labkit", "fetch", *arguments, "--json"]
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr
        return Ran(done.returncode, json.loads(done.stdout or "{}"), done.stderr)

    return run


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
