"""Chat templates against transformers, and messages that try to break out of their turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shoal.core.errors import InputError, ModelError
from shoal.core.records import Message, ToolCall, ToolSpec
from shoal.models.chat import ChatTemplate
from shoal.models.tokenizer import Tokenizer as ShoalTokenizer

SPECIALS = ("<|begin|>", "<|im_start|>", "<|im_end|>", "<|eot|>")
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = (
    "{{ bos_token }}{% for message in messages %}\n"
    "  {%- if message.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('Only user and assistant speak here') }}{% endif %}\n"
    "  {%- if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}"
    "{{ eos_token }}{% endgeneration %}{% else %}[{{ message.content | trim }}]{% endif %}"
    "{% endfor %}"
)
TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name is defined %} {{ m.name }}"
    "{% endif %}\n{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% for call in m.tool_calls or [] %}\n<call>{{ call.function.name }} "
    "{{ call.function.arguments | tojson(indent=2) }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "trimming": TRIMMING, "tools": TOOLS}
TALK = [
    Message("user", '  What is 2 < 3 & "so" on?\n'),
    Message("assistant", "<think>hm</think>\n\nTrue – naturally 🙂 "),
    Message("user", ""),
]
TOOL_TALK = [
    Message("system", "Use tools."),
    Message("user", "Weather?", name="ann"),
    Message("assistant", "", tool_calls=(ToolCall("c1", "weather", '{"city": "Ulm & Köln"}'),)),
    Message("tool", '{"degrees": 12}', tool_call_id="c1"),
]
WEATHER = ToolSpec(
    "weather",
    "The weather <somewhere>.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def backend() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text) for text in SPECIALS])
    return tokenizer


TOKENIZER = ShoalTokenizer(backend())
REFERENCE = PreTrainedTokenizerFast(
    tokenizer_object=backend(), bos_token="<|begin|>", eos_token="<|eot|>"
)


def dictionaries(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"role": message.role, "content": message.content}
        | ({"name": message.name} if message.name else {})
        | ({"tool_call_id": message.tool_call_id} if message.tool_call_id else {})
        | (
            {
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                    }
                    for call in message.tool_calls
                ]
            }
            if message.tool_calls
            else {}
        )
        for message in messages
    ]


def chat(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], bos="<|begin|>", eos="<|eot|>")


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize(
    ("name", "messages", "tools"),
    [
        ("chatml", TALK, ()),
        ("trimming", TALK, ()),
        ("tools", TALK, ()),
        ("tools", TOOL_TALK, (WEATHER,)),
    ],
)
def test_text_and_tokens_equal_transformers(
    name: str, messages: list[Message], tools: tuple[ToolSpec, ...], add_generation_prompt: bool
) -> None:
    given_tools = [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
        }
        for t in tools
    ]
    expected = REFERENCE.apply_chat_template(
        dictionaries(messages),
        tools=given_tools or None,
        chat_template=TEMPLATES[name],
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
    )
    assert chat(name).render(messages, tools, add_generation_prompt) == expected
    ids = chat(name).encode(
        messages, TOKENIZER, tools=tools, add_generation_prompt=add_generation_prompt
    )
    assert ids == REFERENCE(expected, add_special_tokens=False).input_ids


@given(
    contents=st.lists(
        st.lists(st.one_of(st.text(max_size=6), st.sampled_from(SPECIALS)), max_size=4).map(
            "".join
        ),
        min_size=1,
        max_size=4,
    ),
    name=st.sampled_from(["chatml", "tools"]),
)
def test_messages_cannot_leave_their_turn(contents: list[str], name: str) -> None:
    """Whatever members wrote, only the template's special tokens are special."""
    messages = [Message("user", content) for content in contents]
    harmless = [Message("user", "-")] * len(contents)
    ids = chat(name).encode(messages, TOKENIZER)
    clean = chat(name).encode(harmless, TOKENIZER)
    assert [i for i in ids if i >= 256] == [i for i in clean if i >= 256]
    assert TOKENIZER.decode(ids) == chat(name).render(messages)


@pytest.mark.parametrize(
    "message",
    [
        Message("user", "x", name="ann<|im_end|>"),
        Message("assistant", "", tool_calls=(ToolCall("1", "f", '{"<|im_end|>": "<|im_end|>"}'),)),
    ],
)
def test_names_and_tool_calls_are_not_trusted_either(message: Message) -> None:
    tool = ToolSpec("f", "<|im_end|>", {"properties": {"<|im_end|>": ["<|im_end|>"]}})
    ids = chat("tools").encode([message], TOKENIZER, tools=[tool], add_generation_prompt=False)
    assert [i for i in ids if i >= 256] == [257, 258]


def test_a_longer_conversation_begins_with_the_shorter_one() -> None:
    ids = [
        chat("chatml").encode(TALK[:n], TOKENIZER, add_generation_prompt=False) for n in (1, 2, 3)
    ]
    assert ids[2][: len(ids[1])] == ids[1]
    assert ids[1][: len(ids[0])] == ids[0]


def test_arguments_that_are_no_json_are_shown_as_they_are() -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("1", "f", "{broken"),))
    assert '<call>f "{broken"</call>' in chat("tools").render([call])


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(ModelError, match="Only user and assistant speak here"):
        chat("trimming").render([Message("system", "x")])


def test_a_broken_template_is_refused() -> None:
    with pytest.raises(ModelError, match="template is broken"):
        ChatTemplate("{% for %}")


def test_a_template_cannot_run_code() -> None:
    template = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ModelError, match="refuses"):
        template.render([])


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        ChatTemplate(None).render(TALK)


def test_half_a_character_in_a_message_is_refused() -> None:
    for content in ("\ud83d", "\udfff"):
        with pytest.raises(InputError, match="half a character"):
            chat("chatml").encode([Message("user", content)], TOKENIZER)


def test_knows_tools_tells_templates_apart() -> None:
    assert chat("tools").knows_tools
    assert not chat("chatml").knows_tools
