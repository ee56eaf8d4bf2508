"""Proposes rows of a WeightsMapper that rename unmatched checkpoint tensors to names that fill unfilled parameters.

    layers.0.attention.wk.weight              head "layers"        number 0   tail "attention.wk.weight"
    model.layers.0.self_attn.k_proj.weight    head "model.layers"  number 0   tail "self_attn.k_proj.weight"

The second name is a filler: a checkpoint name that would fill an unfilled parameter. Heads are matched with heads of fillers,
and tails with tails of the same shape; the parts in which two matched names differ become a row.
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
"""Two tails are not matched if their similarity, from 0 to 1, is lower."""

Renames = dict[str, str | None]
"""Part of a checkpoint name -> the part that replaces it, or None: the tensor is not loaded."""


@dataclass(frozen=True)
class MapperRows:
    """Rows for three arguments of WeightsMapper, and the names that were matched for them: checkpoint name -> filler."""

    substr: Renames = field(default_factory=dict)
    prefix: Renames = field(default_factory=dict)
    suffix: Renames = field(default_factory=dict)
    matched: Mapping[str, str] = field(default_factory=dict)

    @property
    def drops(self) -> bool:
        """Whether a row leaves tensors out."""
        return any(None in renames.values() for renames in self.arguments().values())

    def arguments(self) -> dict[str, Renames]:
        """The keyword arguments for WeightsMapper that have rows."""
        named = {"orig_to_new_substr": self.substr, "orig_to_new_prefix": self.prefix, "orig_to_new_suffix": self.suffix}
        return {name: renames for name, renames in named.items() if renames}

    def apply_to(self, name: str) -> bool:
        """Whether a row would rename this tensor or leave it out."""
        return any(old in name for old in self.substr) or name.startswith(tuple(self.prefix)) or name.endswith(tuple(self.suffix))

    def __str__(self) -> str:
        lines = ["WeightsMapper("]
        for name, renames in self.arguments().items():
            rows = (f'        "{old}": ' + ("None," if new is None else f'"{new}",') for old, new in renames.items())
            lines += [f"    {name}={{", *rows, "    },"]
        return "\n".join([*lines, ")"])


def _split(name: str) -> tuple[str, str, str]:
    """Splits a name at the first number in it into (head, number, tail); a name without a number is all tail."""
    found = re.match(r"(.*?)\.(\d+)\.(.*)$", name)
    return (found[1], found[2], found[3]) if found else ("", "", name)


def propose_rows(unmatched: Mapping[str, Shape], fillers: Mapping[str, Shape], loaded: Sequence[str]) -> list[MapperRows]:
    """Returns up to three sets of rows to try, the likeliest first: rows that rename and leave out, only rename, only leave out.

    Args:
        unmatched: checkpoint tensors that the class has no parameter for.
        fillers: checkpoint names that would fill unfilled parameters -> the largest shape that fits there.
        loaded: checkpoint tensors that load without a row; no row may apply to one of them.
    """
    renamed = _renaming_rows(unmatched, fillers)
    dropped = _dropping_rows([name for name in unmatched if name not in renamed.matched], [*loaded, *renamed.matched])
    both = MapperRows(renamed.substr | dropped.substr, renamed.prefix | dropped.prefix, dropped.suffix, renamed.matched)
    choices = {str(rows): rows for rows in (both, renamed, _dropping_rows(unmatched, loaded)) if rows.arguments()}
    return [rows for rows in choices.values() if not any(map(rows.apply_to, loaded))]


def _renaming_rows(unmatched: Mapping[str, Shape], fillers: Mapping[str, Shape]) -> MapperRows:
    matched = _match_names(unmatched, fillers)
    substr: Renames = {}
    heads: Counter[tuple[str, str]] = Counter()
    for name, other in matched.items():
        (head, number, tail), (other_head, _, other_tail) = _split(name), _split(other)
        if number and tail != other_tail:
            old, new = _different_parts(tail, other_tail, ends=(-1, 0), least=1)
            end = "." if f".{old}." in name else ""
            substr[f".{old}{end}"] = f".{new}{end}"
        heads[(head, other_head) if number else (name, other)] += 1
    # Longer rows first: a shorter row before a longer one would rename the names that the longer one is for.
    substr = dict(sorted(substr.items(), key=lambda row: -len(row[0])))
    pairs = (_different_parts(*pair, ends=(-1,), least=0) for pair, _ in heads.most_common() if pair[0] != pair[1])
    return MapperRows(substr, {f"{old}.": new and f"{new}." for old, new in pairs}, matched=matched)


def _match_names(unmatched: Mapping[str, Shape], fillers: Mapping[str, Shape]) -> dict[str, str]:
    """Unmatched name -> the most similar filler that has the same number and the tail matched with the name's tail.

    The most similar tails are matched first, each once, if both end with the same part (``weight``) and the shape fits.
    """
    mine, theirs = (
        {tail: (bool(number), shape) for name, shape in names.items() for _, number, tail in [_split(name)]}
        for names in (unmatched, fillers)
    )
    scored = (
        (_similarity(one, two), one, two)
        for one, (numbered, shape) in mine.items()
        for two, (other_numbered, room) in theirs.items()
        if numbered == other_numbered and one.rpartition(".")[2] == two.rpartition(".")[2]
        if len(shape) == len(room) and shape[1:] == room[1:] and shape[:1] <= room[:1]
    )
    tails: dict[str, str] = {}
    for score, one, two in sorted(scored, reverse=True):
        if score >= MIN_SIMILARITY and one not in tails and two not in tails.values():
            tails[one] = two
    matched: dict[str, str] = {}
    for name in unmatched:
        _, number, tail = _split(name)
        if same := [other for other in fillers if _split(other)[1:] == (number, tails.get(tail))]:
            matched[name] = max(same, key=lambda other: _similarity(other, name))
    return matched


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


def _different_parts(one: str, two: str, ends: Sequence[int], least: int) -> tuple[str, str]:
    """Two names without their equal parts at ``ends`` (0 or -1); leaves at least 1 part of ``one``, ``least`` of ``two``."""
    mine, theirs = one.split("."), two.split(".")
    for end in ends:
        while len(mine) > 1 and len(theirs) > least and mine[end] == theirs[end]:
            del mine[end], theirs[end]
    return ".".join(mine), ".".join(theirs)


def _dropping_rows(names: Iterable[str], kept: Sequence[str]) -> MapperRows:
    """Rows that leave ``names`` out and apply to no name in ``kept``; a row that covers several names is preferred."""
    rows = MapperRows()
    for name in names:
        if rows.apply_to(name):
            continue
        parts = name.split(".")
        first, last, tail = f"{parts[0]}.", f".{parts[-1]}", f".{_split(name)[2].rpartition('.')[0]}."
        if not any(other.startswith(first) for other in kept):
            rows.prefix[first] = None
        elif not any(other.endswith(last) for other in kept):
            rows.suffix[last] = None
        elif tail in name and not any(tail in other for other in kept):
            rows.substr[tail] = None
        else:
            rows.prefix[name] = None
    return rows
