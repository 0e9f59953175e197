"""What a batch file may say, and how it hears what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import ContextOverflow, InputError
from shoal.core.protocols import Completion, EngineInfo, Score, Segment
from shoal.core.records import Message, Usage
from shoal.engine.batch.jobs import Asked, Scored, result_line
from shoal.server.batch_lines import Reading, read_lines

READING = Reading("small", EngineInfo("small", "local", knows_tools=False), "tenant")


def chat(**body: Any) -> dict[str, Any]:
    return {
        "custom_id": "one",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "small", "messages": [{"role": "user", "content": "Hi"}], **body},
    }


def lines(*found: Any) -> bytes:
    return b"\n".join(json.dumps(each).encode() for each in found) + b"\n"


def test_chats_completions_scores_and_plain_prompts_are_read() -> None:
    tasks = read_lines(
        lines(
            chat(max_tokens=7, temperature=0),
            {"custom_id": "two", "method": "POST", "url": "/v1/completions",
             "body": {"model": "small", "prompt": ["a", "b"], "n": 2, "ignore_eos": True}},
            {"prompt": "c", "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 3},
            {"custom_id": "four", "url": "/v1/scores",
             "body": {"prompt": "d", "candidates": ["x", "y"]}},
        ),
        READING,
    )  # fmt: skip
    assert [task.custom_id for task in tasks] == ["one", "two", "line-3", "four"]
    (first,) = tasks[0].requests
    assert first.prompt == (Message("user", "Hi"),)
    assert (first.sampling.max_tokens, first.sampling.temperature, first.salt) == (7, 0, "tenant")
    assert [request.prompt for request in tasks[1].requests] == [
        (Segment("a"),), (Segment("a"),), (Segment("b"),), (Segment("b"),)
    ]  # fmt: skip
    assert all(request.sampling.ignore_eos for request in tasks[1].requests)
    (third,) = tasks[2].requests
    assert (third.sampling.top_k, third.sampling.min_p, third.sampling.min_tokens) == (4, 0.1, 3)
    scored = tasks[3].work
    assert isinstance(scored, Scored)
    assert scored.candidates == ("x", "y")


def test_seeds_follow_from_the_custom_id_so_that_a_resumed_job_draws_the_same() -> None:
    data = lines({"prompt": "a"}, {"prompt": "a"}, {"prompt": "a", "seed": 5})
    seeds = [[task.requests[0].sampling.seed for task in read_lines(data, READING)] for _ in "ab"]
    assert seeds[0] == seeds[1]
    assert seeds[0][0] != seeds[0][1]
    assert seeds[0][2] == 5


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "Line 2 is not valid JSON"),
        ('"text"', "Line 2 is no JSON object"),
        ("{}", "Line 2: give custom_id, url and body, or a prompt"),
        ({"prompt": ""}, "Line 2: prompt: each prompt|Line 2: prompt: give"),
        ({"prompt": []}, "Line 2: prompt"),
        ({"prompt": "a", "max_tokens": -1}, r"Line 2: max_tokens: .* \(got -1\)"),
        ({"prompt": "a", "temprature": 1}, "does not know the field 'temprature'.*'temperature'"),
        ({**chat(), "url": "/v1/chat/completion"}, "Line 2: url: .*Did you mean '/v1/chat/compl"),
        ({**chat(), "url": "/v1/embeddings"}, "cannot be batched"),
        ({**chat(), "method": "GET"}, "Line 2: method"),
        ({**chat(), "custom_id": ""}, "Line 2: custom_id"),
        ({**chat(), "custom": 1}, "Line 2: custom"),
        ({"url": "/v1/completions", "body": {}}, "Line 2: custom_id"),
        (chat(model="large"), "this engine runs 'small', not 'large'"),
        (chat(stream=True), "a batch cannot stream"),
        (chat(reuse="approx"), "a batch shares equal beginnings"),
        (chat(messages=[]), "Line 2: messages"),
        (chat(custom_id=3), "does not know the field 'custom_id'"),
        ({**chat(), "custom_id": "line-1"}, "Lines 1 and 2 have the same custom_id"),
        ({"custom_id": "s", "url": "/v1/scores", "body": {"prompt": "", "candidates": ["a"]}},
         "the prompt is empty"),
        ({"custom_id": "s", "url": "/v1/scores", "body": {"prompt": "a", "candidates": []}},
         "Line 2: candidates"),
        ({"custom_id": "s", "url": "/v1/scores", "body": {"candidates": ["a"]}},
         "give a prompt or messages"),
        ({"prompt": "a\ud800"}, "half a character"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(line: Any, sentence: str) -> None:
    text = line.encode() if isinstance(line, str) else json.dumps(line).encode()
    with pytest.raises(InputError, match=sentence):
        read_lines(lines({"prompt": "fine"}) + text, READING)


def test_an_empty_file_is_an_error() -> None:
    with pytest.raises(InputError, match="no requests"):
        read_lines(b"\n \n", READING)


def test_byte_order_marks_and_empty_lines_do_not_matter() -> None:
    data = b"\xef\xbb\xbf\n" + lines({"prompt": "a"}) + b"\r\n"
    assert len(read_lines(data, READING)) == 1


def test_another_model_is_let_through_where_asked() -> None:
    reading = Reading("small", READING.info, any_model=True)
    (task,) = read_lines(lines(chat(model="gpt-4o-mini")), reading)
    assert task.requests


def test_answers_have_the_shape_of_their_endpoint() -> None:
    usage = Usage(prompt_tokens=9, shared_tokens=4, decoded_tokens=2)
    said = Completion("Hello", (1, 2), "stop", usage)
    first, second, third = read_lines(
        lines(chat(), {"prompt": "a"}, {"custom_id": "s", "url": "/v1/scores",
              "body": {"prompt": "a", "candidates": ["b", "c"]}}),
        READING,
    )  # fmt: skip
    assert isinstance(first.work, Asked) and isinstance(second.work, Asked)
    body = first.work.answer([said]).body
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert second.work.answer([said]).body["choices"][0]["text"] == "Hello"
    assert isinstance(third.work, Scored)
    found = third.work.answer([Score("b", -2.0, (-2.0,)), Score("c", -1.0, (-0.5, -0.5))])
    assert found.body["best"] == 1
    line = result_line(first, first.work.answer([said]))
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("one", None, 200)


def test_failures_become_answers_with_a_status() -> None:
    (task,) = read_lines(lines(chat()), READING)
    assert isinstance(task.work, Asked)
    long = Completion("", finish="error", error="Too long.", error_kind="context")
    response = task.work.answer([long])
    assert response.status == 400
    assert response.body["error"]["code"] == "context_length_exceeded"
    assert task.failed(ContextOverflow("Too long.")).status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["custom_id", "url", "method", "body", "prompt", "messages", "n", "stop"])


@given(st.dictionaries(FIELDS, JSON | st.just("/v1/completions")), st.dictionaries(FIELDS, JSON))
@settings(max_examples=300)
def test_any_json_is_read_or_refused_in_a_sentence(
    line: dict[str, Any], body: dict[str, Any]
) -> None:
    for found in (line, {**line, "body": body}):
        said = ""
        try:
            tasks = read_lines(json.dumps(found).encode(), READING)
        except InputError as error:
            said, tasks = str(error), []
        assert len(tasks) == 1 or said.startswith(("Line 1", "There are no requests"))
