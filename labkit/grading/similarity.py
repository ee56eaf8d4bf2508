"""Writes the submissions in JPlag's layout: a folder for each learner, and the starter as base code.

The teacher runs JPlag (https://github.com/jplag/JPlag):

    java -jar jplag.jar -l python3 -bc DIR/base DIR/submissions
"""

from __future__ import annotations

import shutil
from pathlib import Path

from labkit.grading.submissions import Submission
from labkit.system.errors import UserError
from labkit.system.labs import Lab


def write_for_jplag(submissions: list[Submission], lab: Lab, output: Path) -> Path:
    """Replaces ``output``/submissions/NAME/starter.py and ``output``/base/starter.py; returns ``output``.

    Raises:
        UserError: the files cannot be written.
    """
    try:
        for name in ("base", "submissions"):
            shutil.rmtree(output / name, ignore_errors=True)
        sources = {f"submissions/{each.name}": each.source for each in submissions if each.source}
        for name, source in (sources | {"base": (lab.folder / "starter.py").read_bytes()}).items():
            (output / name).mkdir(parents=True)
            (output / name / "starter.py").write_bytes(source)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}; name another folder with --output") from error
    return output
