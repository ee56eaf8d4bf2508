"""Generates mutants of the labs' solutions with the operators of mutmut: another number, operator, argument or condition."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from itertools import accumulate

import libcst
from libcst.metadata import WhitespaceInclusivePositionProvider
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

from labkit.system.labs import Lab

NOTHING_IGNORED = IgnoredCode(no_mutate_lines=set(), ignore_node_lines=set(), ignore_pattern_lines=set())


@dataclass(frozen=True)
class Generated:
    """A generated mutant: one change of a solution.

    Attributes:
        before: the changed lines before the change, without indentation.
        after: the same lines after the change.
        source: the source of the whole implementation.
    """

    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        """A hash of the changed lines."""
        return hashlib.sha256(f"{self.before}\0{self.after}\0".encode()).hexdigest()[:10]


def generated(lab: Lab) -> list[Generated]:
    """Returns every mutant of the lab's solution, in the order of its lines. Of equal mutants, returns the first."""
    code = (lab.folder / "solution.py").read_text(encoding="utf-8")
    begins = [0, *accumulate(map(len, code.splitlines(keepends=True)))]
    visitor = MutationVisitor(mutation_operators, NOTHING_IGNORED)
    wrapper = libcst.MetadataWrapper(libcst.parse_module(code))
    wrapper.visit(visitor)
    places = wrapper.resolve(WhitespaceInclusivePositionProvider)
    mutants: dict[str, Generated] = {}
    for mutation in visitor.mutations:
        # Replace in the text: writing the whole tree for each mutant is 30 times slower.
        place = places[mutation.original_node]
        first, last = (begins[at.line - 1] + at.column for at in (place.start, place.end))
        source = code[:first] + wrapper.module.code_for_node(mutation.mutated_node) + code[last:]
        stripped = ([line.strip() for line in text.splitlines()] for text in (code, source))
        changed = list(difflib.unified_diff(*stripped, n=0))[2:]  # the first two name the files
        sides = ("\n".join(line[1:] for line in changed if line[0] == sign) for sign in "-+")
        mutant = Generated(*sides, source)
        mutants.setdefault(mutant.name, mutant)
    return list(mutants.values())
