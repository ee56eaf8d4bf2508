"""Shows a failed assertion of a lab's test: expected against got, and the function of the graded file to look at.

It runs in the process of the test, where the tensors still exist: the failed line of the test file is parsed, and both sides of
the comparison are evaluated once more. If both sides are equal the second time, nothing is shown.
"""

from __future__ import annotations

import ast
from pathlib import Path
from traceback import walk_tb
from types import FrameType, ModuleType, TracebackType
from typing import Any

MAX_ELEMENTS = 64  # of a tensor that is shown in full
MAX_CHARACTERS = 600  # of a value; a longer one is cut


def compare_sides(traceback: TracebackType | None, tests: Path) -> list[str]:
    """Returns lines with both values of the assertion that failed; empty if the assertion does not compare two values.

    In the labs' tests the actual value is on the left, as in torch.testing.assert_close(actual, expected).
    """
    in_tests = [(frame, line) for frame, line in walk_tb(traceback) if frame.f_code.co_filename == str(tests)]
    sides = _sides(tests, in_tests[-1][1]) if in_tests else None
    if sides is None:
        return []
    frame = in_tests[-1][0]
    names = frame.f_globals | frame.f_locals  # one mapping: a comprehension would not find the locals
    try:
        actual, expected = (eval(compile(ast.Expression(side), str(tests), "eval"), names) for side in sides)
        return _difference(actual, expected)
    except Exception:  # raised by the learner's code or by the repr of their object; the test's own message is enough then
        return []


def find_suspect(traceback: TracebackType | None, tests: Path, graded: Path) -> str:
    """Returns the function of the graded file that the test used last, as ``"starter.py:35, in BigramModel.forward"``, or ""."""
    for frame, line in reversed(list(walk_tb(traceback))):
        module = getattr(lab := frame.f_locals.get("lab"), "lab", lab)  # lab 03's tests wrap the module
        in_tests = frame.f_code.co_filename == str(tests)
        if in_tests and isinstance(module, ModuleType) and (found := _last_used(frame, line, tests, module, graded)):
            return found
    return ""


def _last_used(frame: FrameType, line: int, tests: Path, module: ModuleType, graded: Path) -> str:
    """Returns the last function of the graded file that the frame's function names up to ``line``, as find_suspect does."""
    used = [n for n in ast.walk(_tree(tests)) if isinstance(n, ast.Attribute) and frame.f_code.co_firstlineno <= n.lineno <= line]
    owner: Any = None
    last = ""
    for node in sorted(used, key=lambda node: (node.end_lineno, node.end_col_offset)):
        value: Any = None
        if isinstance(node.value, ast.Name) and node.value.id == "lab":
            value = owner = vars(module).get(node.attr)
        elif isinstance(owner, type) and node.attr in vars(owner):
            value = vars(owner)[node.attr]
            value = getattr(value, "__func__", value)  # a class method's
        code = getattr(value, "__code__", None)
        if code is not None and code.co_filename == str(graded):
            last = f"{graded.name}:{code.co_firstlineno}, in {value.__qualname__}"
    return last


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _sides(path: Path, line: int) -> tuple[ast.expr, ast.expr] | None:
    """Returns a and b of ``assert a == b``, ``assert torch.equal(a, b)`` or ``torch.testing.assert_close(a, b)`` at ``line``."""
    around = [n for n in ast.walk(_tree(path)) if isinstance(n, ast.stmt) and n.lineno <= line <= (n.end_lineno or n.lineno)]
    match max(around, key=lambda node: node.lineno, default=None):
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            return left, right
        case ast.Assert(test=ast.Call(func=ast.Attribute(attr="equal" | "allclose"), args=[left, right, *_])):
            return left, right
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="assert_close"), args=[left, right, *_])):
            return left, right
    return None


def _difference(actual: Any, expected: Any) -> list[str]:
    import torch

    if isinstance(actual, torch.Tensor) and isinstance(expected, torch.Tensor):
        return _tensor_difference(actual, expected)
    if actual == expected:
        return []
    lines = [f"expected  {_cut(repr(expected))}", f"got       {_cut(repr(actual))}"]
    if isinstance(actual, list) and isinstance(expected, list) and len(actual) != len(expected):
        return [f"expected  {len(expected)} items, got {len(actual)}", *lines]
    return lines


def _tensor_difference(actual: Any, expected: Any) -> list[str]:
    def kind(tensor: Any) -> str:
        return f"shape {tuple(tensor.shape)}, {str(tensor.dtype).removeprefix('torch.')}"

    import torch

    lines = [f"expected  {kind(expected)}", f"got       {kind(actual)}"]
    if actual.shape == expected.shape:
        differs = ~torch.isclose(actual.double(), expected.double(), rtol=1e-5, atol=1e-12, equal_nan=True)
        if not bool(differs.any()) and actual.dtype == expected.dtype:
            return []
        if bool(differs.any()):
            first = tuple(differs.nonzero()[0].tolist())
            values = f"expected {expected[first].item():.6g}, got {actual[first].item():.6g}"
            lines.append(f"{int(differs.sum())} of {differs.numel()} elements differ, first at {list(first)}: {values}")
    if max(actual.numel(), expected.numel()) <= MAX_ELEMENTS:
        lines += [f"expected  {_cut(_rounded(expected.tolist()))}", f"got       {_cut(_rounded(actual.tolist()))}"]
    return lines


def _rounded(values: Any) -> str:
    """Formats the values of a tensor as nested lists, floats with six digits."""
    if isinstance(values, list):
        return f"[{', '.join(map(_rounded, values))}]"
    return f"{values:.6g}" if isinstance(values, float) else repr(values)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ... ({len(text)} characters)"
