"""Anchors: texts whose keys and values in a context have been seen, and what they say of others.

A placeholder's text has base keys and values, computed behind a fixed beginning. In an agent's
prompt they differ by an offset, and so do those of the fixed piece after it. The offsets of a new
text are weighted means over anchors of the same place (KVCOMM, arXiv 2510.12872, equations 5-7).

All keys are un-rotated, so offsets need no rotation; the paper compares rotated keys at one
position, which for its L1 distance of keys gives slightly other weights.

Shapes: A anchors, L layers, n tokens of the text, T tokens of an anchor (at least n), S tokens of
the piece after it, K key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shoal.core.files import atomic_path
from shoal.engine.segments import KVSegment, in_cache

Offset = tuple[torch.Tensor, torch.Tensor]
"""What to add to un-rotated keys and to values, [L, tokens, K, d] each."""


@dataclass(slots=True, eq=False)
class Anchor:
    """One text at one place, with what its context did to it and to the piece after it.

    base   all in the cache's number format, keys too: they are compared, never placed
    uses   how often it weighed in on a reused text; born  when it was made
    """

    base: KVSegment
    text: Offset
    after: Offset
    uses: int = 0
    born: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.base.nbytes + sum(part.nbytes for part in (*self.text, *self.after))


@dataclass(slots=True)
class AnchorPool:
    """The anchors of one placeholder of one prompt.

    size    anchors kept at most; window  the oldest among which the least used goes (V and W)
    nbytes  is bounded by ``budget``: then the least used of the window goes, too
    """

    size: int = 20
    window: int = 5
    budget: int = 256 << 20
    anchors: list[Anchor] = field(default_factory=list)
    _clock: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory of all anchors."""
        return sum(anchor.nbytes for anchor in self.anchors)

    def usable(self, base: KVSegment) -> list[Anchor]:
        """Anchors at least as long as the text."""
        return [anchor for anchor in self.anchors if len(anchor.base) >= len(base)]

    def add(self, anchor: Anchor) -> None:
        """Keep an anchor; the least used of the oldest makes room."""
        self._clock += 1
        anchor.born = self._clock
        self.anchors.append(anchor)
        while len(self.anchors) > self.size or (
            len(self.anchors) > 1 and self.nbytes > self.budget
        ):
            oldest = sorted(self.anchors, key=lambda each: each.born)[: self.window]
            self.anchors.remove(min(oldest, key=lambda each: (each.uses, each.born)))

    def save(self, path: Path) -> None:
        """Write all anchors to one file, whole or not at all."""
        tensors: dict[str, torch.Tensor] = {}
        for index, anchor in enumerate(self.anchors):
            tensors |= {
                f"{index}.{name}": tensor.contiguous()
                for name, tensor in zip(_NAMES, _tensors(anchor), strict=True)
            }
            tensors[f"{index}.counts"] = torch.tensor([anchor.uses, anchor.born])
        fingerprint = self.anchors[0].base.fingerprint if self.anchors else ""
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"fingerprint": fingerprint})

    def load(self, path: Path, fingerprint: str) -> bool:
        """Read what :meth:`save` wrote; False where the file is damaged or of another model."""
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("fingerprint") != fingerprint:
                    return False
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            count = len(tensors) // (len(_NAMES) + 1)
            anchors = [_anchor(tensors, index, fingerprint) for index in range(count)]
        except (OSError, SafetensorError, KeyError):
            return False
        self.anchors = anchors
        self._clock = max((anchor.born for anchor in anchors), default=0)
        return True


_NAMES = ("tokens", "keys", "values", "text.keys", "text.values", "after.keys", "after.values")


def _tensors(anchor: Anchor) -> tuple[torch.Tensor, ...]:
    base = anchor.base
    tokens = torch.tensor(base.tokens, dtype=torch.long)
    return tokens, base.keys_LTKd, base.values_LTKd, *anchor.text, *anchor.after


def _anchor(tensors: dict[str, torch.Tensor], index: int, fingerprint: str) -> Anchor:
    part = [tensors[f"{index}.{name}"] for name in _NAMES]
    base = KVSegment(tuple(part[0].tolist()), part[1], part[2], fingerprint)
    uses, born = tensors[f"{index}.counts"].tolist()
    return Anchor(base, (part[3], part[4]), (part[5], part[6]), uses, born)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """How far a text's base keys and values are from those of some anchors.

    values_A      of all values, Euclidean
    length        of the text's own values, Euclidean
    tokens_2An    of each token's keys and values, mean absolute difference
    channels_2ALKd  of each channel's last tokens, Euclidean, of keys and values
    """

    values_A: torch.Tensor
    length: float
    tokens_2An: torch.Tensor
    channels_2ALKd: torch.Tensor

    @property
    def weights(self) -> torch.Tensor:
        """Softmax over negative distances: [A] (equation 5)."""
        return torch.softmax(-self.values_A, 0)

    @property
    def relative(self) -> float:
        """Distance to the nearest anchor, as a share of the values' own length."""
        return float(self.values_A.min()) / self.length

    def of(self, index: int) -> Comparison:
        """The comparison with one anchor, in memory of its own."""
        one = slice(index, index + 1)
        return Comparison(
            self.values_A[one].clone(),
            self.length,
            self.tokens_2An[:, one].clone(),
            self.channels_2ALKd[:, one].clone(),
        )


def compare(base: KVSegment, anchors: Sequence[Anchor]) -> Comparison:
    """Read every anchor once; all that equations 5 to 7 need follows from it.

    Each anchor must be at least as long as the text; there must be one. Layer by layer, so that
    differences stay in the processor's cache, and without torch's norms along a dimension, which
    take several times as long as sums.
    """
    L, n, K, d = base.values_LTKd.shape
    A, dtype, ones_n = len(anchors), base.values_LTKd.dtype, torch.ones(n)
    far_A, length = torch.zeros(A), torch.zeros(())
    tokens_2An, channels_2ALc = torch.zeros(2, A, n), torch.empty(2, A, L, K * d)
    for layer in range(L):
        for which, mine_LTKd in enumerate((base.keys_LTKd, base.values_LTKd)):
            mine_nc = mine_LTKd[layer].to(dtype).float().view(n, K * d)
            if which:
                length += mine_nc.square().sum()
            for index, anchor in enumerate(anchors):
                theirs = anchor.base.values_LTKd if which else anchor.base.keys_LTKd
                theirs_Tc = theirs[layer].view(-1, K * d)
                beginning_nc = mine_nc - theirs_Tc[:n]
                tokens_2An[which, index] += beginning_nc.abs().sum(1)
                squares_c = ones_n @ beginning_nc.square()
                if which:
                    far_A[index] += squares_c.sum()
                if len(theirs_Tc) > n:
                    squares_c = ones_n @ (mine_nc - theirs_Tc[-n:]).square()
                channels_2ALc[which, index, layer] = squares_c.sqrt()
    return Comparison(
        far_A.sqrt(),
        float(length.sqrt()),
        tokens_2An / (L * K * d),
        channels_2ALc.view(2, A, L, K, d),
    )


def entropy(weights_A: torch.Tensor) -> float:
    """Bits of the weights; the paper shares a text where this is at most gamma log2 A."""
    return float(-(weights_A * weights_A.clamp_min(1e-30).log2()).sum())


def text_offset(found: Comparison, anchors: Sequence[Anchor]) -> Offset:
    """Expected offset of a text itself, token by token: [L, n, K, d] fp32 (equation 6).

    A token's weights are softmax over anchors of the negative mean absolute difference at its
    place, for keys and for values apart.
    """
    n = found.tokens_2An.shape[2]
    keys, values = (
        _weighted([anchor.text[which][:, :n] for anchor in anchors], weights_An[:, :, None, None])
        for which, weights_An in enumerate(torch.softmax(-found.tokens_2An, 1))
    )
    return keys, values


def after_offset(found: Comparison, anchors: Sequence[Anchor]) -> Offset:
    """Expected offset of the fixed piece after a text: [L, S, K, d] fp32 (equation 7).

    Weights are softmax over anchors of the negative distance of the texts' last tokens, one for
    each layer, head and channel.
    """
    keys, values = (
        _weighted([anchor.after[which] for anchor in anchors], weights_ALKd[:, :, None])
        for which, weights_ALKd in enumerate(torch.softmax(-found.channels_2ALKd, 1))
    )
    return keys, values


def _weighted(parts: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Sum of parts [L, tokens, K, d] by weights that are the same for all layers, or not."""
    total = torch.zeros(parts[0].shape, dtype=torch.float32)
    for layers in in_cache(total):
        for part, weight in zip(parts, weights, strict=True):
            own = weight if weight.ndim == 3 else weight[layers]
            total[layers].addcmul_(part[layers].float(), own)
    return total


def difference(real: KVSegment, base: KVSegment) -> Offset:
    """What a context did to keys (un-rotated) and values of the same tokens.

    Kept in the cache's number format: an offset is small, and there are many.
    """
    assert real.tokens == base.tokens, "an offset compares the same tokens"
    keys = real.keys_LTKd - base.keys_LTKd
    values = real.values_LTKd.float() - base.values_LTKd.float()
    return keys.to(real.values_LTKd.dtype), values.to(real.values_LTKd.dtype)
