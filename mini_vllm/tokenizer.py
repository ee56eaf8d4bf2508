"""Tokenizer and chat template of a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import Tokenizer as Encoding
from tokenizers.decoders import DecodeStream

from mini_vllm.loading.checkpoint import CheckpointError, read_json

Message = Mapping[str, str]
"""{"role": "user", "content": "..."}"""


class Tokenizer:
    """A directory's tokenizer; raises CheckpointError if tokenizer.json cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._encoding = Encoding.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{folder / 'tokenizer.json'} cannot be read ({error}); fetch the checkpoint again") from error
        config_file = folder / "tokenizer_config.json"
        self._config = read_json(config_file) if config_file.exists() else {}

    @classmethod
    def find(cls, folder: Path) -> Tokenizer | None:
        """Returns the directory's tokenizer; None without a tokenizer.json."""
        return cls(folder) if (folder / "tokenizer.json").exists() else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text."""
        return list(self._encoding.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids."""
        return self._encoding.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def decode_stream(self, skip_special_tokens: bool = True) -> Callable[[int], str]:
        """Returns a function to call with each next token: it returns the text added, empty while a character is incomplete."""
        stream = DecodeStream(skip_special_tokens=skip_special_tokens)

        def step(token: int) -> str:
            nonlocal stream
            try:
                return stream.step(self._encoding, token) or ""
            except Exception:  # the library raises plain Exception if invalid UTF-8 changes earlier text; start a new stream
                stream = DecodeStream(skip_special_tokens=skip_special_tokens)
                return stream.step(self._encoding, token) or ""

        return step

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """Renders the prompt of a conversation, up to the beginning of the assistant's answer; returns the text.

        The checkpoint's template is untrusted and runs in jinja's sandbox. CheckpointError if the template is missing or fails.
        """
        from jinja2 import TemplateError  # imported here, because only chat needs jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> NoReturn:
            raise TemplateError(message)

        # The same settings as in transformers' chat_template_utils, which chat templates are written for.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            template = environment.from_string(self._chat_template())
            return template.render(messages=list(messages), add_generation_prompt=True, **self._special_tokens())
        except TemplateError as error:
            raise CheckpointError(
                f"the chat template of {self.folder} fails: {error}; change the messages, or the template in that directory"
            ) from error

    def _chat_template(self) -> str:
        """Reads chat_template.jinja, or chat_template in tokenizer_config.json: a text, or a list whose "default" is returned."""
        own_file = self.folder / "chat_template.jinja"
        template = own_file.read_text(encoding="utf-8") if own_file.exists() else self._config.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if not isinstance(template, str):
            raise CheckpointError(f"{self.folder} has no chat template; use generate() with a prompt instead of chat()")
        return template

    def _special_tokens(self) -> dict[str, Any]:
        tokens = {key: self._config.get(key) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return {key: token["content"] if isinstance(token, dict) else token for key, token in tokens.items() if token}
