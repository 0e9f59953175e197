"""The server against its own OpenAPI schema: whatever is sent, it never answers 5xx."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.core.protocols import Engine
from shoal.engine.local import LocalEngine
from shoal.engine.scripted import ScriptedEngine
from shoal.server.app import create_app
from shoal.server.service import ServerLimits

LABELS = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/embeddings",
    "POST /tokenize",
    "POST /detokenize",
    "GET /v1/models/{name}",
    "GET /v1/responses/{response_id}",
    "DELETE /v1/responses/{response_id}",
    "GET /v1/responses/{response_id}/input_items",
    "POST /v1/settlements",
)


@pytest.fixture
def tiny(tiny_model: Path) -> LocalEngine:
    """One a test: the client that asks for the schema also ends the app, which closes it."""
    return LocalEngine.open(str(tiny_model), dtype="fp32", kv_bytes=1 << 20)


HI = [{"role": "user", "content": "Hi"}]
ESSENTIAL: dict[str, dict[str, Any]] = {
    "POST /v1/chat/completions": {"model": "small", "messages": HI, "max_tokens": 3},
    "POST /v1/completions": {"model": "small", "prompt": "Hi"},
    "POST /v1/responses": {"model": "small", "input": "Hi"},
    "POST /v1/embeddings": {"model": "all-minilm-l6-v2", "input": "Hi"},
    "POST /tokenize": {"prompt": "Hi"},
    "POST /detokenize": {"tokens": [1]},
    "POST /v1/settlements": {"reports": {"anna": 0.2, "ben": 0.7}},
}


def operation(engine: Engine, label: str) -> Any:
    """One operation of the schema of an app on ``engine``."""
    app = create_app(engine, model_name="small", limits=ServerLimits(request_seconds=0.5))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    return next(one.ok() for one in schema.get_all_operations() if one.ok().label == label)


def attack(engine: Engine, label: str, examples: int) -> Counter[int]:
    """The statuses of so many cases."""
    seen: Counter[int] = Counter()

    @settings(
        max_examples=examples, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(operation(engine, label).as_strategy(), st.integers(0, 3), st.randoms())
    def run(case: Any, fields: int, draw: Any) -> None:
        if isinstance(case.body, dict) and fields:  # so many wild fields, the others good ones
            open_to_all = set(case.body) if fields == 1 else set(case.body) - set(ESSENTIAL[label])
            names = draw.sample(sorted(open_to_all), min(fields, len(open_to_all)))
            wild = {name: case.body[name] for name in names}
            case.body = ESSENTIAL[label] | wild
            if type(wild.get("max_tokens")) is int:
                case.body["max_tokens"] = min(wild["max_tokens"], 4)
        answer = case.call()
        seen[answer.status_code] += 1
        assert answer.status_code < 500, answer.text
        assert answer.elapsed < 30
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert error["message"].strip() and error["type"]

    run()
    return seen


@pytest.mark.parametrize("label", LABELS)
def test_no_case_breaks_the_server(label: str) -> None:
    seen = attack(ScriptedEngine("a b"), label, 60)
    assert sum(seen.values()) >= 50
    assert label not in LABELS[:3] or seen[200] >= 5


@pytest.mark.parametrize("label", LABELS[:3])
def test_no_case_breaks_the_engine_behind_it(tiny: LocalEngine, label: str) -> None:
    assert attack(tiny, label, 60)[200] >= 5
    assert tiny.load.running == tiny.load.waiting == tiny.load.pinned_bytes == 0


def test_the_schema_is_served_and_names_every_endpoint() -> None:
    app = create_app(ScriptedEngine("a"), model_name="small")
    schema = app.openapi()
    found = {
        f"{method.upper()} {path}" for path, item in schema["paths"].items() for method in item
    }
    assert set(LABELS) <= found and json.dumps(schema)
