"""Proposes rows of a WeightsMapper that rename unmatched checkpoint tensors to names that fill unfilled parameters.

    layers.0.attention.wk.weight              head "layers"        number 0   tail "attention.wk.weight"
    model.layers.0.self_attn.k_proj.weight    head "model.layers"  number 0   tail "self_attn.k_proj.weight"

Heads are matched with heads, and tails with tails of the same shape; the difference between two matches becomes a row.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from labkit.checkpoints.headers import Shape

CONVENTIONS = {
    "tok_embeddings": "embed_tokens",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "wte": "embed_tokens",
    "ln_f": "norm",
}
"""Names of other conventions (Meta's and Mistral's consolidated files, GPT-2's) -> the names in Hugging Face's files."""

MIN_SIMILARITY = 0.55
"""Two tails below this similarity, from 0 to 1, are not matched."""

Renames = Mapping[str, str | None]
"""Old part of a name -> new part; None leaves the tensor out."""


@dataclass(frozen=True)
class MapperRows:
    """Rows of a WeightsMapper by the argument that takes them, and the names that were matched: checkpoint name -> filler."""

    substr: Renames = field(default_factory=dict)
    prefix: Renames = field(default_factory=dict)
    suffix: Renames = field(default_factory=dict)
    matched: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.substr or self.prefix or self.suffix)

    @property
    def drops(self) -> bool:
        """Whether a row leaves tensors out."""
        return None in (*self.substr.values(), *self.prefix.values(), *self.suffix.values())

    def arguments(self) -> dict[str, dict[str, str | None]]:
        """The keyword arguments of WeightsMapper."""
        named = {"orig_to_new_substr": self.substr, "orig_to_new_prefix": self.prefix, "orig_to_new_suffix": self.suffix}
        return {name: dict(renames) for name, renames in named.items() if renames}

    def __str__(self) -> str:
        lines = ["WeightsMapper("]
        for name, renames in self.arguments().items():
            rows = (f"        {_quoted(old)}: {_quoted(new)}," for old, new in renames.items())
            lines += [f"    {name}={{", *rows, "    },"]
        return "\n".join([*lines, ")"])


def _quoted(text: str | None) -> str:
    return "None" if text is None else f'"{text}"'


def _split(name: str) -> tuple[str, str, str]:
    """Splits a name at its first number into head, number and tail; a name without a number is all tail."""
    found = re.match(r"(.*?)\.(\d+)\.(.*)$", name)
    return (found[1], found[2], found[3]) if found else ("", "", name)


def propose_rows(unmatched: Mapping[str, Shape], fillers: Mapping[str, Shape], loaded: Iterable[str]) -> list[MapperRows]:
    """Proposes rows to try, the likeliest first.

    Args:
        unmatched: checkpoint tensors that the class has no parameter for.
        fillers: checkpoint names that would fill unfilled parameters, with the largest shape that fits.
        loaded: checkpoint tensors that load already; no row may rename them.
    """
    kept = list(loaded)
    renamed = _renaming_rows(unmatched, fillers)
    rest = [name for name in unmatched if name not in renamed.matched]
    dropped = _dropping_rows(rest, [*kept, *renamed.matched])
    both = MapperRows({**renamed.substr, **dropped.substr}, {**renamed.prefix, **dropped.prefix}, dropped.suffix, renamed.matched)
    choices = [both, renamed, _dropping_rows(list(unmatched), kept)]
    return list({str(rows): rows for rows in choices if rows and not any(_applies(rows, name) for name in kept)}.values())


def _applies(rows: MapperRows, name: str) -> bool:
    """Whether a row would rename this tensor or leave it out."""
    return (
        any(old in name for old in rows.substr)
        or any(name.startswith(old) for old in rows.prefix)
        or any(name.endswith(old) for old in rows.suffix)
    )


def _renaming_rows(unmatched: Mapping[str, Shape], fillers: Mapping[str, Shape]) -> MapperRows:
    matched = _match_names(unmatched, fillers)
    substr: dict[str, str | None] = {}
    heads: Counter[tuple[str, str]] = Counter()
    for name, other in matched.items():
        (head, number, tail), (other_head, _, other_tail) = _split(name), _split(other)
        if number and tail != other_tail:
            old, new = _different_parts(tail, other_tail)
            end = "." if f".{old}." in name else ""
            substr[f".{old}{end}"] = f".{new}{end}"
        heads[(head, other_head) if number else (name, other)] += 1
    # Longer rows first: a shorter one would rename their names before them.
    substr = dict(sorted(substr.items(), key=lambda row: -len(row[0])))
    prefix = dict(_prefix_row(head, other) for (head, other), _ in heads.most_common() if head != other)
    return MapperRows(substr, prefix, matched=matched)


def _match_names(unmatched: Mapping[str, Shape], fillers: Mapping[str, Shape]) -> dict[str, str]:
    """For each unmatched name the most similar filler of the same number whose tail is matched with its tail."""
    mine, theirs = (
        {_split(name)[2]: (shape, bool(_split(name)[1])) for name, shape in all_.items()} for all_ in (unmatched, fillers)
    )
    tails = _match_tails(mine, theirs)
    matched: dict[str, str] = {}
    for name in unmatched:
        _, number, tail = _split(name)
        same = [other for other in fillers if tail in tails and _split(other)[1:] == (number, tails[tail])]
        if same:
            matched[name] = max(same, key=lambda other: _similarity(other, name))
    return matched


def _tails(shapes: Mapping[str, Shape]) -> dict[str, tuple[Shape, bool]]:
    """The tails of names, each with its shape and whether a number is before it."""
    return {tail: (shape, bool(number)) for name, shape in shapes.items() for _, number, tail in [_split(name)]}


def _match_tails(mine: Mapping[str, tuple[Shape, bool]], theirs: Mapping[str, tuple[Shape, bool]]) -> dict[str, str]:
    """Matches the most similar tails first, each once; only tails of the same last part (``weight``) and of a shape that fits."""
    scored = sorted(
        (
            (_similarity(one, two), one, two)
            for one, (shape, numbered) in mine.items()
            for two, (room, other_numbered) in theirs.items()
            if numbered == other_numbered and _fits(shape, room) and one.rpartition(".")[2] == two.rpartition(".")[2]
        ),
        reverse=True,
    )
    found: dict[str, str] = {}
    for score, one, two in scored:
        if score >= MIN_SIMILARITY and one not in found and two not in found.values():
            found[one] = two
    return found


def _fits(shape: Shape, room: Shape) -> bool:
    return len(shape) == len(room) and shape[1:] == room[1:] and all(size <= most for size, most in zip(shape, room, strict=True))


def _similarity(one: str, two: str) -> float:
    """The similarity of two names, from 0 to 1: nearly 1 for the same name in two conventions."""
    for old, new in CONVENTIONS.items():
        if re.search(rf"(^|\.){re.escape(old)}(\.|$)", one) and re.search(rf"(^|\.){re.escape(new)}(\.|$)", two):
            return 0.99
    if one == two:
        return 1.0
    if two.endswith(f".{one}") or one.endswith(f".{two}"):
        return 0.98
    by_part = difflib.SequenceMatcher(None, re.split(r"[._]", one), re.split(r"[._]", two)).ratio()
    return (by_part + difflib.SequenceMatcher(None, one, two).ratio()) / 2


def _different_parts(one: str, two: str) -> tuple[str, str]:
    """Two names without the parts that both begin and end with."""
    mine, theirs = one.split("."), two.split(".")
    for end in (-1, 0):
        while len(mine) > 1 and len(theirs) > 1 and mine[end] == theirs[end]:
            del mine[end], theirs[end]
    return ".".join(mine), ".".join(theirs)


def _prefix_row(one: str, two: str) -> tuple[str, str]:
    """The prefix row from one head to the other, without the parts that both end with."""
    mine, theirs = one.split("."), two.split(".")
    while len(mine) > 1 and theirs and mine[-1] == theirs[-1]:
        del mine[-1], theirs[-1]
    return ".".join(mine) + ".", "".join(f"{part}." for part in theirs)


def _dropping_rows(names: Sequence[str], kept: Sequence[str]) -> MapperRows:
    """The shortest rows that leave these names out and apply to no kept name."""
    prefix: dict[str, str | None] = {}
    substr: dict[str, str | None] = {}
    suffix: dict[str, str | None] = {}
    rows = MapperRows(substr, prefix, suffix)
    for name in names:
        if _applies(rows, name):
            continue
        parts = name.split(".")
        first, last, tail = f"{parts[0]}.", f".{parts[-1]}", f".{_split(name)[2].rpartition('.')[0]}."
        if not any(other.startswith(first) for other in kept):
            prefix[first] = None
        elif not any(other.endswith(last) for other in kept):
            suffix[last] = None
        elif tail in name and not any(tail in other for other in kept):
            substr[tail] = None
        else:
            prefix[name] = None
    return rows
