"""Names without a home beside the names that are looked for, and the rows of a WeightsMapper that lead from one to the other.

    layers.0.attention.wk.weight              head "layers"        number 0   tail "attention.wk.weight"
    model.layers.0.self_attn.k_proj.weight    head "model.layers"  number 0   tail "self_attn.k_proj.weight"

A name is not one string: heads are matched with heads, tails with tails of the same shape, and what most of them have in common
becomes a row.
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
"""Names of other conventions (Meta's and Mistral's consolidated files, GPT-2's), and what Hugging Face's files call the same."""

ALIKE = 0.55
"""Below this similarity, from 0 to 1, two tails are strangers."""


@dataclass(frozen=True)
class Rows:
    """Rows of a WeightsMapper, by the argument that takes them; a name that becomes None is left out.

    Attributes:
        substr, prefix, suffix: from -> to.
        nearest: what was matched, checkpoint name -> the name that is looked for.
    """

    substr: Mapping[str, str | None] = field(default_factory=dict)
    prefix: Mapping[str, str | None] = field(default_factory=dict)
    suffix: Mapping[str, str | None] = field(default_factory=dict)
    nearest: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.substr or self.prefix or self.suffix)

    @property
    def drops(self) -> bool:
        """Whether some of them leave tensors out."""
        return None in (*self.substr.values(), *self.prefix.values(), *self.suffix.values())

    def arguments(self) -> dict[str, dict[str, str | None]]:
        """What WeightsMapper is called with."""
        named = {"orig_to_new_substr": self.substr, "orig_to_new_prefix": self.prefix, "orig_to_new_suffix": self.suffix}
        return {name: dict(rows) for name, rows in named.items() if rows}

    def __str__(self) -> str:
        lines = [
            f"    {name}={{\n" + "".join(f"        {_quoted(old)}: {_quoted(new)},\n" for old, new in rows.items()) + "    },\n"
            for name, rows in self.arguments().items()
        ]
        return "WeightsMapper(\n" + "".join(lines) + ")"


def _quoted(text: str | None) -> str:
    return "None" if text is None else f'"{text}"'


@dataclass(frozen=True)
class Name:
    """A dotted name in its parts; a name without a layer's number is all tail."""

    head: str
    number: str
    tail: str

    @classmethod
    def of(cls, name: str) -> Name:
        """The parts of a name, at its first number."""
        found = re.match(r"(?P<head>.*?)\.(?P<number>\d+)\.(?P<tail>.*)$", name)
        return cls(found["head"], found["number"], found["tail"]) if found else cls("", "", name)


def propose(homeless: Mapping[str, Shape], wanted: Mapping[str, Shape], placed: Iterable[str]) -> list[Rows]:
    """Rows to try, the likeliest first.

    Args:
        homeless: checkpoint tensors that the class has no place for.
        wanted: names that would fill parameters that are empty, with the largest shape that fits.
        placed: checkpoint tensors that have their place, which no row may touch.
    """
    kept = list(placed)
    renamed = _renaming(homeless, wanted)
    left = [name for name in homeless if name not in renamed.nearest]
    dropped = _dropping(left, [*kept, *renamed.nearest])
    both = Rows(
        {**renamed.substr, **dropped.substr}, {**renamed.prefix, **dropped.prefix}, dropped.suffix, nearest=renamed.nearest
    )
    choices = [both, renamed, _dropping(list(homeless), kept)]
    return list({str(rows): rows for rows in choices if rows and _harmless(rows, kept)}.values())


def _harmless(rows: Rows, placed: Sequence[str]) -> bool:
    """Whether no tensor that has its place would be renamed."""
    return not any(
        any(old in name for old in rows.substr)
        or any(name.startswith(old) for old in rows.prefix)
        or any(name.endswith(old) for old in rows.suffix)
        for name in placed
    )


def _renaming(homeless: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Rows:
    mine, theirs = ({name: Name.of(name) for name in names} for names in (homeless, wanted))
    tails = _tails(
        {n.tail: homeless[name] for name, n in mine.items()}, {n.tail: wanted[name] for name, n in theirs.items()}, mine, theirs
    )
    pairs: dict[str, str] = {}
    for name, parts in mine.items():
        if (tail := tails.get(parts.tail)) is None:
            continue
        same = [other for other, n in theirs.items() if n.tail == tail and n.number == parts.number]
        if same:
            pairs[name] = max(same, key=lambda other: _alike(other, name))
    substr: dict[str, str | None] = {}
    heads: Counter[tuple[str, str]] = Counter()
    for name, other in pairs.items():
        one, two = mine[name], theirs[other]
        if one.number:
            if one.tail != two.tail:
                old, new = _core(one.tail, two.tail)
                substr[f".{old}." if f".{old}." in name else f".{old}"] = f".{new}." if f".{old}." in name else f".{new}"
            heads[one.head, two.head] += 1
        else:
            heads[name, other] += 1
    # The longer first: what they rename, a shorter one would have had before them.
    substr = dict(sorted(substr.items(), key=lambda row: -len(row[0])))
    prefix: dict[str, str | None] = {}
    for (head, other_head), _ in heads.most_common():
        if head != other_head:
            old, new = _shorter(head, other_head)
            prefix[old] = new
    return Rows(substr, prefix, nearest=pairs)


def _tails(
    mine: Mapping[str, Shape], theirs: Mapping[str, Shape], names: Mapping[str, Name], others: Mapping[str, Name]
) -> dict[str, str]:
    """For each tail of a homeless name the tail that is looked for; each used once, the most alike first."""
    numbered = {parts.tail for parts in names.values() if parts.number}, {parts.tail for parts in others.values() if parts.number}
    scored = sorted(
        (
            (_alike(one, two), one, two)
            for one, shape in mine.items()
            for two, other in theirs.items()
            if (one in numbered[0]) == (two in numbered[1]) and _fits(shape, other) and _kind(one) == _kind(two)
        ),
        reverse=True,
    )
    found: dict[str, str] = {}
    for score, one, two in scored:
        if score >= ALIKE and one not in found and two not in found.values():
            found[one] = two
    return found


def _kind(name: str) -> str:
    """A weight is no bias and no scale."""
    return name.rpartition(".")[2]


def _fits(shape: Shape, room: Shape) -> bool:
    return len(shape) == len(room) and shape[1:] == room[1:] and all(size <= most for size, most in zip(shape, room, strict=True))


def _alike(one: str, two: str) -> float:
    """How alike two names are, from 0 to 1: part by part, and 1 for what is the same in two conventions."""
    for old, new in CONVENTIONS.items():
        if re.search(rf"(^|\.){re.escape(old)}(\.|$)", one) and re.search(rf"(^|\.){re.escape(new)}(\.|$)", two):
            return 0.99
    if one == two:
        return 1.0
    if two.endswith(f".{one}") or one.endswith(f".{two}"):
        return 0.98
    return difflib.SequenceMatcher(None, re.split(r"[._]", one), re.split(r"[._]", two)).ratio() * 0.5 + 0.5 * (
        difflib.SequenceMatcher(None, one, two).ratio()
    )


def _core(one: str, two: str) -> tuple[str, str]:
    """Two names without the parts that end both: what a row renames."""
    mine, theirs = one.split("."), two.split(".")
    while len(mine) > 1 and len(theirs) > 1 and mine[-1] == theirs[-1]:
        del mine[-1], theirs[-1]
    while len(mine) > 1 and len(theirs) > 1 and mine[0] == theirs[0]:
        del mine[0], theirs[0]
    return ".".join(mine), ".".join(theirs)


def _shorter(one: str, two: str) -> tuple[str, str]:
    """The prefix row that leads from one to the other: without what ends both, and with the dot that closes it."""
    mine, theirs = one.split("."), two.split(".")
    while len(mine) > 1 and theirs and mine[-1] == theirs[-1]:
        del mine[-1], theirs[-1]
    return ".".join(mine) + ".", "".join(f"{part}." for part in theirs)


def _dropping(names: Sequence[str], kept: Sequence[str]) -> Rows:
    """The shortest rules that leave these names out and touch no other."""
    prefix: dict[str, str | None] = {}
    substr: dict[str, str | None] = {}
    suffix: dict[str, str | None] = {}
    for name in names:
        parts = name.split(".")
        if (
            any(name.startswith(old) for old in prefix)
            or any(old in name for old in substr)
            or any(name.endswith(s) for s in suffix)
        ):
            continue
        first, last, tail = f"{parts[0]}.", f".{parts[-1]}", f".{Name.of(name).tail.rpartition('.')[0]}."
        if not any(other.startswith(first) for other in kept):
            prefix[first] = None
        elif not any(other.endswith(last) for other in kept):
            suffix[last] = None
        elif tail in name and not any(tail in other for other in kept):
            substr[tail] = None
        else:
            prefix[name] = None
    return Rows(substr, prefix, suffix)
