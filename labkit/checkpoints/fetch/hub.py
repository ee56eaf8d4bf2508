"""Download of a checkpoint from the Hugging Face hub: only the files that a load needs, each checked against the hub's hash.

huggingface_hub (the client) downloads into its cache, where transformers and vLLM find the files too. It compares only sizes, so
every file is linked or copied into the new directory and hashed there, while the next one is downloaded; a file with another hash
is downloaded once more. The client's ``verify_repo_checksums`` is not used: it always asks the hub, so it cannot check offline,
and it hashes only after the last download (sha256 takes 1 s per GB).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import FileMetadataError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging
from huggingface_hub.utils.tqdm import tqdm

from labkit.checkpoints.fetch.checkpoint_directory import Entry, content_fault, existing
from labkit.checkpoints.fetch.hub_errors import explained, token
from labkit.checkpoints.headers import INDEX, PICKLES
from labkit.system.atomic_write import atomic_write
from labkit.system.console import transferring, working
from labkit.system.errors import UserError

NEEDED = re.compile(
    r"(config|generation_config|preprocessor_config|quantize_config|hf_quant_config|"
    r"tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json|"
    r"merges\.txt|vocab\.txt|tokenizer\.model|tekken\.json|chat_template\.jinja|" + re.escape(INDEX)
)
"""The files to download besides the weights: configuration, tokenizer and index. No code, and no pickle."""

WEIGHTS = ".safetensors"
ATTEMPTS = 3
"""The largest number of attempts to download a file if the connection breaks; the client itself does not try again."""
MIN_LINKED_BYTES = 10_000_000
"""Smaller files are copied, not linked: an editor that writes in place would change the client's cache, too."""

Files = Mapping[str, Entry]
"""Manifest entries by file name, with the hub's hash: sha256, or git sha1 for small text files."""


@dataclass(frozen=True)
class Hub:
    """One model at one revision of the hub; ``known`` are ids to suggest if there is no such model."""

    model: str
    revision: str
    known: list[str]

    @property
    def _cache(self) -> Path:
        """The client's cache of this model (its documentation, "Understand caching")."""
        return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.model, repo_type="model"))

    def commit(self) -> str:
        """The commit hash of the revision, by one HEAD request for config.json.

        Raises:
            GatedError: the model is gated, and this user has no access.
            UnreachableError: the hub did not answer, or ``HF_HUB_OFFLINE`` is set.
            UserError: no such repository or revision, no config.json, or the token is not accepted.
        """
        token()
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            metadata = get_hf_file_metadata(hf_hub_url(self.model, "config.json", revision=self.revision))
        except Exception as error:
            raise self._explained(error) from error
        if metadata.commit_hash is None:
            raise self._explained(FileMetadataError())
        return metadata.commit_hash

    def files(self, commit: str) -> Files:
        """Manifest entries of the files of a commit that a load may need, by name; of all weights, even if the index lacks them.

        Raises UserError if there is no safetensors file, or a needed file has an unusual name.
        """
        try:
            listed = [entry for entry in HfApi().list_repo_tree(self.model, revision=commit) if isinstance(entry, RepoFile)]
        except Exception as error:
            raise self._explained(error) from error
        if not any(entry.path.endswith(WEIGHTS) for entry in listed):
            pickled = next((entry.path for entry in listed if entry.path.endswith(PICKLES)), None)
            only = f", only {pickled}, a pickle: reading one runs the code in it" if pickled else ""
            raise UserError(f"{self.model} has no safetensors file{only}; choose a model that has")
        chosen = [entry for entry in listed if NEEDED.fullmatch(entry.path) or entry.path.endswith(WEIGHTS)]
        if odd := next((entry.path for entry in chosen if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", entry.path)), None):
            raise UserError(f"{self.model} has a file {odd!r:.200}, which is no plain file name; nothing was fetched")
        return {
            entry.path: {"bytes": entry.lfs.size, "sha256": entry.lfs.sha256}
            if entry.lfs
            else {"bytes": entry.size, "git sha1": entry.blob_id}
            for entry in chosen
        }

    def download(self, commit: str, files: Files, made: Path, earlier: Path) -> Files:
        """Puts a commit's files into the empty ``made``, except weights that the index does not name; returns their entries.

        Correct files in ``earlier`` are not downloaded. Raises UnreachableError if the connection broke in three attempts,
        and UserError if the disk is full, or a file twice had another hash than the hub's.
        """
        if INDEX in files:
            self._collect(commit, {INDEX: files[INDEX]}, made, earlier)
            files = _without_unindexed(files, made / INDEX, self.model)
        self._collect(commit, {name: entry for name, entry in files.items() if name != INDEX}, made, earlier)
        if commit != self.revision:
            ref = self._cache / "refs" / self.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(ref, commit)
        return files

    def cached(self) -> tuple[str, Files, Path] | None:
        """The commit, files and folder of this revision in the client's cache, without a request; None if a file is missing."""
        config = try_to_load_from_cache(self.model, "config.json", revision=self.revision)
        if not isinstance(config, str):
            return None
        folder, files = Path(config).parent, dict[str, Entry]()
        for path in sorted(folder.iterdir()):
            if NEEDED.fullmatch(path.name) or path.name.endswith(WEIGHTS):
                # The cache stores a file under its hash, and a link to it under its name.
                digest = path.readlink().name if path.is_symlink() else ""
                kind = {64: "sha256", 40: "git sha1"}.get(len(digest))
                if kind is None or not path.exists():
                    return None
                files[path.name] = {"bytes": path.stat().st_size, kind: digest}
        try:
            whole = _without_unindexed(files, folder / INDEX, self.model) if INDEX in files else files
        except UserError:
            return None
        return (folder.name, whole, folder) if any(name.endswith(WEIGHTS) for name in whole) else None

    def _collect(self, commit: str, files: Files, made: Path, earlier: Path) -> None:
        """Puts files into ``made``: from the earlier directory, from the client's cache, or by a download."""
        cached = {name: try_to_load_from_cache(self.model, name, revision=commit) for name in files}
        sources = {name: [earlier / name, *([Path(path)] if isinstance(path, str) else [])] for name, path in cached.items()}
        nothing_to_check = not any(path.is_file() for paths in sources.values() for path in paths)
        with nullcontext() if nothing_to_check else working(f"Checking the local files of {self.model}"):
            missing = {name: files[name] for name, paths in sources.items() if not any(use(p, files[name], made) for p in paths)}
        for name in missing:
            for path in sources[name][1:]:
                _remove_from_cache(path)
        if missing:
            self._remove_orphans(missing)
            needed = sum(entry["bytes"] for entry in missing.values())
            for folder in (made, existing(Path(constants.HF_HUB_CACHE))):
                if (free := shutil.disk_usage(folder).free) < needed:
                    raise UserError(
                        f"{self.model} needs {needed / 1e9:,.2f} GB more in {folder}, where {free / 1e9:,.2f} GB are free; make "
                        "room, or put the client's cache elsewhere with HF_HOME and the directory elsewhere with --to"
                    )
            what = next(iter(missing)) if len(missing) == 1 else f"{len(missing)} files"
            for name, entry in self._fetch(f"Downloading {what}", commit, missing, made).items():
                if self._fetch(f"Downloading {name} again", commit, {name: entry}, made):
                    kind = "sha256" if "sha256" in entry else "git sha1"
                    raise UserError(
                        f"{name} of {self.model} was downloaded twice with other bytes than the hub has ({kind} {entry[kind]}); "
                        "nothing of it was kept. The network changed the bytes: try another network"
                    )

    def _fetch(self, what: str, commit: str, files: Files, made: Path) -> Files:
        """Downloads files in order, and hashes each during the next download; returns those whose hash is not the hub's."""
        checks = {}
        with transferring(what, sum(entry["bytes"] for entry in files.values())) as received, ThreadPoolExecutor(1) as checker:
            for name, entry in files.items():
                path = self._get(commit, name, received)
                checks[name] = path, checker.submit(use, path, entry, made)
        wrong = {name: files[name] for name, (_, check) in checks.items() if not check.result()}
        for name in wrong:
            _remove_from_cache(checks[name][0])
        return wrong

    def _get(self, commit: str, name: str, received: Callable[[int], None]) -> Path:
        for attempt in range(1, ATTEMPTS + 1):
            bar = _progress_bar(received)
            try:
                return Path(hf_hub_download(self.model, name, revision=commit, tqdm_class=bar))
            except Exception as error:
                received(-bar.total_received)
                broken = isinstance(error, httpx2.ReadError) or "Consistency check failed" in str(error)
                if not broken or attempt == ATTEMPTS:
                    raise self._explained(error) from error
        raise AssertionError  # the last attempt returns or raises

    def _remove_orphans(self, files: Files) -> None:
        """Removes partial downloads of these files that killed processes left; the client never resumes them."""
        locks = self._cache.parent / ".locks" / self._cache.name
        for digest in (entry.get("sha256") or entry["git sha1"] for entry in files.values()):
            if orphans := list((self._cache / "blobs").glob(f"{digest}.*.incomplete")):
                # The client holds this lock while it downloads the file: then it is no orphan.
                with suppress(Timeout), FileLock(locks / f"{digest}.lock", timeout=0):
                    for orphan in orphans:
                        orphan.unlink(missing_ok=True)

    def _explained(self, error: Exception) -> UserError:
        return explained(error, self.model, self.revision, self.known)


def _progress_bar(received: Callable[[int], None]) -> Any:
    """A progress-bar class for the client, which shows nothing and passes the number of bytes to ``received``."""

    class Bar(tqdm):
        total_received = 0

        def __init__(self, **_: Any) -> None:
            super().__init__(disable=True)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            Bar.total_received += int(n or 0)
            received(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Ignores bytes on the network, which xet compresses; without this method the client would make a second bar."""

        set_transfer_postfix_str = tqdm.set_postfix_str

    return Bar


def use(path: Path, entry: Entry, made: Path) -> bool:
    """Links or copies a file into ``made``; returns whether it exists and agrees with the entry, and else removes the copy."""
    target = made / path.name
    if not path.is_file():
        return False
    try:
        if entry["bytes"] < MIN_LINKED_BYTES:
            raise OSError
        target.hardlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, target)
    if target.stat().st_size == entry["bytes"] and content_fault(target, entry) is None:
        return True
    target.unlink()
    return False


def _remove_from_cache(path: Path) -> None:
    """Removes a wrong file and its link from the client's cache; else the client would return the file again."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _without_unindexed(files: Files, index: Path, model: str) -> Files:
    """``files`` except weights that the index does not name; raises UserError if the index names a file that is missing."""
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{INDEX} of {model} has no weight_map that can be read ({error!r:.200}); choose another model"
        ) from error
    weights = {name for name in files if name.endswith(WEIGHTS)}
    if missing := sorted(map(str, named - weights)):
        raise UserError(f"{INDEX} of {model} names {missing[0]!r:.200}, which is no file beside it; choose another model")
    return {name: entry for name, entry in files.items() if name not in weights or name in named}
