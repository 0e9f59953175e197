"""One decoder for the Llama family: RMSNorm, grouped-query attention, RoPE, SwiGLU.

Covers Llama, Qwen2, Qwen3 and Mistral checkpoints. Attention itself is the caller's: an engine
knows which rows see which cached keys, the decoder only hands it rotated queries, keys and
values. Rows are flat: tokens of many sequences side by side, without padding.

In bf16 the residual stream, the norms and the rotation are fp32 all the same. That nearly halves
the divergence from the fp32 model (SmolLM2-135M: 1.1e-3 to 0.65e-3 nats a token) at no cost that
could be measured.

Shapes: T rows (tokens), R rows of interest, D hidden, V vocabulary, H query heads,
K key-value heads, G = H / K, d head size, I intermediate size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, overload

import torch
from torch.nn import functional as F

from shoal.models import fused
from shoal.models.packed import PACKED_ROWS, Matrix, blocked, multiplies_8_bits, packed, w8a8
from shoal.models.rope import Rope

Family = Literal["llama", "qwen2", "qwen3", "mistral"]
Kernels = Literal["plain", "blocked", "packed"]
CALIBRATED = 256  # random tokens whose activations say where outliers are


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The architecture of one checkpoint.

    context  tokens a sequence may have; eos_ids end an answer; bos_id is None where a text does
    not begin with such a token
    """

    family: Family
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    eps: float
    rope: Rope
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None


class Attend(Protocol):
    """Attention of one layer: q [T, H, d], keys and values [T, 2, K, d] -> [T, H, d].

    Queries and keys are rotated.
    """

    def __call__(
        self, layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor, /
    ) -> torch.Tensor: ...


class Adapting(Protocol):
    """What adapters add to a product: layer, name of the matrix, x [T, K], y = x Wᵀ [T, N] -> y.

    ``y`` may be changed in place. Matrices are named as the weights are: qkv, out, gate_up, down.
    """

    def __call__(
        self, layer: int, matrix: str, x_TK: torch.Tensor, y_TN: torch.Tensor, /
    ) -> torch.Tensor: ...


class _Layer(NamedTuple):
    attn_norm: torch.Tensor
    qkv: Matrix
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: Matrix
    mlp_norm: torch.Tensor
    gate_up: Matrix
    down: Matrix


LayOut = Callable[[Matrix, int, str], Matrix]
"""Makes a matrix in another layout, given its layer (the head is above the last) and name."""


class _Laid(Sequence[_Layer]):
    """Layers in another layout, each made when it is first asked for; the norms are shared."""

    def __init__(self, layers: Sequence[_Layer], lay_out: LayOut) -> None:
        self._layers = layers
        self._lay_out = lay_out
        self._made: dict[int, _Layer] = {}

    def __len__(self) -> int:
        return len(self._layers)

    @overload
    def __getitem__(self, index: int) -> _Layer: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Layer]: ...
    def __getitem__(self, index: int | slice) -> _Layer | list[_Layer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index not in self._made:
            layer, lay_out = self._layers[index], self._lay_out
            self._made[index] = layer._replace(
                qkv=lay_out(layer.qkv, index, "qkv"),
                out=lay_out(layer.out, index, "out"),
                gate_up=lay_out(layer.gate_up, index, "gate_up"),
                down=lay_out(layer.down, index, "down"),
            )
        return self._made[index]


class _Matrices(NamedTuple):
    """All layers and the head in one layout, which is used for up to so many rows."""

    rows: int
    layers: Sequence[_Layer]
    head: Matrix

    def laid_out(self, lay_out: LayOut, *, lazily: bool, rows: int = sys.maxsize) -> _Matrices:
        """The same in another layout."""
        laid = _Laid(self.layers, lay_out)
        head = lay_out(self.head, len(self.layers), "head")
        return _Matrices(rows, laid if lazily else laid[:], head)


class _Peaks:
    """What is largest among the activations of every product: an adapter that adds nothing."""

    def __init__(self) -> None:
        self.of: dict[tuple[int, str], torch.Tensor] = {}

    def __call__(
        self, layer: int, matrix: str, x_TK: torch.Tensor, y_TN: torch.Tensor
    ) -> torch.Tensor:
        self.of[layer, matrix] = x_TK.abs().amax(0)
        return y_TN


class Decoder:
    """The forward pass over weights that are stored fused; see ``weights.layout`` for names.

    ``kernels`` chooses how matrices are multiplied, see :mod:`shoal.models.packed`: "plain",
    "blocked" (the same numbers, faster) or "packed" (weights of fewer bits where rows are very
    few, and products of 8 bits elsewhere). Where gradients are on, the plain ones are used.
    ``adapting`` is what adapters add to every product (:mod:`shoal.models.adapters`), None where
    there are none. ``lazily`` makes a layer's layouts when it is first executed, for a base of
    which a plan may use a part.
    """

    adapting: Adapting | None = None

    def __init__(
        self,
        config: DecoderConfig,
        weights: Mapping[str, torch.Tensor],
        *,
        kernels: Kernels = "plain",
        lazily: bool = False,
    ) -> None:
        self.config = config
        self.weights = weights
        self.kernels = kernels
        self._lazily = lazily
        self._embed = weights["embed"]
        self.dtype = self._embed.dtype  # of weights and activations
        self._head = weights["embed" if config.tied_head else "head"]
        self._final_norm = weights["final_norm"]
        self._matrices: list[_Matrices] = []  # for growing numbers of rows
        frequencies = config.rope.frequencies(config.head_dim)
        if "rope_divisors" in weights:
            frequencies = frequencies / weights["rope_divisors"].float()
        self._frequencies = frequencies.to(self._embed.device)
        self.lay_out()

    def lay_out(self) -> None:
        """Make the kernels' copies of the matrices anew, after ``weights`` changed in place."""
        layers = [
            _Layer(*(self.weights.get(f"layers.{index}.{part}") for part in _Layer._fields))  # type: ignore[arg-type]
            for index in range(self.config.layers)
        ]
        plain = _Matrices(sys.maxsize, layers, self._head)
        self._matrices = [plain]
        if self.kernels == "blocked":
            laid = plain.laid_out(lambda matrix, *_: blocked(matrix), lazily=self._lazily)
            self._matrices.insert(0, laid)
        if self.kernels == "packed":
            peaks = self._peaks() if multiplies_8_bits() else {}

            def in_8_bits(matrix: Matrix, layer: int, name: str) -> Matrix:
                if (layer, name) not in peaks or name == "down":
                    return blocked(matrix)
                return w8a8(matrix, peaks[layer, name])

            wide = plain.laid_out(in_8_bits, lazily=self._lazily)
            few = plain.laid_out(
                lambda matrix, *_: packed(matrix), lazily=self._lazily, rows=PACKED_ROWS
            )
            self._matrices = [few, wide, plain]

    @torch.inference_mode()
    def _peaks(self) -> dict[tuple[int, str], torch.Tensor]:
        """The largest activations [K] by layer and matrix, over random tokens.

        Outliers belong to places, hardly to texts.
        """
        peaks = _Peaks()
        drawn = torch.Generator().manual_seed(0)
        count = min(CALIBRATED, self.config.context)
        ids_T = torch.randint(self.config.vocab, (count,), generator=drawn)
        self.adapted(peaks).forward(ids_T, torch.arange(count), causal_attend)
        return peaks.of

    def forward(
        self, ids_T: torch.Tensor, positions_T: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Hidden states [T, D] after the final norm; differentiable where weights ask for it."""
        x_TD = self.through(self.embed(ids_T), positions_T, attend, 0, self.config.layers)
        return self.finish(x_TD)

    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        """What the first layer takes: [T, D] fp32."""
        return F.embedding(ids_T, self._embed).float()

    def finish(self, x_TD: torch.Tensor) -> torch.Tensor:
        """What the head takes, of what the last layer gave: [T, D]."""
        return self._norm(x_TD, self._final_norm)

    def through(
        self, x_TD: torch.Tensor, positions_T: torch.Tensor, attend: Attend, first: int, last: int
    ) -> torch.Tensor:
        """The layers ``first .. last`` (the last not among them): [T, D] fp32."""
        config = self.config
        T, H, K, d = len(x_TD), config.heads, config.kv_heads, config.head_dim
        cos_T1d, sin_T1d = self.rotation(positions_T)
        for index, layer in enumerate(self._for(T).layers[first:last], first):
            normed_TD = self._norm(x_TD, layer.attn_norm)
            qkv = self._product(index, "qkv", normed_TD, layer.qkv, layer.qkv_bias)
            qkv = qkv.view(T, H + 2 * K, d)
            if layer.q_norm is not None and layer.k_norm is not None:
                q_THd = self._norm(qkv[:, :H], layer.q_norm)
                k_TKd = self._norm(qkv[:, H : H + K], layer.k_norm)
                qkv = torch.cat((q_THd, k_TKd, qkv[:, H + K :]), dim=1)
            qkv = fused.rotated(qkv, H + K, cos_T1d, sin_T1d)  # keys stay beside their values
            o_THd = attend(index, qkv[:, :H], qkv[:, H:].view(T, 2, K, d))
            out_TD = self._product(index, "out", o_THd.reshape(T, H * d), layer.out)
            x_TD = fused.add(x_TD, out_TD)
            normed_TD = self._norm(x_TD, layer.mlp_norm)
            gate_up = self._product(index, "gate_up", normed_TD, layer.gate_up)
            down_TD = self._product(index, "down", fused.gated(gate_up), layer.down)
            x_TD = fused.add(x_TD, down_TD)
        return x_TD

    def logits(self, hidden_RD: torch.Tensor, *, precise: bool = False) -> torch.Tensor:
        """Scores of the next token: [R, V] fp32.

        bf16 weights give scores rounded to bf16, which is off by up to 0.1 at their usual size:
        enough to choose a token. With ``precise`` what rounding lost is computed in a second
        pass and added, which leaves about 1e-4: for log-probabilities that are summed.
        """
        head = self._head if precise else self._for(len(hidden_RD)).head
        rounded_RV = _linear(hidden_RD, head)
        if rounded_RV.dtype == torch.float32 or not precise:
            return rounded_RV.float()
        lost_RV = torch.addmm(rounded_RV, hidden_RD, self._head.T, beta=-1)
        return rounded_RV.float() + lost_RV

    def narrow(self) -> Decoder:
        """A decoder that computes any number of rows as this one computes a single row."""
        narrow = copy(self)
        narrow._matrices = [self._matrices[0]._replace(rows=sys.maxsize)]
        return narrow

    def arranged(self, blocks: Sequence[int], own: Sequence[Mapping[str, torch.Tensor]]) -> Decoder:
        """A decoder whose layer i is layer ``blocks[i]`` of this one, with the norms ``own[i]``.

        Matrices are shared with this decoder in all their layouts, however often a layer occurs;
        ``own`` names norms as the weights are, without ``layers.{index}.``.
        """
        other = copy(self)
        other.config = replace(self.config, layers=len(blocks))
        other._matrices = [
            each._replace(
                layers=[
                    each.layers[block]._replace(**norms)
                    for block, norms in zip(blocks, own, strict=True)
                ]
            )
            for each in self._matrices
        ]
        weights = {k: v for k, v in self.weights.items() if not k.startswith("layers.")}
        for index, layer in enumerate(other._matrices[-1].layers):  # the plain ones come last
            parts = layer._asdict().items()
            weights |= {f"layers.{index}.{part}": t for part, t in parts if t is not None}
        other.weights = weights
        return other

    def adapted(self, adapting: Adapting | None) -> Decoder:
        """A decoder over the same weights to whose products these adapters add."""
        other = copy(self)
        other.adapting = adapting
        return other

    def _product(
        self,
        layer: int,
        matrix: str,
        x_TK: torch.Tensor,
        weight: Matrix,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x Wᵀ + b and what adapters add to it."""
        y_TN = _linear(x_TK, weight, bias)
        return y_TN if self.adapting is None else self.adapting(layer, matrix, x_TK, y_TN)

    def _for(self, rows: int) -> _Matrices:
        if torch.is_grad_enabled():
            return self._matrices[-1]  # the plain ones: no other layout lets gradients through
        return next(each for each in self._matrices if rows <= each.rows)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm over the last dimension, in fp32; the decoder's dtype out."""
        return fused.rms_norm(x, weight, self.config.eps, self.dtype)

    def rotation(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and signed sin, both [T, 1, d] fp32, for :func:`shoal.models.rope.rotate`."""
        angles = positions_T[:, None, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        if (factor := self.config.rope.attention_factor) != 1:
            cos, sin = cos * factor, sin * factor
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def _linear(x_TD: torch.Tensor, weight: Matrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + b. One row goes as a matrix-vector product: a fifth less time a step on CPUs."""
    if not isinstance(weight, torch.Tensor):
        return weight.apply(x_TD, bias)
    if len(x_TD) != 1:
        return F.linear(x_TD, weight, bias)
    if bias is None:
        return torch.mv(weight, x_TD[0])[None]
    return torch.addmv(bias, weight, x_TD[0])[None]


def causal_attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
    """Attention where all rows are one sequence from its beginning, and nothing is cached."""
    k_TKd, v_TKd = kv_T2Kd.unbind(1)
    out = F.scaled_dot_product_attention(
        q_THd.transpose(0, 1)[None],
        k_TKd.transpose(0, 1)[None],
        v_TKd.transpose(0, 1)[None],
        is_causal=True,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)
