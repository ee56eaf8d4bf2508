"""Creates a plugin package from a template: without any change, it can be installed and served, and passes its tests.

The templates in templates/ are complete packages; a new package is a copy with its module, class and distribution renamed.
"""

from __future__ import annotations

import keyword
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from string import capwords
from typing import Literal

from labkit.system.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"

Like = Literal["llama", "bigram"]


def write_new_model(name: str, like: Like, parent: Path) -> Path:
    """Copies the template ``like`` to the package ``parent``/``name``, completely or not at all; returns the package's folder.

    ``name`` is also the model_type in config.json; the class in the package ``tiny_llama`` is ``TinyLlamaForCausalLM``.

    Raises:
        UserError: the name is invalid, a package or folder of this name exists, or the folder cannot be written.
    """
    check_name(name)
    folder = parent / name
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} already exists and was not changed; choose another name, or move it away")
    names = {"new_model": name, "NewModel": capwords(name, "_").replace("_", ""), "new-model": name.replace("_", "-")}
    half_written = parent / f".{name}.{os.getpid()}"

    def renamed(text: str) -> str:
        return re.sub("|".join(names), lambda found: names[found[0]], text)

    try:
        for source in sorted((TEMPLATES / like).rglob("*")):
            if source.is_file() and source.suffix in (".py", ".md", ".toml"):
                target = half_written / renamed(str(source.relative_to(TEMPLATES / like)))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(renamed(source.read_text(encoding="utf-8")), encoding="utf-8")
        half_written.rename(folder)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}; run the command in a folder where you can write") from error
    finally:
        shutil.rmtree(half_written, ignore_errors=True)
    return folder


def check_name(name: str) -> None:
    """Checks that a new Python package can have this name.

    Raises:
        UserError: the name is not valid, or Python, vLLM, transformers or an installed package uses it; the message suggests one.
    """
    valid = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name.lower()).strip("_")
    if not (name == valid and name.isidentifier()) or keyword.iskeyword(name):
        suggestion = f", for instance {valid}" if valid.isidentifier() and not keyword.iskeyword(valid) else ""
        raise UserError(
            f"{name!r} cannot be the name of a Python package; use lower-case letters, digits and _, a letter first, and no "
            f"keyword of Python{suggestion}"
        )
    if name in sys.stdlib_module_names or name == "tests" or find_spec(name):
        raise UserError(f"a Python package {name} already exists; choose another name, for instance my_{name}")
    for package, models in (("vllm", f"model_executor/models/{name}.py"), ("transformers", f"models/{name}")):
        found = find_spec(package)
        if found and found.origin and (Path(found.origin).parent / models).exists():
            raise UserError(f"{package} already has a model called {name}; choose another name, for instance my_{name}")
