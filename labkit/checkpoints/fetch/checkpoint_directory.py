"""Directories of fetched checkpoints: their manifest, and their creation in one atomic rename.

    ~/.cache/mini-vllm-labs/
        smollm2-135m-instruct/                      a checkpoint with its manifest
        .smollm2-135m-instruct.x1y2z3w4.making/     during a fetch: the downloads, and the new directory
        .smollm2-135m-instruct.lock                 during a fetch: locked by the process that makes the directory

A killed process leaves at most the last two. The system releases the lock of a killed process, and the next process that gets the
lock removes every folder of the second kind: no other process can be using it.
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
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from labkit.system.atomic_write import atomic_write
from labkit.system.console import working
from labkit.system.errors import UserError

MANIFEST, MAKING = "mini-vllm-labs.json", ".making"
"""The manifest's file name, which only directories made by a fetch contain, and the suffix of the folder for work in progress."""

Entry = Mapping[str, Any]
"""A file in a manifest: its size as ``bytes``, and its hash as ``sha256`` or ``git sha1``, or ``dummy`` for dummy weights."""


@dataclass(frozen=True)
class Manifest:
    """The contents of a fetched directory, and their source.

    Attributes:
        model: the requested model, a hub id or ``smollm2``.
        weights: ``real`` or ``dummy``; ``unfinished`` while the files are being replaced.
        origin: the source of the files, in words.
        commit, revision: the commit and the requested revision of real weights from the hub, else "".
        why: the reason for dummy weights, else "".
    """

    model: str
    weights: str
    origin: str
    commit: str
    revision: str
    why: str
    files: Mapping[str, Entry]

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file["bytes"] for file in self.files.values())


def checkpoint_folder(name: str) -> Path:
    """The default directory of a checkpoint, in ``MINI_VLLM_LABS_CACHE``, else mini-vllm-labs in ``XDG_CACHE_HOME`` or ~/.cache.

    Raises UserError if neither variable names a folder and the user has no home directory.
    """
    if root := os.environ.get("MINI_VLLM_LABS_CACHE"):
        return Path(root).expanduser().absolute() / name
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The XDG base directory specification: a relative path there is ignored.
        return (cache if cache.is_absolute() else Path.home() / ".cache") / "mini-vllm-labs" / name
    except RuntimeError as error:
        raise UserError("this user has no home directory; set MINI_VLLM_LABS_CACHE to a folder for checkpoints") from error


def read_manifest(folder: Path, model: str | None = None) -> Manifest | None:
    """The manifest of a directory, or None if it cannot be read; raises UserError if it names another model than ``model``."""
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if model and manifest.model != model:
        raise UserError(f"{folder} holds {manifest.model}, {manifest.weights} weights; name another directory by --to")
    return manifest


def fault_of(folder: Path, *, verify: bool = False) -> str | None:
    """A directory's first difference from its manifest in words, or None: missing file, wrong size; if ``verify``, wrong hash."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.weights == "unfinished":
        return "it was not finished"
    try:
        for name, entry in manifest.files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != entry["bytes"]:
                return f"{name} has {size:,} bytes and should have {entry['bytes']:,}"
            if verify and (fault := content_fault(path, entry)):
                return fault
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error!r:.200})"
    return None


def content_fault(path: Path, entry: Entry) -> str | None:
    """The difference between the bytes of a file and its manifest entry, in words, or None."""
    if "dummy" in entry:
        from labkit.checkpoints.fetch.dummy_weights import dummy_fault

        return dummy_fault(path)
    kind = "sha256" if "sha256" in entry else "git sha1"
    digest = digest_of(path, kind)
    return None if digest == entry[kind] else f"{path.name} has {kind} {digest} and should have {entry[kind]}"


def digest_of(path: Path, kind: str) -> str:
    """A file's ``sha256``, or its ``git sha1``, the SHA-1 of "blob <size>", a zero byte and its bytes, in hex."""
    with path.open("rb") as file:
        if kind == "sha256":
            return hashlib.file_digest(file, "sha256").hexdigest()
        start = f"blob {os.fstat(file.fileno()).st_size}\0".encode()
        return hashlib.file_digest(file, lambda: hashlib.sha1(start, usedforsecurity=False)).hexdigest()


def entry_of(path: Path) -> Entry:
    """The manifest entry of an existing file: its size and its sha256."""
    return {"bytes": path.stat().st_size, "sha256": digest_of(path, "sha256")}


def build(
    folder: Path,
    room: int,
    is_current: Callable[[Manifest], bool],
    fill: Callable[[Path, Path], Manifest],
    *,
    verify: bool = False,
) -> Manifest:
    """Makes the directory, unless it has the requested content; waits for another process that makes it; returns its manifest.

    Args:
        folder: a directory that is missing, empty, or was made here.
        room: the bytes of free disk space that are needed to make it.
        is_current: returns whether a manifest describes the requested content.
        fill: called with a folder for intermediate files and the new directory, which it fills; returns the new manifest.
        verify: check the hashes of an existing directory; if False, only that each file exists and has the right size.

    Raises UserError if the directory holds other files, the disk is full, or the folder is not writable.
    """

    def current() -> Manifest | None:
        manifest = read_manifest(folder)
        return manifest if manifest and is_current(manifest) and not fault_of(folder, verify=verify) else None

    if manifest := current():  # before the lock: nothing is written, so the folder may be read-only
        return manifest
    _check_target(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if manifest := current():
                return manifest
            if shutil.disk_usage(folder.parent).free < room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # tempfile's eight characters exactly: Llama-3 must not remove a folder of Llama-3.2-1B.
            for stale in folder.parent.glob(f".{glob.escape(folder.name)}.????????{MAKING}/"):
                shutil.rmtree(stale, ignore_errors=True)
            with tempfile.TemporaryDirectory(MAKING, f".{folder.name}.", folder.parent, ignore_cleanup_errors=True) as scratch:
                made = Path(scratch, "made")
                made.mkdir()
                manifest = fill(Path(scratch), made)
                _put_in_place(made, manifest, folder)
                return manifest
    except OSError as error:
        raise UserError(
            f"{folder} could not be written: {error.strerror or error}; {free_megabytes(folder.parent)} MB are free there. Make "
            f"room for {max(1, room // 10**6):,} MB, or name another folder with --to or MINI_VLLM_LABS_CACHE, then try again; "
            "nothing half-written was kept"
        ) from error


def free_megabytes(folder: Path) -> str:
    """The free disk space in MB, as text, of a folder or of its nearest existing parent."""
    return f"{shutil.disk_usage(existing(folder)).free // 10**6:,}"


def existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    return next(found for found in (folder, *folder.parents) if found.is_dir())


def _check_target(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a directory that does not exist yet, or an empty one")
    if folder.is_mount():
        raise UserError(f"{folder} is a mount point, which cannot be replaced in one rename; name a directory inside it")
    if folder.is_dir() and not (folder / MANIFEST).exists() and (held := sorted(path.name for path in folder.iterdir())):
        raise UserError(
            f"{folder} holds {', '.join(held[:3])}{', ...' if held[3:] else ''} ({len(held)} in all), which were not made here; "
            "nothing there was changed. Name a directory that does not exist yet, or an empty one"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks the directory's name, after waiting for any other process that makes it; a killed process releases its lock."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        with working(f"Waiting for another process that fetches {folder.name}"):
            lock.acquire()
    try:
        yield
    finally:
        # Removed before the release: a process that waits finds the file gone, and FileLock tries again by name.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _put_in_place(made: Path, manifest: Manifest, folder: Path) -> None:
    _write_manifest(made, manifest)
    if not (folder / MANIFEST).exists():
        made.rename(folder)
        return
    # The directory may also hold the user's files: only those of the two manifests are replaced or removed.
    old = read_manifest(folder)
    before = dict(old.files) if old else {}
    _write_manifest(folder, replace(manifest, weights="unfinished", files=before | dict(manifest.files)))
    for name in before.keys() - manifest.files.keys():
        if name == Path(name).name:
            (folder / name).unlink(missing_ok=True)
    for name in manifest.files:
        (made / name).replace(folder / name)
    (made / MANIFEST).replace(folder / MANIFEST)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    atomic_write(folder / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
