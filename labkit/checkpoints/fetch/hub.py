"""A checkpoint from the Hugging Face hub: only what a load needs, each byte of it held against the hub's own hash.

The client downloads into its own cache, where transformers and vLLM find the files too, and where they are found offline. What
it does not do is look at the bytes: it compares sizes. So every file is put into the directory to be and hashed there, while the
next one arrives; a file that is not what the hub says is fetched once more. Where the disk allows, weights are links, not copies.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
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

from labkit.checkpoints.fetch.place import content_fault
from labkit.checkpoints.fetch.refusals import existing, explained, token
from labkit.checkpoints.headers import INDEX, PICKLES
from labkit.system.atomic_write import atomic_write
from labkit.system.console import transferring, working
from labkit.system.errors import UserError

NEEDED = re.compile(
    r"(config|generation_config|preprocessor_config|quantize_config|hf_quant_config|"
    r"tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json|"
    r"merges\.txt|vocab\.txt|tokenizer\.model|tekken\.json|chat_template\.jinja"
)
"""What is fetched besides the weights and their index: configuration and tokenizer. No code, and no pickle."""

ATTEMPTS = 3
"""How often a file is asked for when the connection is reset in the middle, which the client takes for final."""

LINKED = 10_000_000
"""Bytes from which on a file is linked. Smaller ones are copied: an editor that writes in place would change the cache, too."""


@dataclass(frozen=True)
class HubFile:
    """One file as the hub lists it.

    Attributes:
        name: its name, in the repository's uppermost folder.
        bytes: its size.
        kind: which hash the hub gives: ``sha256``, or ``git sha1`` for small text files.
        digest: the hash, in hex.
    """

    name: str
    bytes: int
    kind: str
    digest: str

    @property
    def entry(self) -> dict[str, Any]:
        """The file in a manifest."""
        return {"bytes": self.bytes, self.kind: self.digest}


@dataclass(frozen=True)
class Hub:
    """One model at one revision of the hub.

    Attributes:
        model: the hub id.
        revision: a branch, a tag or a commit.
        known: hub ids that might have been meant where this one is not found.
    """

    model: str
    revision: str
    known: list[str]

    @property
    def _cache(self) -> Path:
        """What the client keeps of this model (its documentation, "Understand caching")."""
        return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.model, repo_type="model"))

    def commit(self) -> str:
        """The commit that the revision is now, if its files may be read: one request, for the head of config.json.

        Raises:
            GatedError: they may not.
            UnreachableError: the hub did not answer, or ``HF_HUB_OFFLINE`` is set.
            UserError: no such repository or revision, no config.json, a token that is not accepted.
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

    def files(self, commit: str) -> list[HubFile]:
        """What of a commit a load needs, but the weights that an index names, which only the index tells.

        Raises:
            UserError: there is no safetensors file, or a name that no file of ours may have.
        """
        try:
            listed = {
                entry.path: entry for entry in HfApi().list_repo_tree(self.model, revision=commit) if isinstance(entry, RepoFile)
            }
        except Exception as error:
            raise self._explained(error) from error
        weights = [name for name in listed if name.endswith(".safetensors")]
        if not weights:
            pickled = next((name for name in listed if name.endswith(PICKLES)), None)
            only = f", only {pickled}, a pickle: reading one runs the code in it" if pickled else ""
            raise UserError(f"{self.model} has no safetensors file{only}; choose a model that has")
        chosen = [name for name in listed if NEEDED.fullmatch(name) or name == INDEX] + weights
        return [_hub_file(listed[name], self.model) for name in chosen]

    def download(self, commit: str, files: list[HubFile], made: Path, at_hand: Path) -> list[HubFile]:
        """Brings files into a directory and sees that each is what the hub says.

        Args:
            commit: the commit to fetch.
            files: from ``files()``. Where an index is among them, of the weights only those that it names.
            made: an empty directory.
            at_hand: an earlier directory, of which good files are used.

        Returns:
            the files that were brought.

        Raises:
            UnreachableError: the connection broke, and three attempts did not help.
            UserError: no room; a file twice differed from the hub's hash.
        """
        index = [file for file in files if file.name == INDEX]
        if index:
            self._bring(commit, index, made, at_hand)
            weights = [file for file in files if file.name.endswith(".safetensors")]
            named = _indexed(made / INDEX, weights, self.model)
            files = [file for file in files if file in named or file not in (*index, *weights)]
        self._bring(commit, files, made, at_hand)
        if commit != self.revision:
            ref = self._cache / "refs" / self.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(ref, commit)
        return index + files

    def cached(self) -> tuple[str, list[HubFile], Path] | None:
        """What the client's cache has of this revision, without a request: commit, files, and where they are; None if not all."""
        config = try_to_load_from_cache(self.model, "config.json", revision=self.revision)
        if not isinstance(config, str):
            return None
        folder, files = Path(config).parent, []
        for path in sorted(folder.iterdir()):
            if NEEDED.fullmatch(path.name) or path.name == INDEX or path.name.endswith(".safetensors"):
                # In the cache a file's name is its hash, and what stands under the file's own name is a link to it.
                digest = path.readlink().name if path.is_symlink() else ""
                kind = {64: "sha256", 40: "git sha1"}.get(len(digest))
                if kind is None or not path.exists():
                    return None
                files.append(HubFile(path.name, path.stat().st_size, kind, digest))
        weights = [file for file in files if file.name.endswith(".safetensors")]
        try:
            whole = _indexed(folder / INDEX, weights, self.model) if (folder / INDEX).exists() else weights
        except UserError:
            return None
        return (folder.name, [file for file in files if file not in weights] + whole, folder) if whole else None

    def _bring(self, commit: str, files: list[HubFile], made: Path, at_hand: Path) -> None:
        """Puts files into ``made``, from where they are to be had with the least trouble."""
        cached = {file: try_to_load_from_cache(self.model, file.name, revision=commit) for file in files}
        places = {file: [at_hand / file.name, *([Path(path)] if isinstance(path, str) else [])] for file, path in cached.items()}
        at_once = not any(path.is_file() for paths in places.values() for path in paths)
        with nullcontext() if at_once else working(f"Checking what is there of {self.model}"):
            missing = [file for file, paths in places.items() if not any(use(path, file, made) for path in paths)]
        for file in missing:
            for path in places[file][1:]:
                _forget(path)
        if missing:
            self._remove_orphans(missing)
            self._check_room(sum(file.bytes for file in missing), made)
            for file in self._fetch(f"Downloading {_count(missing)}", commit, missing, made):
                if self._fetch(f"Once more {file.name}", commit, [file], made):
                    raise UserError(
                        f"{file.name} of {self.model} came twice with other bytes than the hub says ({file.kind} {file.digest}); "
                        "nothing of it was kept. Something on the way changes bytes: try another network"
                    )

    def _fetch(self, what: str, commit: str, files: list[HubFile], made: Path) -> list[HubFile]:
        """Downloads files, one behind the other, and hashes each while the next arrives; returns those that are not right."""
        checks = {}
        with transferring(what, sum(file.bytes for file in files)) as came, ThreadPoolExecutor(1) as checker:
            for file in files:
                path = self._get(commit, file, came)
                checks[file] = path, checker.submit(use, path, file, made)
        wrong = [file for file, (_, check) in checks.items() if not check.result()]
        for file in wrong:
            _forget(checks[file][0])
        return wrong

    def _get(self, commit: str, file: HubFile, came: Callable[[int], None]) -> Path:
        for attempt in range(1, ATTEMPTS + 1):
            bar = _Bar(came)
            try:
                return Path(hf_hub_download(self.model, file.name, revision=commit, tqdm_class=bar))  # type: ignore[call-overload]
            except Exception as error:
                bar.take_back()
                broken = isinstance(error, httpx2.ReadError) or "Consistency check failed" in str(error)
                if not broken or attempt == ATTEMPTS:
                    raise self._explained(error) from error
        raise AssertionError  # the last attempt returns or raises

    def _remove_orphans(self, files: list[HubFile]) -> None:
        """What killed runs left of these files; the client itself never looks at it again."""
        locks = self._cache.parent / ".locks" / self._cache.name
        for file in files:
            if orphans := list((self._cache / "blobs").glob(f"{file.digest}.*.incomplete")):
                # The client holds this lock while it downloads the file: then it is no orphan.
                with suppress(Timeout), FileLock(locks / f"{file.digest}.lock", timeout=0):
                    for orphan in orphans:
                        orphan.unlink(missing_ok=True)

    def _check_room(self, needed: int, made: Path) -> None:
        cache = existing(Path(constants.HF_HUB_CACHE))
        places = {folder.stat().st_dev: folder for folder in (cache, made)}
        for folder in places.values():
            if (free := shutil.disk_usage(folder).free) < needed:
                raise UserError(
                    f"{self.model} needs {needed / 1e9:,.2f} GB more in {folder}, where {free / 1e9:,.2f} GB are free; make "
                    "room, or put the client's cache elsewhere with HF_HOME and the directory elsewhere with --to"
                )

    def _explained(self, error: Exception) -> UserError:
        return explained(error, self.model, self.revision, self.known)


class _Bar:
    """What the client takes for a class of progress bars: it is called to make a bar, and is that bar."""

    def __init__(self, came: Callable[[int], None]) -> None:
        self._came, self._count = came, 0

    def __call__(self, **_: Any) -> _Bar:
        return self

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float | None = 1) -> None:
        self._count += int(count or 0)
        self._came(int(count or 0))

    def take_back(self) -> None:
        """The file has to come again."""
        self._came(-self._count)

    def update_transfer(self, count: float | None = 1) -> None:
        """Bytes on the network, which need not be those of the file."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """The client's words about the rate."""

    def set_transfer_postfix_str(self, text: str, refresh: bool = True) -> None:
        """The same of the network."""

    def close(self) -> None:
        """The end of a file, not of all."""


def use(path: Path, file: HubFile, made: Path) -> bool:
    """Links or copies a file into ``made``, if it is there and is what the hub says."""
    target = made / file.name
    if not path.is_file():
        return False
    try:
        if file.bytes < LINKED:
            raise OSError
        target.hardlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, target)
    if target.stat().st_size == file.bytes and content_fault(target, file.entry) is None:
        return True
    target.unlink()
    return False


def _forget(path: Path) -> None:
    """Takes a file out of the client's cache, which would give it out again."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _indexed(index: Path, weights: list[HubFile], model: str) -> list[HubFile]:
    """Of the weights those that the index names.

    Raises:
        UserError: it cannot be read, or names what the repository does not have beside it.
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{INDEX} of {model} has no weight_map that can be read ({error!r:.200}); choose another model"
        ) from error
    if lacking := sorted(map(str, names - {file.name for file in weights})):
        raise UserError(f"{INDEX} of {model} names {lacking[0]!r:.200}, which is no file beside it; choose another model")
    return [file for file in weights if file.name in names]


def _hub_file(listed: RepoFile, model: str) -> HubFile:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", listed.path):
        raise UserError(f"{model} lists a file {listed.path!r:.200}, which is no plain file name; nothing was fetched")
    if listed.lfs:
        return HubFile(listed.path, listed.lfs.size, "sha256", listed.lfs.sha256)
    return HubFile(listed.path, listed.size, "git sha1", listed.blob_id)


def _count(files: list[HubFile]) -> str:
    return files[0].name if len(files) == 1 else f"{len(files)} files"
