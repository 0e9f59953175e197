"""Text to token ids and back, the same text never twice.

Encoding is the ``tokenizers`` library's, with a memory of long pieces: a group sends the same
material many times. Decoding works on bytes, token by token, so that text can be streamed without
ever showing half a character.
"""

from __future__ import annotations

import codecs
import json
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer as Backend

from shoal.core.errors import InputError, ModelError

MEMORY_CHARS = 1 << 24  # text that is remembered with its tokens
_SHORT = 32  # characters below which encoding again is as quick as looking up

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """A model's tokenizer. Safe to use from several threads."""

    def __init__(
        self, backend: Backend, *, eos_ids: Iterable[int] = (), bos_id: int | None = None
    ) -> None:
        """``bos_id`` is the token a text begins with; ``encode`` does not add it by itself.

        Raises :class:`ModelError` where tokens cannot be turned into bytes one by one.
        """
        self.backend = backend
        self.eos_ids = frozenset(eos_ids)
        self.bos_id = bos_id
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        backend.no_padding()
        backend.no_truncation()
        text = backend.to_str()
        # Whether special tokens are recognised is a switch on the whole object: two objects.
        self._plain = Backend.from_str(text)
        self._plain.encode_special_tokens = True
        decoder = json.loads(text)["decoder"]
        self._byte_level = _is_byte_level(decoder)
        self.strips_first_space = _strips_first_space(decoder)

        added = backend.get_added_tokens_decoder()
        self._bytes = {index: token.content.encode() for index, token in added.items()}
        self.special_ids: dict[str, int] = {
            token.content: index for index, token in added.items() if token.special
        }
        self._special_set = frozenset(self.special_ids.values())
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self.special_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # Pieces between special tokens can be encoded alone where nothing looks across these.
        self._separable = self._byte_level and not any(
            token.lstrip or token.rstrip for token in added.values() if token.special
        )
        self._memory = _Memory(MEMORY_CHARS)

    def encode(self, text: str, *, special: bool = True, salt: str = "") -> list[int]:
        """Token ids of a text; nothing is put before or after it.

        With ``special`` the texts of special tokens, such as ``<|im_end|>``, become those
        tokens. Without it they are ordinary characters: text that somebody else wrote must be
        encoded so. What is remembered under one ``salt`` makes nothing quicker under another.
        Raises :class:`InputError` for text that is not valid Unicode.
        """
        if not special:
            return list(self._encode(text, self._plain, salt))
        if not self._separable:
            return list(self._encode(text, self.backend, salt))
        pieces = self.special_pattern.split(text)
        return self.encode_pieces(pieces, self.specials_in(text), salt=salt)

    def specials_in(self, text: str) -> list[int]:
        """The special tokens whose texts stand in ``text``, in order."""
        return [self.special_ids[found] for found in self.special_pattern.findall(text)]

    def encode_pieces(
        self, pieces: Sequence[str], specials: Sequence[int], *, salt: str = ""
    ) -> list[int]:
        """Ordinary pieces with one special token between each two of them."""
        ids = list(self._encode(pieces[0], self._plain, salt))
        for token, piece in zip(specials, pieces[1:], strict=True):
            ids.append(token)
            ids += self._encode(piece, self._plain, salt)
        return ids

    def _encode(self, text: str, backend: Backend, salt: str) -> Sequence[int]:
        key = (text, backend is self._plain, salt)
        if len(text) >= _SHORT and (known := self._memory.get(key)) is not None:
            return known
        try:
            ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError("A text holds half a character (a lone surrogate).") from error
        if len(text) >= _SHORT:
            self._memory.put(key, array("I", ids))
        return ids

    def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
        """The text of token ids; without ``special``, special tokens are left out.

        Bytes that are no valid UTF-8 become U+FFFD; ids without a token have no text.
        """
        stream = Detokenizer(self, special=special)
        return "".join(map(stream.step, ids)) + stream.finish()

    def stream(self) -> Detokenizer:
        """A decoder to be fed one token after the other; special tokens have no text in it."""
        return Detokenizer(self, special=False)

    def is_special(self, token: int) -> bool:
        """Whether a token is a mark of the model's format rather than text."""
        return token in self._special_set

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spell(self.backend.id_to_token(token) or "")
        return known

    def _spell(self, name: str) -> bytes:
        if self._byte_level:
            try:
                return bytes(map(_BYTE_OF.__getitem__, name))
            except KeyError:  # a name that is no spelling of bytes, such as that of an unused id
                return name.encode()
        if byte := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(byte[1], 16)])
        return name.replace("\u2581", " ").encode()


class Detokenizer:
    """Turns tokens into text as they come; what is held back is less than one character."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = tokenizer.strips_first_space

    def step(self, token_id: int) -> str:
        """The text that is complete with this token; may be empty."""
        if not self._special and self._tokenizer.is_special(token_id):
            return ""
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text

    def finish(self) -> str:
        """What was held back: U+FFFD where the last character stayed incomplete."""
        return self._utf8.decode(b"", final=True)


_Key = tuple[str, bool, str]  # text, whether special tokens are text, salt


class _Memory:
    """Encodings of the texts used last, bounded by their characters."""

    def __init__(self, chars: int) -> None:
        self._free = chars
        self._known: OrderedDict[_Key, Sequence[int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _Key) -> Sequence[int] | None:
        with self._lock:
            ids = self._known.get(key)
            if ids is not None:
                self._known.move_to_end(key)
            return ids

    def put(self, key: _Key, ids: Sequence[int]) -> None:
        with self._lock:
            if key in self._known:
                return
            self._known[key] = ids
            self._free -= len(key[0])
            while self._free < 0:
                (text, *_), _ids = self._known.popitem(last=False)
                self._free += len(text)


def _parts(decoder: dict[str, object] | None) -> dict[str, dict[str, object]]:
    """A tokenizer file's decoder as its steps by type."""
    steps = (decoder or {}).get("decoders", [decoder or {"type": "none"}])
    assert isinstance(steps, list)
    return {step["type"]: step for step in steps}


def _is_byte_level(decoder: dict[str, object] | None) -> bool:
    parts = _parts(decoder)
    if not parts.keys() & {"ByteLevel", "ByteFallback"}:
        raise ModelError(
            f"The tokenizer decodes by {'/'.join(parts)}, but only byte-level tokenizers and "
            "those that fall back to bytes can be streamed."
        )
    return "ByteLevel" in parts


def _strips_first_space(decoder: dict[str, object] | None) -> bool:
    return _parts(decoder).get("Strip", {}).get("start", 0) == 1


def _byte_alphabet() -> Iterator[tuple[str, int]]:
    """GPT-2's printable stand-ins: visible Latin-1 as itself, the other bytes from U+0100 on."""
    hidden = 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            yield chr(byte), byte
        else:
            yield chr(0x100 + hidden), byte
            hidden += 1


_BYTE_OF = dict(_byte_alphabet())
