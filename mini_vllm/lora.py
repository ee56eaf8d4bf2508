"""LoRA requests, and the manager that loads their adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mini_vllm.loading.lora import load_lora
from mini_vllm.parallel import TPGroup


@dataclass(frozen=True)
class LoRARequest:
    """The adapter of a request; named as in vLLM (vllm/lora/request.py).

    Attributes:
        lora_int_id: the adapter's number, at least 1; each number must always name the same directory.
        lora_path: the directory that peft's save_pretrained wrote.

    Raises:
        ValueError: lora_int_id is below 1.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"lora_int_id of adapter {self.lora_name!r} is {self.lora_int_id}; it must be at least 1")


class LoRAManager:
    """Loads each adapter on every rank when a request first names it; an adapter is never unloaded."""

    def __init__(self, model: object, tp: TPGroup) -> None:
        self.model, self.tp = model, tp
        self._folders: dict[int, Path] = {}

    def lora_id(self, request: LoRARequest | None) -> int:
        """Returns the adapter's number, 0 for None; loads the adapter if it is new. Must be called between two steps.

        Raises:
            ValueError: the number was used for another directory before.
            AdapterError: the adapter does not fit the model or is not supported; nothing of it was loaded.
            CheckpointError: a file of the adapter is damaged.
        """
        if request is None:
            return 0
        lora_id, folder = request.lora_int_id, Path(request.lora_path).resolve()
        if self._folders.get(lora_id, folder) != folder:
            raise ValueError(
                f"lora_int_id {lora_id} is {folder} in this request and was {self._folders[lora_id]} before; "
                "give each directory a number of its own"
            )
        if lora_id not in self._folders:
            load_lora(self.model, lora_id, folder)
            if self.tp.size > 1:
                self.tp.broadcast({"lora_id": lora_id, "folder": str(folder)})
            self._folders[lora_id] = folder
        return lora_id
