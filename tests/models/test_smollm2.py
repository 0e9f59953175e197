"""The packaged model: exact against transformers in fp32, close to that in bf16."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from shoal.core.records import Message
from shoal.models.decoder import causal_attend
from shoal.models.loading import Model, load
from shoal.models.quality import divergence

pytestmark = pytest.mark.model

QUESTION = (Message("user", "Explain in a few sentences why fish swim in shoals."),)
TEXTS = (
    "We the People of the United States, in Order to form a more perfect Union, establish "
    "Justice, insure domestic Tranquility, provide for the common defence, promote the general "
    "Welfare, and secure the Blessings of Liberty to ourselves and our Posterity, do ordain and "
    "establish this Constitution for the United States of America.",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 3, 4]))\n",
    "The capital of France is Paris, the capital of Italy is Rome, and 12 times 12 is 144.",
)


@pytest.fixture(scope="module")
def reference(smollm2_fp32: Model) -> LlamaForCausalLM:
    """transformers' Llama around the very same weights, taken apart."""
    c = smollm2_fp32.config
    config = LlamaConfig(
        vocab_size=c.vocab,
        hidden_size=c.hidden,
        intermediate_size=c.intermediate,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        max_position_embeddings=c.context,
        rms_norm_eps=c.eps,
        rope_parameters={"rope_theta": 100_000.0, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    ours = smollm2_fp32.decoder.weights
    state = {
        "model.embed_tokens.weight": ours["embed"],
        "model.norm.weight": ours["final_norm"],
        "lm_head.weight": ours["embed"],
    }
    for index in range(c.layers):
        for name, theirs in {
            "attn_norm": ("input_layernorm",),
            "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "out": ("self_attn.o_proj",),
            "mlp_norm": ("post_attention_layernorm",),
            "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
            "down": ("mlp.down_proj",),
        }.items():
            sizes = [576, 192, 192] if name == "qkv" else len(theirs)
            fused = ours[f"layers.{index}.{name}"]
            parts = fused.split(sizes) if name == "qkv" else fused.chunk(sizes)  # type: ignore[arg-type]
            for module, part in zip(theirs, parts, strict=True):
                state[f"model.layers.{index}.{module}.weight"] = part
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(state, assign=True)
    # Buffers are not in the state: frequencies have to be computed off the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@torch.inference_mode()
def test_logits_and_64_greedy_tokens_equal_transformers(
    smollm2_fp32: Model, reference: LlamaForCausalLM
) -> None:
    prompt = smollm2_fp32.chat.encode(QUESTION, smollm2_fp32.tokenizer)
    answer = reference.generate(
        torch.tensor([prompt]),
        max_new_tokens=64,
        min_new_tokens=64,
        do_sample=False,
        pad_token_id=2,
    )[0]
    expected = reference(answer[None]).logits[0]
    decoder = smollm2_fp32.decoder
    logits = decoder.logits(decoder.forward(answer, torch.arange(len(answer)), causal_attend))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
    logits[:, 2] = float("-inf")  # min_new_tokens forbids the end of the text
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer[len(prompt) :].tolist()


@torch.inference_mode()
def test_it_knows_the_capital_of_france(smollm2_bf16: Model) -> None:
    """Rows permuted wrongly, or a wrong RoPE base, and it would not."""
    model = smollm2_bf16
    ids = model.chat.encode([Message("user", "What is the capital of France?")], model.tokenizer)
    start = len(ids)
    while ids[-1] not in model.tokenizer.eos_ids and len(ids) < start + 16:
        tokens = torch.tensor(ids)
        hidden = model.decoder.forward(tokens, torch.arange(len(ids)), causal_attend)
        ids.append(int(model.decoder.logits(hidden[-1:]).argmax()))
    answer = model.tokenizer.decode(ids[start:], special=False)
    assert answer == "The capital of France is Paris."


def test_bf16_stays_close_to_fp32(smollm2_bf16: Model, smollm2_fp32: Model) -> None:
    found = divergence(smollm2_bf16, smollm2_fp32, TEXTS)
    assert found.kl < 0.003
    assert found.top1 > 0.95


@torch.inference_mode()
def test_precise_logits_are_those_of_exact_products(smollm2_bf16: Model) -> None:
    decoder = smollm2_bf16.decoder
    ids = torch.tensor(smollm2_bf16.tokenizer.encode(TEXTS[0]))
    hidden = decoder.forward(ids, torch.arange(len(ids)), causal_attend)
    exact = hidden.double() @ decoder.weights["embed"].double().T
    assert (decoder.logits(hidden, precise=True) - exact).abs().max() < 1e-3
    assert (decoder.logits(hidden) - exact).abs().max() > 1e-2


def test_chat_template_equals_transformers(smollm2_bf16: Model) -> None:
    model = smollm2_bf16
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer.backend, chat_template=model.chat.template
    )
    messages = [
        Message("system", "Be brief."),
        Message("user", "Why 3 < 4?"),
        Message("assistant", "Because."),
    ]
    dictionaries = [{"role": m.role, "content": m.content} for m in messages]
    for start, prompt in ((0, False), (1, True)):
        expected = theirs.apply_chat_template(
            dictionaries[start:], tokenize=True, add_generation_prompt=prompt, return_dict=False
        )
        found = model.chat.encode(messages[start:], model.tokenizer, add_generation_prompt=prompt)
        assert found == expected


def test_a_prepared_model_is_loaded_without_unpacking_its_file_again(
    smollm2_bf16: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.models.gguf.gguf.dequantize", unpacked_again)
    again = load()
    assert again.fingerprint == smollm2_bf16.fingerprint


def unpacked_again(*_: object) -> None:
    raise AssertionError("the prepared weights were there")


@pytest.mark.slow
@torch.inference_mode()
def test_weights_equal_what_transformers_reads_from_the_file(smollm2_fp32: Model) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files only with accelerate")
    path = smollm2_fp32.path
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).model.layers[17]
    ours = smollm2_fp32.decoder.weights
    attention = theirs.self_attn
    for name, modules in {
        "qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
        "out": (attention.o_proj,),
        "gate_up": (theirs.mlp.gate_proj, theirs.mlp.up_proj),
        "down": (theirs.mlp.down_proj,),
    }.items():
        expected = torch.cat([module.weight for module in modules])
        torch.testing.assert_close(ours[f"layers.17.{name}"], expected, rtol=0, atol=0)
