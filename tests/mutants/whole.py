"""A mutant's file has only what it gets wrong; here it becomes a whole implementation, as a learner's file is.

tests/mutants/lab-03/rounded_down.py          def share(...): a wrong one
+ labs/lab-03-weight-mapping/solution.py      all that is right
= a file                                      with the wrong share(), and the right one as right_share()
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from labkit.system.labs import Lab, find_lab

HERE = Path(__file__).parent


def mutants_of(lab: Lab, kind: str = ".") -> list[Path]:
    """The lab's wrong implementations, or with ``kind`` "right" the right ones that look different."""
    return sorted((HERE / f"lab-{lab.number}" / kind).glob("*.py"))


def misconception(mutant: Path) -> str:
    """The first line of a mutant's docstring: what somebody believes who writes this."""
    return (ast.get_docstring(ast.parse(mutant.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def whole(lab: Lab, mutant: Path) -> str:
    """The source of an implementation: the lab's solution, in which the mutant's definitions take the place of those of the
    same name. What they replace stays within reach as ``right_NAME``. A class takes the methods that the mutant gives it."""
    solution = ast.parse((lab.folder / "solution.py").read_text(encoding="utf-8"))
    changes = ast.parse(mutant.read_text(encoding="utf-8"))
    solution.body = _changed(solution.body, changes.body[1:])
    return ast.unparse(solution)


def _changed(body: list[ast.stmt], changes: list[ast.stmt]) -> list[ast.stmt]:
    """One module's or class's statements with the changes in their places; what is new comes before all definitions."""
    new = {_name(change): change for change in changes}
    result: list[ast.stmt] = []
    for statement in body:
        change = new.pop(_name(statement), None) if _name(statement) else None
        if isinstance(statement, ast.ClassDef) and isinstance(change, ast.ClassDef):
            statement.body = _changed(statement.body, change.body)
        elif isinstance(statement, ast.FunctionDef) and isinstance(change, ast.FunctionDef):
            statement.name = f"right_{statement.name}"
            result.append(change)
        elif change is not None:
            statement = change
        result.append(statement)
    first = next(index for index, statement in enumerate(result) if isinstance(statement, ast.ClassDef | ast.FunctionDef))
    return result[:first] + list(new.values()) + result[first:]


def _name(statement: ast.stmt) -> str:
    """What a statement defines; an import or an expression only itself."""
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return ast.unparse(statement)


if __name__ == "__main__":
    number, _, name = sys.argv[1].removeprefix("lab-").partition("/")
    print(whole(find_lab(number), HERE / f"lab-{number}" / f"{name}.py"))
