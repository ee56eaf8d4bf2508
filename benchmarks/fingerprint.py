"""Benchmark of ./lab fingerprint without the start of Python: a checkpoint of 16 GB in four files, and one of 0.5 GB in one.

    .venv/bin/python benchmarks/fingerprint.py

The files have real headers, and holes for data: the time must not depend on their size, and the second line shows that.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from labkit.checkpoints.fingerprint import _known, fingerprint  # noqa: E402  # found only with the line above
from labkit.checkpoints.known_models import implied_shapes, resolve  # noqa: E402

RUNS = 30


def main() -> None:
    """Prints medians and spreads, and the first run of each, which reads the known models' configs."""
    for name, files in (("llama-3-8b", 4), ("qwen2.5-0.5b", 1)):
        with TemporaryDirectory() as folder:
            headers = write(Path(folder), name, files)
            taken = []
            for _ in range(RUNS):
                _known.cache_clear()
                start = time.perf_counter()
                found = fingerprint(Path(folder))
                taken.append(1000 * (time.perf_counter() - start))
            assert name in found.names
            held = sum(tensor.bytes[1] - tensor.bytes[0] for tensor in found.stored.values())
            spread = f"{min(taken):.1f}..{max(taken):.1f}"
            print(f"{statistics.median(taken):6.1f} ms ({spread}), first {taken[0]:.1f} (bar 50)  {name}: {held / 1e9:.1f} GB,")
            print(f"          of which {headers:,} bytes of headers in {files} files are read")


def write(folder: Path, name: str, files: int) -> int:
    """Sparse files of the model's shapes in bf16, behind an index; returns the bytes of their headers."""
    shapes, names, headers = implied_shapes(resolve(name).config), list(resolve(name).shapes), 0
    index = {}
    for number in range(files):
        offset, header, file = 0, {}, f"model-{number + 1:05}-of-{files:05}.safetensors"
        for tensor in names[number::files]:
            end = offset + 2 * prod(shapes[tensor])
            header[tensor] = {"dtype": "BF16", "shape": shapes[tensor], "data_offsets": [offset, end]}
            offset, index[tensor] = end, file
        text = json.dumps(header).encode()
        headers += len(text)
        with (folder / file).open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            opened.truncate(8 + len(text) + offset)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return headers


if __name__ == "__main__":
    main()
