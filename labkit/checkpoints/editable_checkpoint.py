"""Editable copies of checkpoints: tensors and config.json are edited in memory, then written to another directory in one rename.

The tensors stay memory-mapped in the source's files until they are written: 16 GB of weights need the memory of one file at most.
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

from labkit.checkpoints.headers import INDEX, PICKLES, read_checkpoint, weight_files
from labkit.checkpoints.known_models import read_config
from labkit.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

NOT_COPIED = (".safetensors", ".safetensors.index.json", *PICKLES)
"""Suffixes of files that are not copied: the weights are written anew, and pickles hold the source's unchanged weights."""
REPLACED = ("config.json", "README.md", "mini-vllm-labs.json")
"""Other files that are not copied: the first two are written anew, and the third is the source's manifest."""


@dataclass
class EditableCheckpoint:
    """A checkpoint in memory, to be changed and written; iterating over it yields the names of its tensors.

    Attributes:
        source: the directory that was read; it is never changed.
        files: safetensors file name -> {tensor name -> tensor}.
        indexed: whether ``write`` also writes model.safetensors.index.json.
        index_overrides: tensor name -> the file that the index names, instead of the last file that holds the tensor.
        bytes_lost: the number of bytes that ``write`` cuts off the end of the last safetensors file.
    """

    source: Path
    config: dict[str, Any]
    files: dict[str, dict[str, Tensor]]
    indexed: bool
    index_overrides: dict[str, str] = field(default_factory=dict)
    bytes_lost: int = 0

    @classmethod
    def read(cls, source: Path) -> EditableCheckpoint:
        """Reads config.json and all tensors of a checkpoint directory; raises UserError if a file is missing or broken."""
        from safetensors import safe_open

        config, files = read_config(source), {}
        read_checkpoint(source)
        try:
            for file in weight_files(source):
                with safe_open(file, framework="pt") as tensors:
                    files[file.name] = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, ValueError) as error:
            raise UserError(f"{source} cannot be read ({error}); fetch the checkpoint again") from error
        return cls(source, config, files, (source / INDEX).is_file())

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of(name)[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        """Replaces the tensor of this name in the file that holds it; a tensor with a new name is added to the last file."""
        file = self._file_of(name) if name in self else list(self.files.values())[-1]
        file[name] = tensor.contiguous()

    def __delitem__(self, name: str) -> None:
        del self._file_of(name)[name]

    def __iter__(self) -> Iterator[str]:
        return iter([name for tensors in self.files.values() for name in tensors])

    def _file_of(self, name: str) -> dict[str, Tensor]:
        if name not in self:
            raise UserError(f"{self.source} has no {name}; give a checkpoint that has this tensor")
        return next(tensors for tensors in self.files.values() if name in tensors)

    def write(self, to: Path, metadata: Mapping[str, str], readme: str) -> None:
        """Writes the checkpoint to ``to`` in one rename: a killed run leaves only a temporary directory ``.NAME.*`` beside it.

        Args:
            to: a directory outside the source that is missing or empty; for any other, raises UserError and changes nothing.
            metadata: key -> value, added to the metadata of every safetensors file.
        """
        from safetensors import SafetensorError

        to = to.expanduser().absolute()
        _check_target(to, self.source)
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent, ignore_cleanup_errors=True) as workshop:
                made = Path(workshop, "made")
                made.mkdir()
                self._write_weights(made, metadata)
                (made / "README.md").write_text(readme, encoding="utf-8")
                (made / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
                made.rename(to)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot write {to}: {getattr(error, 'strerror', None) or error}; name a directory in a folder that you may write"
            ) from error

    def _write_weights(self, made: Path, metadata: Mapping[str, str]) -> None:
        """Writes the safetensors files, and the index if ``indexed``, into ``made``; copies the source's other files there."""
        from safetensors.torch import save_file

        for path in sorted(self.source.iterdir()):
            if path.is_file() and not path.name.endswith(NOT_COPIED) and path.name not in REPLACED:
                shutil.copyfile(path, made / path.name)
        for name, tensors in self.files.items():
            save_file(tensors, made / name, metadata={"format": "pt", **metadata})
        if self.indexed:
            places = {name: file for file, tensors in self.files.items() for name in tensors}
            size = sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": places | self.index_overrides}
            (made / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        if self.bytes_lost:
            last = made / list(self.files)[-1]
            os.truncate(last, last.stat().st_size - self.bytes_lost)


def _check_target(to: Path, source: Path) -> None:
    inside = to.resolve()
    if source.resolve() in (inside, *inside.parents):
        raise UserError(f"{to} is in {source}, where nothing is changed; name a directory outside it")
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise UserError(f"{to} exists and is not a directory; name a directory that does not exist yet")
    if to.is_dir() and (held := sorted(path.name for path in to.iterdir())):
        raise UserError(f"{to} holds {held[0]} ({len(held)} in all); name a directory that does not exist yet, or an empty one")
