"""What a run says of each of its tests, a line of JSON each, into a pipe; written in the process that ran them.

Expected and got are worked out here, where the tensors are: the failed line of test_lab.py is read again, and each side of its
comparison evaluated once more. Where the two agree the second time, nothing is said of them.
"""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

import pytest

from labkit.system.labs import Lab

WHOLE = 64
"""Tensors of up to this many elements are shown in full."""

LONGEST = 600
"""Characters of one value; what is longer is cut, and said to be."""

PRINTED = 2000
"""Bytes of what a test printed, the last of it."""


class Telling:
    """The pytest plugin that speaks for a run."""

    def __init__(self, pipe: int, graded: Path, lab: Lab, output: Path) -> None:
        self.pipe, self.graded, self.lab, self.output = pipe, graded, lab, output
        self.printed_before = 0

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self.printed_before = self.output.stat().st_size
        self._say(test=nodeid.rpartition("::")[2], status="running")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
        """A part of a test has ended: its result, if it is one."""
        report = (yield).get_result()
        against = next((value for key, value in item.user_properties if key == "against"), "")
        if report.skipped:
            self._say(
                test=item.name, status="skipped", message=str(report.longrepr[2]).removeprefix("Skipped: "), against=against
            )
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash else str(report.longrepr)
            traceback = call.excinfo.tb if call.excinfo else None
            self._say(
                test=item.name,
                status="failed",
                message=message,
                text=str(report.longrepr)[-20000:],
                against=against,
                compared=compared(traceback, self.lab.tests),
                suspect=suspect(traceback, self.lab.tests, self.graded),
                printed=self._printed(),
            )
            if "Timeout (>" in message:
                item.session.shouldstop = "a test did not come to an end"
        elif report.when == "call":
            self._say(test=item.name, status="passed", against=against)

    def pytest_sessionfinish(self) -> None:
        """All have run, or were not to."""
        self._say(finished=True)

    def _say(self, **message: object) -> None:
        left = json.dumps(message).encode() + b"\n"
        while left:
            left = left[os.write(self.pipe, left) :]

    def _printed(self) -> str:
        size = self.output.stat().st_size
        start = self.printed_before if self.printed_before <= size else 0  # the watcher empties it when it is too long
        with self.output.open("rb") as file:
            file.seek(max(start, size - PRINTED))
            return file.read().decode(errors="replace")


def time_limit(item: pytest.Item, lab: Lab) -> float:
    """Seconds that a test may take: what it is marked with, or the lab's limit."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker and marker.args else float(lab.time_limit)


def compared(traceback: TracebackType | None, tests: Path) -> list[str]:
    """Expected against got, a line each, for the assertion of test_lab.py that failed; empty where there are no two sides.

    By the tests' own custom what was got stands left, as in torch.testing.assert_close(actual, expected).
    """
    found = _deepest(traceback, tests)
    if found is None:
        return []
    frame, line = found
    statement = _statement(frame, line)
    sides = _sides(statement) if statement else None
    if sides is None:
        return []
    names = frame.f_globals | frame.f_locals  # in one, since a comprehension inside would not find the locals
    try:
        got, expected = (eval(compile(ast.Expression(side), str(tests), "eval"), names) for side in sides)
        return _difference(got, expected)
    except Exception:  # the learner's code, or their object's own repr; the test's message stands by itself then
        return []


def suspect(traceback: TracebackType | None, tests: Path, graded: Path) -> str:
    """What of the graded file the failed lines of the test last used: ``"starter.py:35, in BigramModel.forward"``, or empty."""
    for frame, line in reversed(list(_frames(traceback))):
        module = frame.f_locals.get("lab")
        if _is(frame, tests) and isinstance(module, ModuleType) and (found := _last_used(frame, line, tests, module, graded)):
            return found
    return ""


def _last_used(frame: FrameType, line: int, tests: Path, module: ModuleType, graded: Path) -> str:
    """The last function of the graded file that the test, or a helper of the tests, names up to this line."""
    used = [n for n in ast.walk(_tree(tests)) if isinstance(n, ast.Attribute) and frame.f_code.co_firstlineno <= n.lineno <= line]
    owner: Any = None
    last = ""
    for node in sorted(used, key=lambda node: (node.end_lineno, node.end_col_offset)):
        thing: Any = None
        if isinstance(node.value, ast.Name) and node.value.id == "lab":
            thing = owner = vars(module).get(node.attr)
        elif isinstance(owner, type) and node.attr in vars(owner):
            thing = vars(owner)[node.attr]
            thing = getattr(thing, "__func__", thing)  # of a class method
        code = getattr(thing, "__code__", None)
        if code is not None and code.co_filename == str(graded):
            last = f"{graded.name}:{code.co_firstlineno}, in {thing.__qualname__}"
    return last


def _frames(traceback: TracebackType | None) -> Any:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _is(frame: FrameType, path: Path) -> bool:
    return frame.f_code.co_filename == str(path)


def _deepest(traceback: TracebackType | None, path: Path) -> tuple[FrameType, int] | None:
    found = [(frame, line) for frame, line in _frames(traceback) if _is(frame, path)]
    return found[-1] if found else None


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _statement(frame: FrameType, line: int) -> ast.stmt | None:
    """The innermost statement that the line is a part of."""
    tree = _tree(Path(frame.f_code.co_filename))
    around = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= line <= (n.end_lineno or n.lineno)]
    return max(around, key=lambda node: node.lineno, default=None)


def _sides(statement: ast.stmt) -> tuple[ast.expr, ast.expr] | None:
    """The two sides of ``assert a == b``, ``assert torch.equal(a, b)`` and ``torch.testing.assert_close(a, b)``."""
    match statement:
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            return left, right
        case ast.Assert(test=ast.Call(func=ast.Attribute(attr="equal" | "allclose"), args=[left, right, *_])):
            return left, right
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="assert_close"), args=[left, right, *_])):
            return left, right
    return None


def _difference(got: Any, expected: Any) -> list[str]:
    import torch

    if isinstance(got, torch.Tensor) and isinstance(expected, torch.Tensor):
        return _tensors_differ(got, expected)
    if got == expected:
        return []
    lines = [f"expected  {_cut(repr(expected))}", f"got       {_cut(repr(got))}"]
    if isinstance(got, list) and isinstance(expected, list) and len(got) != len(expected):
        return [f"expected  {len(expected)} items, got {len(got)}", *lines]
    return lines


def _tensors_differ(got: Any, expected: Any) -> list[str]:
    import torch

    def kind(tensor: Any) -> str:
        return f"shape {tuple(tensor.shape)}, {str(tensor.dtype).removeprefix('torch.')}"

    lines = [f"expected  {kind(expected)}", f"got       {kind(got)}"]
    if got.shape == expected.shape:
        differs = ~torch.isclose(got.double(), expected.double(), rtol=1e-5, atol=1e-12, equal_nan=True)
        if not bool(differs.any()) and got.dtype == expected.dtype:
            return []
        if bool(differs.any()):
            first = tuple(differs.nonzero()[0].tolist())
            values = f"expected {expected[first].item():.6g}, got {got[first].item():.6g}"
            lines.append(f"{int(differs.sum())} of {differs.numel()} elements differ, first at {list(first)}: {values}")
    if max(got.numel(), expected.numel()) <= WHOLE:
        lines += [f"expected  {_cut(_rounded(expected.tolist()))}", f"got       {_cut(_rounded(got.tolist()))}"]
    return lines


def _rounded(values: Any) -> str:
    """A tensor's values as nested lists, floats to six digits."""
    if isinstance(values, list):
        return f"[{', '.join(map(_rounded, values))}]"
    return f"{values:.6g}" if isinstance(values, float) else repr(values)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text)} characters)"
