"""Identifies the model of a checkpoint by comparing the names and shapes in its headers with the known models' configs.

Equal shapes are no proof: the output also lists the properties that shapes cannot show.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from labkit.checkpoints.headers import UNREAD_SUFFIXES, Shape, StoredTensor, read_checkpoint
from labkit.checkpoints.known_models import FAMILY, KNOWN, MAX_LAYERS, implied_shapes, known_names, read_config

EMBED, HEAD, FIRST = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0."
LAYER = r"model\.layers\.(\d{1,6})\."
NOT_IN_SHAPES = ("rope_theta", "rope_scaling", "rms_norm_eps", "max_position_embeddings", "sliding_window")
MAX_HEAD_SIZE = 16384

OTHER_FORMATS = {
    r"lora_[AB]\.": "a LoRA adapter: it is added to a model, and is none itself",
    r"\.(qweight|qzeros|weight_packed|weight_scale)$": "quantized weights: packed, with scales in tensors of their own",
    r"layers\.\d+\.attention\.w[qkvo]\.": "the names of Mistral's and Meta's own files (wq, wk, wv), not those of transformers",
    r"\.(experts|block_sparse_moe)\.": "a mixture of experts",
    r"(qkv_proj|query_key_value|c_attn|W_pack|gate_up_proj)\.": "q, k and v, or gate and up, stored as one tensor",
    r"^(language_model|model\.language_model)\.": "a text model under a prefix, as in multimodal checkpoints",
    r"^(transformer|gpt_neox|backbone)\.": "names of another family (GPT-2, GPT-NeoX, Mamba or similar)",
}
"""Regular expression for tensor names that no plain Llama has -> description of a checkpoint with such a name."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that the names and shapes of a Llama-family checkpoint show.

    Attributes:
        query_rows: the number of rows of q_proj, N * D.
        kv_rows: the number of rows of k_proj, K * D.
        biases: the modules of layer 0 that have a bias, sorted, such as ``self_attn.q_proj``.
        head_size: D, which is the length of q_norm; None if there is no q_norm.
        head_stored: whether there is an lm_head.
    """

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    query_rows: int
    kv_rows: int
    biases: tuple[str, ...]
    head_size: int | None
    head_stored: bool

    @classmethod
    def of(cls, shapes: Mapping[str, Shape]) -> Sizes | None:
        """The sizes, or None if the embedding, or q, k or gate of layer 0, is missing or not a matrix."""
        needed = [EMBED, *(f"{FIRST}{name}.weight" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"))]
        if any(len(shape := shapes.get(name, ())) != 2 or 0 in shape for name in needed):
            return None
        (vocabulary, hidden), (query_rows, _), (kv_rows, _), (intermediate, _) = (shapes[name] for name in needed)
        layers = 1 + max(int(found[1]) for name in shapes if (found := re.match(LAYER, name)))
        biases = sorted(name.removeprefix(FIRST)[:-5] for name in shapes if name.startswith(FIRST) and name.endswith(".bias"))
        (head_size, *_) = shapes.get(f"{FIRST}self_attn.q_norm.weight") or (None,)
        return cls(layers, hidden, intermediate, vocabulary, query_rows, kv_rows, tuple(biases), head_size, HEAD in shapes)

    def splits(self) -> list[tuple[int, int, int]]:
        """Every (N, K, D) with these rows of q and k, likeliest first: D nearest to 128, or to 64 up to hidden size 2048."""
        if self.query_rows % self.kv_rows:
            return []
        usual = 64 if self.hidden_size <= 2048 else 128
        limit = min(self.kv_rows, MAX_HEAD_SIZE)
        sizes = [self.head_size] if self.head_size else [d for d in range(2, limit + 1, 2) if self.kv_rows % d == 0]
        found = [(self.query_rows // d, self.kv_rows // d, d) for d in sizes]
        return sorted(found, key=lambda split: (abs(math.log(split[2] / usual)), -split[2]))

    def distance(self, other: Sizes) -> float:
        """The sum of the absolute logarithms of the first six fields' ratios, plus 1 for each other field that differs."""
        pairs = list(zip(astuple(self), astuple(other), strict=True))
        return sum(abs(math.log(a / b)) for a, b in pairs[:6]) + float(sum(a != b for a, b in pairs[6:]))


@dataclass(frozen=True)
class Fingerprint:
    """The result of comparing a checkpoint's headers with the known models.

    Attributes:
        sizes: the sizes that the shapes show; None if the checkpoint is not a plain one of the Llama family.
        names: the known models that have exactly these names and shapes.
        nearest, differences: the nearest known model, and how the checkpoint differs from it in words; empty if ``names`` is not.
        disagreements: the differences between the files and the config.json beside them, in words.
    """

    stored: Mapping[str, StoredTensor]
    sizes: Sizes | None
    names: tuple[str, ...]
    nearest: str
    differences: tuple[str, ...]
    disagreements: tuple[str, ...]


def fingerprint(path: Path) -> Fingerprint:
    """Identifies the model of a directory or file by headers and config.json; raises UserError if a file is missing or broken."""
    stored = read_checkpoint(path)
    shapes = {name: tensor.shape for name, tensor in stored.items() if not name.endswith(UNREAD_SUFFIXES)}
    sizes = Sizes.of(shapes)
    names = tuple(name for name in known_names() if sizes and _matches(name, sizes, shapes))
    nearest, differences = "", tuple[str, ...]()
    if sizes and not names:
        nearest = min(known_names(), key=lambda name: _known(name)[1].distance(sizes))
        differences = tuple(differing(shapes, *_known(nearest)))
    config = path / "config.json"
    disagreements = tuple(_against_config(config, shapes)) if path.is_dir() and config.is_file() else ()
    return Fingerprint(stored, sizes, names, nearest, differences, disagreements)


def _matches(name: str, sizes: Sizes, shapes: Mapping[str, Shape]) -> bool:
    """Whether the tensors are exactly those of the known model ``name``; a tied model may also store its lm_head."""
    config, known = _known(name)
    copied = sizes.head_stored and bool(config.get("tie_word_embeddings"))
    if replace(sizes, head_stored=known.head_stored if copied else sizes.head_stored) != known:
        return False
    expected = implied_shapes(config)
    return shapes == (expected | {HEAD: expected[EMBED]} if copied else expected)


@cache
def _known(name: str) -> tuple[Mapping[str, Any], Sizes]:
    """The config of a known model, and the sizes of its checkpoint."""
    config = read_config(KNOWN / name)
    sizes = Sizes.of(implied_shapes(config | {"num_hidden_layers": 1}))
    assert sizes is not None
    return config, replace(sizes, num_hidden_layers=config["num_hidden_layers"])


def differing(shapes: Mapping[str, Shape], config: Mapping[str, Any], sizes: Sizes | None = None) -> list[str]:
    """The differences from the shapes that ``config`` implies, in words: by size if ``sizes`` differ, else by tensor."""
    mine = Sizes.of(shapes)
    if sizes and mine and mine != sizes:
        pairs = [(each.name, getattr(mine, each.name), getattr(sizes, each.name)) for each in fields(Sizes)]
        return [f"{name} {_value_text(ours)} instead of {_value_text(theirs)}" for name, ours, theirs in pairs if ours != theirs]
    expected = implied_shapes(config)
    layers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name in sorted(expected.keys() | shapes.keys()):
        have, want = shapes.get(name), expected.get(name)
        if have != want:
            found = re.match(f"{LAYER}(.+)", name)
            words = "missing" if have is None else "unexpected" if want is None else f"{have} instead of {want}"
            layers[words, found[2] if found else name] += [int(found[1])] if found else []
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (words, name), numbers in layers.items():
        where = f" in layer{'' if len(numbers) == 1 else 's'} {_first_three(sorted(numbers))}" if numbers else ""
        alike[words, where].append(name)
    return [f"{words}{where}: {_first_three(names)}" for (words, where), names in alike.items()]


def _first_three(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:3])) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _value_text(value: object) -> str:
    text = ", ".join(value) or "none" if isinstance(value, tuple) else str(value)
    return {"None": "not shown", "True": "yes", "False": "no"}.get(text, text)


def _against_config(path: Path, shapes: Mapping[str, Shape]) -> Iterator[str]:
    """Yields the differences between the files' tensors and those that the config.json at ``path`` implies, in words."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["architectures"][0] not in FAMILY or "quantization_config" in config:
            return
        if (layers := config.get("num_hidden_layers", 0)) > MAX_LAYERS:
            yield f"config.json says {layers:,} layers, more than any model has"
            return
        tied = bool(config.get("tie_word_embeddings"))
        yield from differing({name: shape for name, shape in shapes.items() if name != HEAD or not tied}, config)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, IndexError, RecursionError) as error:
        yield f"config.json cannot be read as the config of a {FAMILY[0]} ({type(error).__name__}: {error})"


def report_lines(found: Fingerprint, path: Path) -> Iterator[str]:
    """Yields lines that describe the checkpoint, and that list the properties that its headers cannot show."""
    held = sum(tensor.bytes[1] - tensor.bytes[0] for tensor in found.stored.values())
    files = len({tensor.file for tensor in found.stored.values()})
    types = ", ".join(f"{count} {dtype}" for dtype, count in Counter(t.dtype for t in found.stored.values()).most_common())
    yield f"{path}: {len(found.stored)} tensors ({types}) in {files} file{'' if files == 1 else 's'}, {held / 1e9:.2f} GB"
    if found.sizes is None:
        yield from _other_format(found.stored)
        return
    sizes = found.sizes
    yield f"  {sizes.num_hidden_layers} layers, hidden size {sizes.hidden_size}, intermediate size {sizes.intermediate_size}"
    yield f"  vocabulary {sizes.vocab_size}, {'an lm_head' if sizes.head_stored else 'no lm_head: tied to the embedding'}"
    yield f"  {sizes.query_rows} rows of q, {sizes.kv_rows} of k and of v; biases: {_value_text(sizes.biases)}"
    if found.names:
        yield f"Every name and shape is that of {' or '.join(found.names)}."
    else:
        yield f"No known model has these names and shapes; the nearest is {found.nearest}. This checkpoint differs from it:"
        yield from (f"  {words}" for words in found.differences)
    if found.disagreements:
        yield "The files and the config.json beside them disagree:"
        yield from (f"  {words}" for words in found.disagreements)
    yield "Shapes cannot tell:"
    yield from (f"  {words}" for words in cannot_tell(found))


def cannot_tell(found: Fingerprint) -> Iterator[str]:
    """Yields one line for each property that the headers cannot show."""
    assert found.sizes
    if len(found.names) > 1:
        configs = [_known(name)[0] for name in found.names]
        differ = [key for key in NOT_IN_SHAPES if len({json.dumps(config.get(key), sort_keys=True) for config in configs}) > 1]
        yield f"which of the {len(found.names)}: they differ in {', '.join(differ)}"
    splits = found.sizes.splits()
    if len(splits) > 1:
        shown = ", ".join(f"{heads} + {kv_heads} of {size}" for heads, kv_heads, size in splits[:3])
        yield f"the heads: {shown}, {len(splits)} ways in all"
    yield "rope's base and scaling, the norms' epsilon: they are in config.json alone"
    yield "k and v swapped, gate and up swapped, rows of q and k permuted"
    if found.sizes.head_stored:
        yield "whether the lm_head is a copy of the embedding"


def _other_format(stored: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Yields lines that describe a checkpoint that is not a plain one of the Llama family."""
    yield f"No plain checkpoint of the Llama family: it has no {EMBED} with q, k and gate of a layer 0."
    for pattern, words in OTHER_FORMATS.items():
        if name := next((name for name in stored if re.search(pattern, name)), None):
            yield f"  {words}: {name}"
    yield "Its names begin:"
    prefixes = Counter(".".join(name.split(".")[:2]) for name in stored)
    yield from (f"  {prefix} ({count} tensors)" for prefix, count in prefixes.most_common(5))
    yield "Its largest tensors:"
    largest = sorted(stored.items(), key=lambda item: math.prod(item[1].shape), reverse=True)[:3]
    yield from (f"  {name} {tensor.shape} {tensor.dtype}" for name, tensor in largest)
