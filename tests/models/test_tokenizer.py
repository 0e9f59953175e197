"""Encoding against a byte-pair encoder written the plainest way; streaming; special tokens."""

from __future__ import annotations

import itertools
import sys
import threading
from functools import cache
from pathlib import Path

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from shoal.core.errors import InputError, ModelError
from shoal.models.gguf import GGUFFile
from shoal.models.loading import Model
from shoal.models.tokenizer import Tokenizer

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<empty_output>"]
NASTY = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.text("0123456789٣²½Ⅷ ", max_size=8),
        st.text(" \t\n\r\u00a0\u3000\u200b", max_size=8),
        st.sampled_from(
            [
                "don't",
                "I'LL",
                "naïve",
                "漢字仮名",
                "👩‍👩‍👧‍👦",
                "e\u0301",
                "\u0000",
                "<|im_",
                "end|>",
                "Ġ",
            ]
        ),
        st.sampled_from(SPECIALS),
    ),
    max_size=8,
).map("".join)


class PlainBPE:
    """SmolLM2's tokenizer from its description: digits alone, GPT-2's split, then merges."""

    def __init__(self, file: GGUFFile) -> None:
        tokens = file.need("tokenizer.ggml.tokens")
        types = file.need("tokenizer.ggml.token_type")
        merges = file.need("tokenizer.ggml.merges")
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        controls = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
        self.controls = regex.compile("(" + "|".join(map(regex.escape, controls)) + ")")
        self.letters = dict(zip(range(256), _byte_letters(), strict=True))

    def known(self, text: str) -> str:
        """Without characters that the model has no tokens for (some control characters)."""
        return "".join(c for c in text if all(self.letters[b] in self.ids for b in c.encode()))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self.controls.split(text):
            if self.controls.fullmatch(piece):
                ids.append(self.ids[piece])
            else:
                ids += self.encode_ordinary(piece)
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        words = [
            word
            for run in regex.findall(r"\p{N}|[^\p{N}]+", text)
            for word in regex.findall(
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", run
            )
        ]
        return [self.ids[part] for word in words for part in self._merged(word)]

    def _merged(self, word: str) -> list[str]:
        parts = [self.letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, sys.maxsize))
            if best not in self.ranks:
                break
            at = pairs.index(best)
            parts[at : at + 2] = ["".join(best)]
        return parts


def _byte_letters() -> list[str]:
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]


@cache
def _plain(path: Path) -> PlainBPE:
    return PlainBPE(GGUFFile(path))


@pytest.mark.model
@settings(max_examples=200)
@given(text=NASTY)
@example(text="In 2024, 12345 people's don't   \n\n  x\t\t")
@example(text=" ² ١٢٣ Ⅷ½ 9a9")
def test_smollm2_encodes_as_its_description_says(smollm2_fp32: Model, text: str) -> None:
    plain = _plain(smollm2_fp32.path)
    text = plain.known(text)
    assert smollm2_fp32.tokenizer.encode(text) == plain.encode(text)
    assert smollm2_fp32.tokenizer.encode(text, special=False) == plain.encode_ordinary(text)


@pytest.mark.model
@settings(max_examples=200)
@given(text=NASTY)
def test_text_survives_encoding_and_streaming(smollm2_fp32: Model, text: str) -> None:
    tokenizer = smollm2_fp32.tokenizer
    text = _plain(smollm2_fp32.path).known(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    pieces = [stream.step(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, special=False)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@pytest.mark.model
@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 49151), max_size=20))
def test_any_tokens_decode_as_the_library_decodes_them(smollm2_fp32: Model, ids: list[int]) -> None:
    """Also where they make invalid UTF-8, which a sampling model does write."""
    tokenizer = smollm2_fp32.tokenizer
    assert tokenizer.decode(ids) == tokenizer.backend.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids, special=False) == tokenizer.backend.decode(ids)


@pytest.mark.slow
@pytest.mark.model
@settings(max_examples=300)
@given(text=NASTY)
def test_smollm2_encodes_as_transformers_does(text: str) -> None:
    # Reading a GGUF file, transformers forgets that this model's digits stand alone.
    text = regex.sub(r"\p{N}", "", text)
    model, reference = _transformers_tokenizer()
    assert model.tokenizer.encode(text) == reference(text, add_special_tokens=False).input_ids


@cache
def _transformers_tokenizer():  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    from shoal.models.loading import load

    model = load()
    return model, AutoTokenizer.from_pretrained(model.path.parent, gguf_file=model.path.name)


def byte_level(*specials: AddedToken) -> Backend:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(list(specials))
    return backend


def sentencepiece() -> Backend:
    """Like Llama 2: spaces as U+2581, one put before the text, unknown characters as bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["<s>", "</s>", "▁", "h", "i", "▁h"]
    backend = Backend(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [("▁", "h")],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    return backend


def test_a_character_of_several_tokens_appears_whole() -> None:
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode("a🙂b")
    stream = tokenizer.stream()
    assert [stream.step(token) for token in ids] == ["a", "", "", "", "🙂", "b"]
    assert stream.finish() == ""


def test_an_incomplete_character_at_the_end_is_marked() -> None:
    tokenizer = Tokenizer(byte_level())
    stream = tokenizer.stream()
    assert [stream.step(token) for token in tokenizer.encode("é")[:1]] == [""]
    assert stream.finish() == "\ufffd"


def test_special_tokens_are_text_when_the_caller_says_so() -> None:
    tokenizer = Tokenizer(byte_level(AddedToken("<|end|>", special=True), AddedToken("<call>")))
    assert tokenizer.encode("a<|end|>") == [*tokenizer.encode("a"), 256]
    ordinary = tokenizer.encode("a<|end|>", special=False)
    assert 256 not in ordinary
    assert tokenizer.decode(ordinary) == "a<|end|>"
    assert tokenizer.encode("<call>", special=False) == [257], "marks for text stay tokens"
    assert tokenizer.decode([256, 257]) == "<|end|><call>"
    assert tokenizer.decode([256, 257], special=False) == "<call>"


def test_sentencepiece_text_survives() -> None:
    tokenizer = Tokenizer(sentencepiece())
    for text in ("hi", "hi  hi", "é🙂 h", "</s>hi"):
        ids = tokenizer.encode(text, special=False)
        assert tokenizer.decode(ids) == text
        assert tokenizer.backend.decode(ids, skip_special_tokens=False) == text
    with_special = tokenizer.encode("hi</s>hi")
    assert with_special == tokenizer.backend.encode("hi</s>hi", add_special_tokens=False).ids


def test_ids_without_a_token_have_no_text() -> None:
    """Checkpoints pad their vocabulary; a sampler may choose the padding."""
    assert Tokenizer(byte_level()).decode([72, 5000]) == Tokenizer(byte_level()).decode([72])


def test_half_a_character_cannot_be_encoded() -> None:
    with pytest.raises(InputError, match="half a character"):
        Tokenizer(byte_level()).encode("broken \ud83d text, long enough to be remembered")


def test_a_decoder_that_cannot_stream_is_refused() -> None:
    backend = byte_level()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="WordPiece"):
        Tokenizer(backend)


def test_padding_and_truncation_of_a_tokenizer_file_do_not_matter() -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    assert len(Tokenizer(backend).encode("0123456789")) == 10


def test_a_text_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(byte_level())
    text = "the same long material for everybody " * 50
    first = tokenizer.encode(text)
    first.append(-1)  # what the caller does with the list is the caller's business
    monkeypatch.setattr(tokenizer, "_plain", None)
    assert tokenizer.encode(text) == first[:-1]
    with pytest.raises(AttributeError):  # another tenant's text is tokenised again
        tokenizer.encode(text, salt="tenant")


def test_memory_of_encodings_is_bounded_in_characters() -> None:
    from shoal.models.tokenizer import _Memory

    memory = _Memory(100)
    for index in range(10):
        memory.put((str(index) * 30, True, ""), [index])
    assert memory.get(("9" * 30, True, "")) == [9]
    assert memory.get(("6" * 30, True, "")) is None
    memory.put(("x" * 1000, True, ""), [1])
    assert memory.get(("x" * 1000, True, "")) is None


def test_threads_that_mix_both_ways_of_encoding_do_not_disturb_each_other() -> None:
    tokenizer = Tokenizer(byte_level(AddedToken("<|end|>", special=True)))
    wrong: list[str] = []

    def work(special: bool) -> None:
        for index in range(300):
            ids = tokenizer.encode(f"{index}<|end|>", special=special)
            if (256 in ids) != special:
                wrong.append(f"{index}")

    threads = [threading.Thread(target=work, args=(special,)) for special in (True, False) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
