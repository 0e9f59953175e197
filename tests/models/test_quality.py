"""Divergence of distributions on cases whose answer is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from shoal.core.errors import InputError
from shoal.models.decoder import Decoder
from shoal.models.loading import load
from shoal.models.quality import divergence

TEXTS = ["A shoal of fish moves as one.", "Nobody leads, and yet they turn together."]


def test_a_model_does_not_diverge_from_itself(tiny_model: Path) -> None:
    model = load(str(tiny_model), dtype="fp32")
    found = divergence(model, model, TEXTS)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1 == 1
    assert found.tokens == sum(map(len, TEXTS))  # the tiny model reads single bytes


def test_a_uniform_model_diverges_by_the_missing_entropy(tiny_model: Path) -> None:
    model = load(str(tiny_model), dtype="fp32")
    zeros = {name: torch.zeros_like(weight) for name, weight in model.decoder.weights.items()}
    uniform = dataclasses.replace(model, decoder=Decoder(model.config, zeros))
    text = TEXTS[0]
    ids = torch.tensor(model.tokenizer.encode(text))
    from shoal.models.decoder import causal_attend

    hidden = model.decoder.forward(ids, torch.arange(len(ids)), causal_attend)
    entropy = torch.distributions.Categorical(logits=model.decoder.logits(hidden)).entropy()
    expected = torch.log(torch.tensor(float(model.config.vocab))) - entropy.mean()
    assert divergence(uniform, model, [text]).kl == pytest.approx(float(expected), rel=1e-4)


def test_nothing_to_compare_is_said(tiny_model: Path) -> None:
    model = load(str(tiny_model), dtype="fp32")
    with pytest.raises(InputError, match="no token"):
        divergence(model, model, [])
