"""Reads submissions: from each folder or archive, the one file that is graded. Nothing is unpacked to disk."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from labkit.system.errors import UserError
from labkit.system.labs import Lab

MAX_FILE = 1 << 20  # bytes of a graded file; the solutions have up to 16,000
MAX_MEMBERS = 5000  # of an archive
MAX_UNPACKED = 200 << 20  # bytes of all members of an archive together, as the archive's own directory says


@dataclass(frozen=True)
class Submission:
    """One learner's submission: ``source`` is the graded file's bytes, ``fault`` the reason why there is no graded file.

    ``name`` is that of the folder or the archive, without the suffix.
    """

    name: str
    source: bytes = b""
    fault: str = ""

    @property
    def sha256(self) -> str:
        """The SHA-256, in hex, of the graded file's bytes; if there is no graded file, of the text of ``fault``."""
        return sha256(self.source or self.fault.encode()).hexdigest()


def read_submissions(folder: Path, lab: Lab) -> list[Submission]:
    """Reads a submission from each folder, archive and .py file in ``folder``, sorted by name.

    UserError: there is no such folder, it holds no submission, or it holds two with the same name.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the one with a folder or a .zip for each learner")
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "__"))]
    submissions = [_read(entry, lab) for entry in entries if entry.is_dir() or entry.suffix in (".zip", ".py")]
    if not submissions:
        raise UserError(f"{folder} has no folder, .zip or .py file; give a directory that has one of them for each learner")
    names = [submission.name for submission in submissions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{folder} has {twice[0]} twice, as a folder and as a file; keep one of the two")
    return submissions


def _read(entry: Path, lab: Lab) -> Submission:
    name = entry.name if entry.is_dir() else entry.stem
    try:
        if entry.is_symlink():
            raise UserError(f"{entry.name} is a link; put what it leads to in its place")
        return Submission(name, _read_archive(entry, lab) if entry.suffix == ".zip" else _read_folder(entry, lab))
    except UserError as error:
        return Submission(name, fault=str(error))
    except OSError as error:
        return Submission(name, fault=f"{entry.name} cannot be read: {error.strerror}")


def _read_folder(entry: Path, lab: Lab) -> bytes:
    if entry.is_file():
        return _limited(entry.name, entry.stat().st_size, entry.read_bytes)
    root = entry.resolve()
    found = [path for path in sorted(root.rglob("*.py")) if path.is_file() and path.resolve() == path]
    files = {path.relative_to(root).as_posix(): path for path in found}
    chosen = files[_chosen(list(files), lab, entry.name)]
    return _limited(chosen.name, chosen.stat().st_size, chosen.read_bytes)


def _read_archive(entry: Path, lab: Lab) -> bytes:
    try:  # a damaged archive makes zipfile and the decompressors raise many kinds of errors
        with zipfile.ZipFile(entry) as archive:
            members = archive.infolist()
            _check_members(entry.name, members)
            names = [member.filename for member in members if not member.is_dir() and member.filename.endswith(".py")]
            member = archive.getinfo(_chosen(names, lab, entry.name))
            with archive.open(member) as file:
                return _limited(member.filename, member.file_size, lambda: file.read(MAX_FILE + 1))
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(f"{entry.name} is not a readable zip archive ({error}); hand in another archive") from error


def _check_members(name: str, members: list[zipfile.ZipInfo]) -> None:
    """Refuses links, encrypted members, and paths or sizes that an honest archive does not have."""
    size = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or size > MAX_UNPACKED:
        raise UserError(
            f"{name} has {len(members)} members of {size} bytes; the limits are {MAX_MEMBERS} and {MAX_UNPACKED}, so hand in "
            "starter.py alone"
        )
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        kind = stat.S_IFMT(member.external_attr >> 16)
        if ".." in parts or member.filename.startswith(("/", "\\")) or ":" in member.filename:
            raise UserError(f"{name} holds {member.filename!r}, which leads out of its folder; hand in another archive")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{name} holds {member.filename!r}, which is a link or not a regular file; hand in another archive")
        if member.flag_bits & 1:
            raise UserError(f"{name} is encrypted; hand in an archive without a password")


def _chosen(names: list[str], lab: Lab, what: str) -> str:
    """Chooses the graded file: the lab's starter.py of a whole work tree, else the only starter.py, else the only .py file."""
    for matches in (
        lambda path: path.parts[-2:] == (lab.folder.name, "starter.py"),
        lambda path: path.name == "starter.py",
        lambda path: True,
    ):
        found = [name for name in names if matches(PurePosixPath(name))]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{what} has {len(found)} files that may be meant, {found[0]} one of them; keep one")
    raise UserError(f"{what} has no .py file in it; hand in starter.py")


def _limited(name: str, size: int, read: Callable[[], bytes]) -> bytes:
    if size > MAX_FILE or len(data := read()) > MAX_FILE:
        raise UserError(f"{name} has more than {MAX_FILE} bytes; hand in the lab's file alone")
    if not data.strip():
        raise UserError(f"{name} is empty; hand in the lab's file")
    return data
