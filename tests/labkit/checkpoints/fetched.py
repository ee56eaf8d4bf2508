"""Names and helpers of the tests that fetch from a hub on loopback (loopback_hub.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labkit.checkpoints.fetch.checkpoint_directory import MANIFEST, fault_of
from labkit.checkpoints.headers import INDEX

MODEL, GATED = "tiny/llama", "meta-llama/Llama-3.2-1B"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WANTED = {"config.json", "generation_config.json", "tokenizer.json", INDEX, *SHARDS}
MIB = 1 << 20


@dataclass
class Ran:
    """How a run of ``./lab fetch`` ended."""

    status: int
    told: dict[str, object]
    said: str


Fetch = Callable[..., Ran]


def folder_of(ran: Ran) -> Path:
    assert ran.status == 0, ran.said
    return Path(str(ran.told["directory"]))


def assert_whole(folder: Path, files: dict[str, bytes]) -> None:
    """The directory has what a load needs, byte for byte, and nothing else but our two files."""
    assert {path.name for path in folder.iterdir()} == WANTED | {"README.md", MANIFEST}
    for name in WANTED:
        assert (folder / name).read_bytes() == files[name], name
    assert fault_of(folder, verify=True) is None


def left(cache: Path) -> list[str]:
    """What stands where checkpoints are kept."""
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []
