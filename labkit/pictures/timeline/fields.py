"""A JSON object from a file, read field by field: what is missing or wrong ends as a sentence that names the place."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from labkit.system.errors import UserError

Word = TypeVar("Word", bound=str)


class Fields:
    """A JSON object whose fields are asked for by name and type; what is missing or wrong is a sentence with its place."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise UserError(f"{where} is {_shown(data)} and should be an object; record the run again")
        self._data: dict[str, Any] = data
        self._where = where

    def integer(self, name: str, least: int = 0) -> int:
        """An integer that is not below ``least``."""
        value = self._get(name)
        if not _is_integer(value, least):
            raise self._wrong(name, value, f"an integer from {least} up")
        return int(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers, none of them negative."""
        value = self._get(name)
        if not isinstance(value, list) or not all(_is_integer(item, 0) for item in value):
            raise self._wrong(name, value, "a list of integers from 0 up")
        return tuple(value)

    def seconds(self, name: str) -> float:
        """A number that is not negative."""
        value = self._get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise self._wrong(name, value, "a number from 0 up")
        return float(value)

    def text(self, name: str) -> str:
        """A text."""
        value = self._get(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def word(self, name: str, words: tuple[Word, ...]) -> Word:
        """One of a few words."""
        value = self._get(name)
        for word in words:
            if value == word:
                return word
        raise self._wrong(name, value, f"one of {', '.join(words)}")

    def objects(self, name: str) -> list[Fields]:
        """A list of objects, each with its own place."""
        value = self._get(name)
        if not isinstance(value, list):
            raise self._wrong(name, value, "a list")
        return [Fields(item, f"{self._where}, {name}[{index}]") for index, item in enumerate(value)]

    def _get(self, name: str) -> Any:
        if name not in self._data:
            raise UserError(f'{self._where} has no "{name}"; record the run again')
        return self._data[name]

    def _wrong(self, name: str, value: object, wanted: str) -> UserError:
        return UserError(f'{self._where}: "{name}" is {_shown(value)} and should be {wanted}; record the run again')


def _is_integer(value: object, least: int) -> bool:
    # 2**63: what no counter reaches, and a float can still hold.
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
