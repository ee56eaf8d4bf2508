"""Makes a whole implementation from a mutant's file, which has only the wrong definitions.

tests/mutants/lab-03/rounded_down.py          def share(...): a wrong one
+ labs/lab-03-weight-mapping/solution.py      all right definitions
= a file                                      with the wrong share(), and the right one as right_share()
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from labkit.system.labs import Lab, find_lab

HERE = Path(__file__).parent


def mutants_of(lab: Lab, kind: str = ".") -> list[Path]:
    """Returns the lab's wrong implementations, or its right ones if ``kind`` is "right"."""
    return sorted((HERE / f"lab-{lab.number}" / kind).glob("*.py"))


def misconception(mutant: Path) -> str:
    """Returns the first line of a mutant's docstring, which says its misconception."""
    return (ast.get_docstring(ast.parse(mutant.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def whole(lab: Lab, mutant: Path) -> str:
    """Returns the source of an implementation: the lab's solution with the definitions of the mutant in place of its own.

    A replaced function is still defined, as ``right_NAME``. In a class, only the mutant's methods are replaced."""
    solution = ast.parse((lab.folder / "solution.py").read_text(encoding="utf-8"))
    changes = ast.parse(mutant.read_text(encoding="utf-8"))
    solution.body = _changed(solution.body, changes.body[1:])
    return ast.unparse(solution)


def _changed(body: list[ast.stmt], changes: list[ast.stmt]) -> list[ast.stmt]:
    """Applies changes to the statements of a module or class. New definitions come before all others."""
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
    """Returns the name that a statement defines, or its source if it defines none."""
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return ast.unparse(statement)


if __name__ == "__main__":
    number, _, name = sys.argv[1].removeprefix("lab-").partition("/")
    print(whole(find_lab(number), HERE / f"lab-{number}" / f"{name}.py"))
