"""The folders and archives that learners hand in, and the one file of each that is graded. Nothing is ever unpacked to disk."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from labkit.system.errors import UserError
from labkit.system.labs import Lab

FILE = 1 << 20
"""Bytes of a graded file. The solutions have up to 16,000."""

MEMBERS = 5000
"""Members of an archive."""

UNPACKED = 200 << 20
"""Bytes of all members of an archive together, as it says itself."""


@dataclass(frozen=True)
class Submission:
    """What one learner has handed in.

    Attributes:
        name: the folder's or the archive's, without the suffix.
        source: the graded file's bytes; empty when there is none.
        fault: why it cannot be graded, empty when it can.
    """

    name: str
    source: bytes = b""
    fault: str = ""

    @property
    def sha256(self) -> str:
        """Of the graded file, or of the reason why there is none."""
        return sha256(self.source or self.fault.encode()).hexdigest()


def read_submissions(folder: Path, lab: Lab) -> list[Submission]:
    """A submission for each folder, archive and .py file in ``folder``, by name.

    Raises:
        UserError: there is no such folder, nothing in it, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the one with a folder or a .zip for each learner")
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "__"))]
    submissions = [_read(entry, lab) for entry in entries if entry.is_dir() or entry.suffix in (".zip", ".py")]
    if not submissions:
        raise UserError(f"{folder} has no folder, .zip or .py file in it; each learner's is one of these")
    names = [submission.name for submission in submissions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{folder} has {twice[0]} twice, as a folder and as a file; keep one of the two")
    return submissions


def _read(entry: Path, lab: Lab) -> Submission:
    name = entry.name if entry.is_dir() else entry.stem
    try:
        if entry.is_symlink():
            raise UserError(f"{entry.name} is a link; put what it leads to in its place")
        return Submission(name, _of_archive(entry, lab) if entry.suffix == ".zip" else _of_folder(entry, lab))
    except UserError as error:
        return Submission(name, fault=str(error))
    except OSError as error:
        return Submission(name, fault=f"{entry.name} cannot be read: {error.strerror}")


def _of_folder(entry: Path, lab: Lab) -> bytes:
    if entry.is_file():
        return _limited(entry.name, entry.stat().st_size, entry.read_bytes)
    files = {}
    for path in sorted(entry.rglob("*.py")):
        if not any(each.is_symlink() for each in (path, *path.parents[: len(path.relative_to(entry).parts)])) and path.is_file():
            files[path.relative_to(entry).as_posix()] = path
    chosen = files[_chosen(list(files), lab, entry.name)]
    return _limited(chosen.name, chosen.stat().st_size, chosen.read_bytes)


def _of_archive(entry: Path, lab: Lab) -> bytes:
    try:  # a damaged archive makes zipfile, and each decompressor under it, raise what it likes
        with zipfile.ZipFile(entry) as archive:
            members = archive.infolist()
            _see_to_members(entry.name, members)
            names = [member.filename for member in members if not member.is_dir() and member.filename.endswith(".py")]
            member = archive.getinfo(_chosen(names, lab, entry.name))
            with archive.open(member) as file:
                return _limited(member.filename, member.file_size, lambda: file.read(FILE + 1))
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(f"{entry.name} is no zip archive that can be read ({error}); hand in another") from error


def _see_to_members(name: str, members: list[zipfile.ZipInfo]) -> None:
    """Refuses what no honest archive has, whether or not it would be read."""
    if len(members) > MEMBERS or sum(member.file_size for member in members) > UNPACKED:
        size = sum(member.file_size for member in members)
        raise UserError(
            f"{name} has {len(members)} members of {size} bytes; {MEMBERS} and {UNPACKED} are the most, so hand in starter.py "
            "alone"
        )
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        kind = stat.S_IFMT(member.external_attr >> 16)
        if ".." in parts or member.filename.startswith(("/", "\\")) or ":" in member.filename:
            raise UserError(f"{name} holds {member.filename!r}, which leads out of its folder; hand in another")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{name} holds {member.filename!r}, which is a link or no plain file; hand in another")
        if member.flag_bits & 1:
            raise UserError(f"{name} is encrypted; hand in another")


def _chosen(names: list[str], lab: Lab, what: str) -> str:
    """The lab's starter.py of a whole work tree, else the only starter.py, else the only .py file."""
    for fits in (
        lambda path: path.parts[-2:] == (lab.folder.name, "starter.py"),
        lambda path: path.name == "starter.py",
        lambda path: True,
    ):
        found = [name for name in names if fits(PurePosixPath(name))]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{what} has {len(found)} files that may be meant, {found[0]} one of them; keep one")
    raise UserError(f"{what} has no .py file in it; hand in starter.py")


def _limited(name: str, size: int, read: Callable[[], bytes]) -> bytes:
    if size > FILE or len(data := read()) > FILE:
        raise UserError(f"{name} has more than {FILE} bytes; hand in the lab's file alone")
    if not data.strip():
        raise UserError(f"{name} is empty; hand in the lab's file")
    return data
