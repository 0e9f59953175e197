import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from shoal.core.protocols import Grammar
from shoal.core.records import Message, ToolCall, ToolSpec
from shoal.engine.grammar import Constraint
from shoal.server.tool_calls import Called, CallReader, Said, call_grammar, described, read

CITY = ToolSpec(
    "weather",
    "The weather of a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
CLOCK = ToolSpec("clock", "The time.", {"type": "object", "properties": {}})
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
NAMES = frozenset({"weather", "clock"})


@pytest.fixture(scope="module")
def tokens() -> tuple[Tokenizer, LLTokenizer]:
    """Bytes as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    return tokenizer, LLTokenizer(tokenizer.to_str(), n_vocab=257, eos_token=256)


def may_end(tokens: tuple[Tokenizer, LLTokenizer], grammar: Grammar, text: str) -> bool:
    """Whether the grammar takes the text, and lets the answer end after it."""
    tokenizer, vocabulary = tokens
    matcher: LLMatcher = Constraint(vocabulary, grammar)._matcher
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("choice", "parallel", "text", "allowed"),
    [
        ("auto", True, "It rains. <b>", True),
        ("auto", True, CALL, True),
        ("auto", True, f"Let me see.\n{CALL}\n{TIME}", True),
        ("auto", False, f"Let me see.\n{CALL}", True),
        ("auto", False, f"{CALL}\n{TIME}", False),
        ("auto", True, '<tool_call>\n{"name": "rain", "arguments": {}}\n</tool_call>', False),
        ("auto", True, CALL.replace("city", "town"), False),
        ("auto", True, "<tool_call>", False),
        ("auto", True, CALL.replace('{"city"', '{  "city"'), False),  # blanks could go on for ever
        ("required", True, CALL, True),
        ("required", True, f"{CALL}\n{TIME}", True),
        ("required", True, "It rains.", False),
        ("required", True, "", False),
        ("clock", True, TIME, True),
        ("clock", True, CALL, False),
    ],
)
def test_what_may_be_written(
    tokens: tuple[Tokenizer, LLTokenizer], choice: str, parallel: bool, text: str, allowed: bool
) -> None:
    grammar = call_grammar([CITY, CLOCK], choice, parallel=parallel)
    assert may_end(tokens, grammar, text) is allowed


def test_an_answer_without_calls_keeps_to_its_schema(
    tokens: tuple[Tokenizer, LLTokenizer],
) -> None:
    grammar = call_grammar([CITY], "auto", schema='{"type": "array"}')
    assert may_end(tokens, grammar, "[1]") and may_end(tokens, grammar, CALL)
    assert not may_end(tokens, grammar, "It rains.")


def test_an_answer_is_read_as_text_and_calls() -> None:
    text, calls = read(f"Let me see.\n{CALL}\n{TIME}\n", NAMES)
    assert text == "Let me see."
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("weather", {"city": "Bern"}),
        ("clock", {}),
    ]
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "a < b <tool",
        "<tool_call> is how a call begins",
        '<tool_call>\n{"name": "rain", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"nom": "clock"}\n</tool_call>',
        "",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert read(text, NAMES) == (text, ())


NASTY = st.text(st.sampled_from('{}[]"\\ a</>\n'), max_size=12)


@settings(max_examples=100)
@given(
    st.text(st.sampled_from("<tool_cal> \nx"), max_size=20).filter(
        lambda text: "<tool_call>" not in text
    ),
    st.lists(
        st.dictionaries(NASTY, st.recursive(NASTY | st.none(), st.lists), max_size=3), max_size=3
    ),
    st.data(),
)
def test_calls_are_found_however_the_text_is_cut(
    before: str, arguments: list[dict], data: st.DataObject
) -> None:
    calls = [
        f'<tool_call>\n{{"name": "clock", "arguments": {json.dumps(one)}}}\n</tool_call>'
        for one in arguments
    ]
    whole = before + "\n".join(calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    reader = CallReader(NAMES)
    pieces = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        pieces += reader.feed(whole[start:end])
    pieces += reader.finish()
    said = "".join(piece.text for piece in pieces if isinstance(piece, Said))
    made = ["" for _ in arguments]
    for piece in pieces:
        if isinstance(piece, Called):
            assert (piece.name == "clock") == bool(piece.id)
            made[piece.index] += piece.arguments
    assert [json.loads(one) for one in made] == arguments
    assert said == (before.rstrip() if arguments else before)


def test_tools_are_told_to_a_model_whose_template_does_not() -> None:
    asked = Message("user", "Will it rain in Bern?")
    made = Message("assistant", "", tool_calls=(ToolCall("c1", "weather", '{"city": "Bern"}'),))
    answered = Message("tool", "sunny", tool_call_id="c1")
    system, *rest = described([asked, made, answered], [CITY])
    assert system.role == "system" and '"name": "weather"' in system.content
    assert [one.role for one in rest] == ["user", "assistant", "user"]
    assert rest[1].content == CALL and "sunny" in rest[2].content
    first, *_ = described([Message("system", "Be brief."), asked], [CITY])
    assert first.content.startswith("Be brief.\n\nYou may call")
    assert described([asked], []) == (asked,)
