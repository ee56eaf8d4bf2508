"""Text that grows by a token at a time: it is the whole text in the end, and no character is cut on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoding
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE

from labkit.course.bigram import byte_tokenizer
from mini_vllm.engine.detokenizer import Detokenizer
from mini_vllm.sampling_params import SamplingParams
from mini_vllm.tokenizer import Tokenizer

TEXTS = "Grüße, 日本語 👩‍👩‍👧 naïve Ω"


def sentencepiece_like() -> Encoding:
    """As Llama 2's: words begin with a low line, and what is in no word comes as bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁ab", "ab", "é"]
    encoding = Encoding(BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True, unk_token="<unk>"))
    encoding.pre_tokenizer = pre_tokenizers.Metaspace()
    encoding.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return encoding


@pytest.fixture(scope="module", params=[byte_tokenizer, sentencepiece_like])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    make: Callable[[], Encoding] = request.param
    folder = tmp_path_factory.mktemp(make.__name__)
    make().save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def grow(tokenizer: Tokenizer, token_ids: list[int], **params: Any) -> tuple[Detokenizer, list[str], str | None]:
    """The detokenizer, what a reader had seen after each token, and the stop text."""
    detokenizer, seen, stop = Detokenizer(tokenizer, SamplingParams(**params)), [], None
    for token in token_ids:
        stop = detokenizer.append(token, may_stop=True)
        seen.append(detokenizer.text if stop else detokenizer.safe_text)
        if stop:
            return detokenizer, seen, stop
    detokenizer.flush()
    return detokenizer, [*seen, detokenizer.text], None


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(token_ids=st.lists(st.integers(0, 262), max_size=30) | st.text(TEXTS).map(lambda text: list(text.encode())))
def test_any_tokens_end_as_their_decoded_whole_and_only_ever_grow(tokenizer: Tokenizer, token_ids: list[int]) -> None:
    token_ids = [token % tokenizer._encoding.get_vocab_size() for token in token_ids]
    detokenizer, seen, _ = grow(tokenizer, token_ids)
    if tokenizer.folder.name.startswith("byte") or "�" not in tokenizer.decode(token_ids):
        # Byte fallback reads a whole run of bytes anew when one more makes it invalid, so what was shown cannot be its beginning.
        assert detokenizer.text == tokenizer.decode(token_ids)
    for before, after in pairwise(seen):
        assert after.startswith(before), "a reader never has to take anything back"


@pytest.mark.parametrize("text", ["é", "日本", "a👩‍👩‍👧b", TEXTS])
def test_no_character_is_cut(tokenizer: Tokenizer, text: str) -> None:
    _, seen, _ = grow(tokenizer, tokenizer.encode(text))
    assert not any("�" in piece for piece in seen)
    assert seen[-1] == text


def test_the_flush_shows_what_never_became_a_character(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("b日")[:-1]
    detokenizer, seen, _ = grow(tokenizer, token_ids)
    assert seen[-2] == "b"
    assert detokenizer.text == tokenizer.decode(token_ids) != "b"


@pytest.mark.parametrize(
    ("stop", "include", "text", "left"),
    [
        ("END", False, "say END now", "say "),
        ("END", True, "say END now", "say END"),
        (["zzz", "now"], False, "say END now", "say END "),
        (["now", "END"], False, "say END now", "say "),
        ("E", False, "E", ""),
        ("日本", False, "ab日本語", "ab"),
    ],
)
def test_a_stop_text_ends_the_answer_where_it_begins(
    stop: str | list[str], include: bool, text: str, left: str, tmp_path: Path
) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    detokenizer, seen, found = grow(tokenizer, tokenizer.encode(text), stop=stop, include_stop_str_in_output=include)
    assert detokenizer.text == left
    assert found in ([stop] if isinstance(stop, str) else stop)
    assert all(left.startswith(piece) for piece in seen), "no part of a stop text is ever shown and taken back"


class Words:
    """A tokenizer whose tokens are words."""

    WORDS = ("both END and now", " more")

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(self.WORDS[token] for token in token_ids)

    def decode_stream(self, skip_special_tokens: bool = True) -> Callable[[int], str]:
        return self.WORDS.__getitem__


def test_of_two_stop_texts_in_one_token_the_first_counts() -> None:
    detokenizer = Detokenizer(Words(), SamplingParams(stop=["now", "END"]))
    assert detokenizer.append(0, may_stop=True) == "END"
    assert detokenizer.text == "both "


def test_what_only_looks_like_a_stop_text_is_shown_when_it_is_none(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    detokenizer, seen, found = grow(tokenizer, tokenizer.encode("a ENter EN"), stop="END")
    assert found is None
    assert seen[3] == "a ", "EN is held back"
    assert seen[4] == "a ENt"
    assert detokenizer.text == "a ENter EN"


def test_stop_texts_are_not_looked_for_before_they_may_stop(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop="ab"))
    found = [detokenizer.append(token, may_stop=number > 2) for number, token in enumerate(tokenizer.encode("abab"), start=1)]
    assert found == [None, None, None, "ab"]
    assert detokenizer.text == "ab"
