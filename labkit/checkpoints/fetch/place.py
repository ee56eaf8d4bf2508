"""Where fetched checkpoints stand, and how a directory comes to be there: found whole, or made beside it and moved in one rename.

    ~/.cache/mini-vllm-labs/
        smollm2-135m-instruct/                      a checkpoint; with its manifest from the moment it has this name
        .smollm2-135m-instruct.x1y2z3w4.making/     while it is made: what was downloaded, and the directory to be
        .smollm2-135m-instruct.lock                 while it is made: held by the one run that makes it

Whoever is killed leaves at most the last two behind. The lock goes with its process, and the next run that holds it removes every
folder of the second kind: nobody else can be at work on them.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from labkit.system.console import working
from labkit.system.errors import UserError

MANIFEST = "mini-vllm-labs.json"
"""What the directory holds: a ``Manifest``. A directory that has it was made here."""


MAKING = ".making"
"""How the name ends of a folder that a directory is made in."""


class Fallback(Enum):
    """What is taken where the real weights cannot be had."""

    auto = "auto"
    dummy = "dummy"
    smollm2 = "smollm2"
    none = "none"


@dataclass(frozen=True)
class Manifest:
    """What a directory holds.

    Attributes:
        model: what was asked for, a hub id or ``smollm2``.
        weights: ``real`` or ``dummy``; ``unfinished`` while one is put in the place of another.
        origin: where they are from, in words.
        commit: the hub's commit of real weights from there, else "".
        revision: the revision that was asked for, else "".
        why: why they are dummy weights, else "".
        files: by name, each file's ``bytes`` and one of ``sha256``, ``git sha1`` or ``dummy``.
    """

    model: str
    weights: str
    origin: str
    commit: str
    revision: str
    why: str
    files: Mapping[str, Mapping[str, Any]]

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file["bytes"] for file in self.files.values())


def checkpoint_folder(name: str) -> Path:
    """Where a checkpoint is kept: in ``MINI_VLLM_LABS_CACHE``, or in mini-vllm-labs under ``XDG_CACHE_HOME`` or ~/.cache.

    Raises:
        UserError: none of the three is set, and this user has no home directory.
    """
    if root := os.environ.get("MINI_VLLM_LABS_CACHE"):
        return Path(root).expanduser().absolute() / name
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The XDG base directory specification: a relative path there is to be ignored.
        return (cache if cache.is_absolute() else Path.home() / ".cache") / "mini-vllm-labs" / name
    except RuntimeError as error:
        raise UserError("this user has no home directory; set MINI_VLLM_LABS_CACHE to a folder for checkpoints") from error


def read_manifest(folder: Path) -> Manifest | None:
    """What the directory says that it holds, or None where it says nothing that can be read."""
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def fault_of(folder: Path, *, verify: bool = False) -> str | None:
    """The first thing that keeps a directory from being what its manifest says, in words, or None.

    Args:
        verify: read every byte; else only see that each file is there in its size.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.weights == "unfinished":
        return "it was not finished"
    try:
        for name, file in manifest.files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is not there"
            if (size := path.stat().st_size) != file["bytes"]:
                return f"{name} has {size:,} bytes and should have {file['bytes']:,}"
            if verify and (fault := content_fault(path, file)):
                return fault
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error!r:.200})"
    return None


def content_fault(path: Path, file: Mapping[str, Any]) -> str | None:
    """What is wrong with the bytes of a file whose manifest entry is given, or None."""
    if "dummy" in file:
        from labkit.checkpoints.fetch.dummy import dummy_fault

        return dummy_fault(path)
    kind = "sha256" if "sha256" in file else "git sha1"
    digest = digest_of(path, kind)
    return None if digest == file[kind] else f"{path.name} has {kind} {digest} and should have {file[kind]}"


def digest_of(path: Path, kind: str) -> str:
    """A file's ``sha256``, or its ``git sha1``, which is that of its bytes behind "blob <size>" and a zero byte, in hex."""
    with path.open("rb") as file:
        if kind == "sha256":
            return hashlib.file_digest(file, "sha256").hexdigest()
        start = f"blob {os.fstat(file.fileno()).st_size}\0".encode()
        return hashlib.file_digest(file, lambda: hashlib.sha1(start, usedforsecurity=False)).hexdigest()


def described(path: Path) -> dict[str, Any]:
    """A manifest entry for a file as it is."""
    return {"bytes": path.stat().st_size, "sha256": digest_of(path, "sha256")}


def build(folder: Path, room: int, is_done: Callable[[], bool], fill: Callable[[Path, Path], Manifest]) -> None:
    """Makes the directory, unless another run does so meanwhile.

    Args:
        folder: a directory that is missing, empty, or made by an earlier run.
        room: bytes of disk that will be needed beside it.
        is_done: whether there is nothing left to do; asked once no other run is at work.
        fill: given a folder for what it needs on the way, and the directory to be, both empty, makes the latter and says what it
            holds; ``files`` names what the manifest has to name.

    Raises:
        UserError: the directory holds something else, there is no room, or no leave to write.
    """
    _refuse_what_is_not_ours(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if is_done():
                return
            if shutil.disk_usage(folder.parent).free < room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # tempfile's eight characters and no more: Llama-3 must not take the folder of Llama-3.2-1B for one of its own.
            for stale in folder.parent.glob(f".{glob.escape(folder.name)}.????????{MAKING}/"):
                shutil.rmtree(stale, ignore_errors=True)
            with tempfile.TemporaryDirectory(MAKING, f".{folder.name}.", folder.parent, ignore_cleanup_errors=True) as shop:
                made = Path(shop, "made")
                made.mkdir()
                manifest = fill(Path(shop), made)
                _write_manifest(made, manifest)
                _put_in_place(made, folder)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written: {error.strerror or error}; {_free(folder.parent)}. Make room for "
            f"{max(1, room // 10**6):,} MB, or name another folder with --to or MINI_VLLM_LABS_CACHE, then try again; "
            "nothing half-written was kept"
        ) from error


def _refuse_what_is_not_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a directory that does not exist yet, or an empty one")
    if folder.is_mount():
        raise UserError(f"{folder} is a mount point, which cannot be put in place in one move; name a directory inside it")
    if folder.is_dir() and not (folder / MANIFEST).exists() and (held := sorted(path.name for path in folder.iterdir())):
        raise UserError(
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


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    new = folder / f".{MANIFEST}.new"
    new.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    new.replace(folder / MANIFEST)


def _put_in_place(made: Path, folder: Path) -> None:
    if not (folder / MANIFEST).exists():
        made.rename(folder)
        return
    # Damaged or replaced, and maybe with files of the user's beside ours: only ours are touched.
    old, new = read_manifest(folder), read_manifest(made)
    if new is None:
        raise OSError(errno.EIO, f"the manifest in {made} cannot be read")
    before = dict(old.files) if old else {}
    _write_manifest(folder, replace(new, weights="unfinished", files=before | dict(new.files)))
    for name in before.keys() - new.files.keys():
        if name == Path(name).name:
            (folder / name).unlink(missing_ok=True)
    for name in new.files:
        (made / name).replace(folder / name)
    (made / MANIFEST).replace(folder / MANIFEST)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free // 10**6:,} MB are free there"
    except OSError:
        return f"{folder} does not exist"
