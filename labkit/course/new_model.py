"""A plugin of one's own: a small package that installs, serves and passes its tests, to be changed from there.

The packages in templates/ are whole and run as they are; a new one is a copy with three names replaced.
"""

from __future__ import annotations

import keyword
import os
import shutil
import sys
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from labkit.system.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"


class Like(StrEnum):
    """The packages there are to begin with."""

    llama = "llama"
    bigram = "bigram"


def write_new_model(name: str, like: Like, parent: Path) -> Path:
    """Makes the package ``parent``/``name``, whole or not at all.

    Args:
        name: of the Python package, of config.json's model_type, and, in capitals, of the class: ``tiny_llama`` makes
            ``TinyLlamaForCausalLM``.
        like: which package to begin with.
        parent: the folder to make it in.

    Raises:
        UserError: the name will not do, there is something of that name, or the folder cannot be written to.
    """
    check_name(name)
    folder = parent / name
    if folder.exists() or folder.is_symlink():
        raise UserError(f"there is a {folder} already, and it is left as it is; choose another name, or move it away")
    camel = "".join(word.capitalize() for word in name.split("_"))
    names = {"new_model": name, "NewModel": camel, "new-model": name.replace("_", "-")}
    half_written = parent / f".{name}.{os.getpid()}"
    try:
        for source in sorted((TEMPLATES / like).rglob("*")):
            if source.is_file() and source.suffix in (".py", ".md", ".toml"):
                target = half_written / _renamed(str(source.relative_to(TEMPLATES / like)), names)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(_renamed(source.read_text(encoding="utf-8"), names), encoding="utf-8")
        half_written.rename(folder)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; go to a folder of yours and say it again") from error
    finally:
        shutil.rmtree(half_written, ignore_errors=True)
    return folder


def check_name(name: str) -> None:
    """Sees that a Python package can be called so, and that neither Python, vLLM nor an installed package is.

    Raises:
        UserError: it cannot; says why, and a name that would do where there is a near one.
    """
    usual = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name.lower()).strip("_")
    if not (name == usual and name.isidentifier()) or keyword.iskeyword(name):
        near = f", {usual} for instance" if usual.isidentifier() and not keyword.iskeyword(usual) else ""
        raise UserError(
            f"{name!r} cannot be the name of a Python package: small letters, digits and _ alone, a letter first, no word of "
            f"Python's own{near}"
        )
    if name in sys.stdlib_module_names or name == "tests" or find_spec(name):
        raise UserError(f"{name} is the name of a Python package that there is already; choose another, my_{name} for instance")
    for package, models in (("vllm", f"model_executor/models/{name}.py"), ("transformers", f"models/{name}")):
        found = find_spec(package)
        if found and found.origin and (Path(found.origin).parent / models).exists():
            raise UserError(f"{package} has a model called {name}, and yours needs a name of its own, my_{name} for instance")


def _renamed(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text
