import hashlib
from pathlib import Path

import pytest

from shoal.core.errors import ConfigError, InputError
from shoal.server.tenants import OPEN, Keyring, token_of

FILE = """
[tenants.ann]
keys = ["sk-ann-1", "sk-ann-2"]
max_running = 2
max_waiting = 0
metrics = true

[tenants.bob]
keys = ["sha256:{digest}"]
"""


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    path = tmp_path / "keys.toml"
    path.write_text(FILE.format(digest=hashlib.sha256(b"sk-bob").hexdigest()))
    return Keyring.read(path)


def test_keys_lead_to_tenants_and_their_limits(keyring: Keyring) -> None:
    ann, again, bob = map(keyring.tenant, ("sk-ann-1", "sk-ann-2", "sk-bob"))
    assert ann and again and bob
    assert ann == again and (ann.name, ann.max_running, ann.max_waiting) == ("ann", 2, 0)
    assert ann.metrics and not bob.metrics
    assert bob.name == "bob" and bob.max_running is None
    assert ann.salt != bob.salt and "ann" not in ann.salt and len(ann.salt) == 32
    assert not keyring.open
    for wrong in ("", "sk-ann", "ann", f"sha256:{hashlib.sha256(b'sk-bob').hexdigest()}", "\ud800"):
        assert keyring.tenant(wrong) is None


def test_json_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"tenants": {"ann": {"keys": ["k"]}}}')
    tenant = Keyring.read(path).tenant("k")
    assert tenant and tenant.name == "ann"


def test_without_keys_each_token_is_a_scope_of_its_own() -> None:
    keyring = Keyring()
    one, two, none = map(keyring.tenant, ("a", "b", ""))
    assert one and two and none
    assert {one.name, two.name, none.name} == {OPEN}
    assert len({one.salt, two.salt, none.salt}) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tenants.ann]\nkeys = ['secret'", "is not valid TOML"),
        ("", "tenants: Field required"),
        ("[tenants]", "at least 1 item"),
        ("[tenants.ann]\nkeys = []", "tenants.ann.keys: List should have at least 1"),
        ("[tenants.ann]\nkeys = ['']", "at least 1 character"),
        ("[tenants.ann]\nkeys = ['secret']\nmax_runing = 2", "Did you mean 'max_running'?"),
        ("[tenants.ann]\nkeys = ['secret']\nmax_running = 0", "greater than or equal to 1"),
        ("[tenants.ann]\nkeys = ['secret', 'secret']", "have a key in common"),
        ("[tenants.a]\nkeys = ['secret']\n[tenants.b]\nkeys = ['secret']", "'b' and 'a' have"),
        ('[tenants."a b"]\nkeys = ["secret"]', "match pattern"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Keyring.read(path)
    assert words in str(caught.value) and "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Keyring.read(tmp_path / "keys.toml")


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", ""),
        ("abc", ""),
        ("", ""),
    ],
)
def test_only_bearer_tokens_are_keys(header: str, token: str) -> None:
    assert token_of(header) == token
