"""Mutants that nobody wrote: mutmut's operators (another number, operator, argument, condition) on the labs' solutions."""

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
    """One change of a solution.

    Attributes:
        before: the lines that were changed, without their indentation.
        after: what they are now.
        source: the whole implementation.
    """

    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        """The same as long as the changed lines are."""
        return hashlib.sha256(f"{self.before}\0{self.after}\0".encode()).hexdigest()[:10]


def generated(lab: Lab) -> list[Generated]:
    """Every mutant that mutmut makes of the lab's solution, in the order of its lines; of two alike the first."""
    code = (lab.folder / "solution.py").read_text(encoding="utf-8")
    begins = [0, *accumulate(map(len, code.splitlines(keepends=True)))]
    visitor = MutationVisitor(mutation_operators, NOTHING_IGNORED)
    wrapper = libcst.MetadataWrapper(libcst.parse_module(code))
    wrapper.visit(visitor)
    places = wrapper.resolve(WhitespaceInclusivePositionProvider)
    mutants: dict[str, Generated] = {}
    for mutation in visitor.mutations:
        # In the text and not in the tree, which would be written out anew for each mutant, 30 times as slowly.
        place = places[mutation.original_node]
        first, last = (begins[at.line - 1] + at.column for at in (place.start, place.end))
        source = code[:first] + wrapper.module.code_for_node(mutation.mutated_node) + code[last:]
        stripped = ([line.strip() for line in text.splitlines()] for text in (code, source))
        changed = list(difflib.unified_diff(*stripped, n=0))[2:]  # the first two name the files
        sides = ("\n".join(line[1:] for line in changed if line[0] == sign) for sign in "-+")
        mutant = Generated(*sides, source)
        mutants.setdefault(mutant.name, mutant)
    return list(mutants.values())
