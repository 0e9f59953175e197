"""Cache moved between prompts over HTTP: who may have it is the key file's to say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import running

from shoal.core.errors import ConfigError
from shoal.engine.local import LocalEngine
from shoal.engine.scripted import ScriptedEngine
from shoal.models.loading import load
from shoal.server.app import create_app
from shoal.server.tenants import Keyring

KEYS = """
[tenants.ann]
keys = ["sk-ann"]
reuse = "approx"
groups = ["club"]
cache_quota_mib = 8
weight = 2.0

[tenants.bob]
keys = ["sk-bob"]
reuse = "approx"

[tenants.careful]
keys = ["sk-careful"]
"""
DOCUMENT = "The herring is a forage fish of the family of Clupeidae, and it swims in schools. " * 4


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(KEYS)
    return Keyring.read(path)


@pytest.fixture
def url(tiny_model: Path, keyring: Keyring) -> Iterator[str]:
    engine = LocalEngine(load(str(tiny_model), dtype="fp32"), kv_bytes=16 << 20)
    with running(engine, keyring=keyring) as base:
        yield base
        assert engine.load.pinned_bytes == 0


def ask(url: str, key: str, words: str, **fields: Any) -> httpx.Response:
    body = {"model": "small", "prompt": f"{words}\n\n{DOCUMENT}\n\nWhat?", "max_tokens": 2}
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(trust_env=False) as client:
        return client.post(f"{url}/completions", json={**body, **fields}, headers=headers)


def moved(answer: httpx.Response) -> int:
    details = answer.raise_for_status().json()["usage"]["prompt_tokens_details"]
    return int(details["approx_tokens"] + details["repaired_tokens"])


def test_a_tenant_that_may_has_its_documents_moved_and_is_told_how_many_tokens(url: str) -> None:
    assert moved(ask(url, "sk-ann", "One.")) == 0
    answer = ask(url, "sk-ann", "Somewhere else.")
    details = answer.json()["usage"]["prompt_tokens_details"]
    assert details["approx_tokens"] > 40 and details["repaired_tokens"] > 0
    assert moved(answer) <= answer.json()["usage"]["prompt_tokens"]


def test_nothing_crosses_from_one_tenant_to_another(url: str) -> None:
    ask(url, "sk-ann", "One.")
    assert moved(ask(url, "sk-bob", "Another.")) == 0


@pytest.mark.parametrize("fields", [{"reuse": "exact"}, {"reuse": "off"}])
def test_a_body_may_ask_for_less(url: str, fields: dict[str, str]) -> None:
    ask(url, "sk-ann", "One.")
    answer = ask(url, "sk-ann", "Two.", **fields)
    assert moved(answer) == 0
    again = ask(url, "sk-ann", "Two.", **fields).json()["usage"]["prompt_tokens_details"]
    assert (again["cached_tokens"] > 0) == (fields["reuse"] == "exact")


def test_a_private_scope_still_finds_what_is_its_own(url: str) -> None:
    ask(url, "sk-ann", "One.")
    assert moved(ask(url, "sk-ann", "Two.", cache_scope="private")) > 0


def test_a_body_may_not_ask_for_more(url: str) -> None:
    ask(url, "sk-careful", "One.")
    refused = ask(url, "sk-careful", "Two.", reuse="approx")
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "reuse_not_allowed"
    assert moved(ask(url, "sk-careful", "Two.")) == 0
    assert ask(url, "sk-careful", "Two.", cache_scope="everybody").status_code == 400


def test_a_key_file_is_read_with_its_policy(keyring: Keyring) -> None:
    ann, careful = keyring.tenant("sk-ann"), keyring.tenant("sk-careful")
    assert ann and careful and keyring.moves
    assert (ann.reuse, ann.groups, ann.quota_bytes, ann.weight) == (
        "approx",
        frozenset({"club"}),
        8 << 20,
        2.0,
    )
    assert careful.reuse == "exact" and [one.name for one in keyring] == ["ann", "bob", "careful"]


def test_cache_that_lies_elsewhere_cannot_be_moved(keyring: Keyring) -> None:
    with pytest.raises(ConfigError, match="local model"):
        create_app(ScriptedEngine("a"), model_name="small", keyring=keyring)
    create_app(ScriptedEngine("a"), model_name="small", keyring=Keyring())
