"""The submissions as JPlag wants them: a folder for each learner, and the starter as base code, which everybody shares.

JPlag is run by whoever grades (https://github.com/jplag/JPlag):

    java -jar jplag.jar -l python3 -bc DIR/base DIR/submissions
"""

from __future__ import annotations

import shutil
from pathlib import Path

from labkit.grading.submissions import Submission
from labkit.system.errors import UserError
from labkit.system.labs import Lab


def write_for_jplag(submissions: list[Submission], lab: Lab, output: Path) -> Path:
    """Writes ``output``/submissions/NAME/starter.py and ``output``/base/starter.py, anew; returns ``output``.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        for ours in ("base", "submissions"):
            shutil.rmtree(output / ours, ignore_errors=True)
        for name, source in (
            ("base", (lab.folder / "starter.py").read_bytes()),
            *((f"submissions/{each.name}", each.source) for each in submissions if each.source),
        ):
            (output / name).mkdir(parents=True)
            (output / name / "starter.py").write_bytes(source)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}; name another folder with --output") from error
    return output
