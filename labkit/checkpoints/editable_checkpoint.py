"""A checkpoint that is copied in order to be changed: its tensors and config.json in memory, written elsewhere in one rename.

The values stay in the source's files, mapped into memory, until they are written: 16 GB of weights take one file's room at most.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.checkpoints.headers import INDEX, PICKLES, HeaderError, read_checkpoint, weight_files
from labkit.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

NOT_COPIED = (".safetensors", ".safetensors.index.json", *PICKLES)
"""Ends of the names of files that a copy leaves out: weights are written anew, and pickles would hold them as they were."""

NOT_OURS = ("README.md", "mini-vllm-labs.json")
"""Files about the source that would be untrue beside a changed copy."""


@dataclass
class Draft:
    """A checkpoint as it will be written.

    Attributes:
        source: the directory that it was read from; nothing is written there.
        config: what its config.json will say.
        files: its safetensors files by name, each with its tensors.
        indexed: whether an index will name the file of each tensor.
        index_says: where the index will place a tensor, if not in the last of the files that hold it.
        bytes_lost: how many bytes will be missing at the end of its last file.
    """

    source: Path
    config: dict[str, Any]
    files: dict[str, dict[str, Tensor]]
    indexed: bool
    index_says: dict[str, str] = field(default_factory=dict)
    bytes_lost: int = 0

    @classmethod
    def read(cls, source: Path) -> Draft:
        """The checkpoint in a directory, as it is.

        Raises:
            UserError: there is no config.json, no safetensors file, or one that cannot be read.
        """
        from safetensors import safe_open

        path = source / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            read_checkpoint(source)
            files = {}
            for file in weight_files(source):
                with safe_open(file, framework="pt") as tensors:
                    files[file.name] = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"there is no {path.name} in {source}; give a directory with config.json and safetensors") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{source} cannot be read ({error}); fetch the checkpoint again") from error
        except HeaderError as error:
            raise UserError(str(error)) from error
        if not isinstance(config, dict):
            raise UserError(f"{path} holds no JSON object; fetch it again")
        return cls(source, config, files, (source / INDEX).is_file())

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of(name)[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        """Replaces a tensor where it is stored; a new one goes into the last file."""
        file = self._file_of(name) if name in self else list(self.files.values())[-1]
        file[name] = tensor.contiguous()

    def __delitem__(self, name: str) -> None:
        del self._file_of(name)[name]

    def __contains__(self, name: str) -> bool:
        return any(name in tensors for tensors in self.files.values())

    def __iter__(self) -> Iterator[str]:
        return iter([name for tensors in self.files.values() for name in tensors])

    def _file_of(self, name: str) -> dict[str, Tensor]:
        for tensors in self.files.values():
            if name in tensors:
                return tensors
        raise UserError(f"{self.source} has no {name}; give a checkpoint that has")

    def write(self, to: Path, about: Mapping[str, str], readme: str) -> None:
        """Writes the directory, whole or not at all: what a killed run leaves behind has another name and no config.json.

        Args:
            to: a directory that does not exist yet or is empty, outside the source.
            about: goes into the metadata of every safetensors file.
            readme: the text of its README.md.

        Raises:
            UserError: the directory will not do, or cannot be written; what was there is as it was.
        """
        from safetensors import SafetensorError

        to = to.expanduser().absolute()
        _check_target(to, self.source)
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent, ignore_cleanup_errors=True) as workshop:
                made = Path(workshop, "made")
                made.mkdir()
                self._fill(made, about)
                (made / "README.md").write_text(readme, encoding="utf-8")
                (made / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
                made.rename(to)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot write {to}: {getattr(error, 'strerror', None) or error}; name a directory in a folder of yours"
            ) from error

    def _fill(self, made: Path, about: Mapping[str, str]) -> None:
        """Everything but README.md and config.json."""
        from safetensors.torch import save_file

        for path in sorted(self.source.iterdir()):
            if path.is_file() and not path.name.endswith(NOT_COPIED) and path.name not in (*NOT_OURS, "config.json"):
                shutil.copyfile(path, made / path.name)
        for name, tensors in self.files.items():
            save_file(tensors, made / name, metadata={"format": "pt", **about})
        if self.indexed:
            places = {name: file for file, tensors in self.files.items() for name in tensors}
            size = sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": places | self.index_says}
            (made / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        if self.bytes_lost:
            last = made / list(self.files)[-1]
            os.truncate(last, last.stat().st_size - self.bytes_lost)


def _check_target(to: Path, source: Path) -> None:
    """Sees that the directory can be made: it is not there or is empty, and does not lie in the source."""
    inside = to.resolve()
    if source.resolve() in (inside, *inside.parents):
        raise UserError(f"{to} lies in {source}, where nothing is changed; name a directory outside it")
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise UserError(f"{to} is there and is no directory; name one that does not exist yet")
    if to.is_dir() and (held := sorted(path.name for path in to.iterdir())):
        raise UserError(f"{to} holds {held[0]} ({len(held)} in all); name a directory that does not exist yet, or an empty one")
