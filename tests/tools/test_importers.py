"""Importers: what a description says becomes tools, and what is wrong in it does no harm."""

from __future__ import annotations

import functools
import json
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from described import LIBRARY, SHOP, library_folder, museum_folder
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.core.records import ToolSpec
from shoal.tools.importers.botocore import from_botocore
from shoal.tools.importers.discovery import from_discovery, from_discovery_folder
from shoal.tools.importers.openapi import from_openapi, read
from shoal.tools.schema import CUT, DEEPEST, MOST_NODES, Bounds, expanded
from shoal.tools.side_effects import side_effect_of
from shoal.tools.sources import botocore_data


def by_name(specs: Any) -> dict[str, ToolSpec]:
    return {spec.name: spec for spec in specs}


def depth_of(schema: Any) -> int:
    if isinstance(schema, dict):
        return 1 + max((depth_of(value) for value in schema.values()), default=0)
    return max((depth_of(one) for one in schema), default=0) if isinstance(schema, list) else 0


def test_operations_of_the_newest_service_model(tmp_path: Path) -> None:
    tools = by_name(from_botocore(museum_folder(tmp_path), origin="botocore 0"))
    assert set(tools) == {"aws.museum.ListRooms", "aws.museum.DeleteRoom", "aws.museum.HangPicture"}
    rooms = tools["aws.museum.ListRooms"]
    assert rooms.description == "Lists the rooms of a Museum ."
    assert rooms.parameters == {
        "type": "object",
        "properties": {
            "Floor": {
                "type": "integer", "minimum": 0, "maximum": 5, "description": "Which floor."
            },
            "Since": {"type": "string", "format": "date-time"},
        },
        "required": ["Floor"],
    }  # fmt: skip
    assert (rooms.service, rooms.side_effect, rooms.served) == ("Example Museum", "read", False)
    assert tools["aws.museum.DeleteRoom"].side_effect == "destroy"
    assert tools["aws.museum.DeleteRoom"].parameters["properties"] == {}


def test_only_the_named_services_and_only_what_is_served(tmp_path: Path) -> None:
    folder = museum_folder(tmp_path)
    assert list(from_botocore(folder, services=["zoo"])) == []
    (served,) = [t for t in from_botocore(folder, served=lambda n: "List" in n) if t.served]
    assert served.name == "aws.museum.ListRooms"


def test_a_shape_that_contains_itself_ends(tmp_path: Path) -> None:
    picture = by_name(from_botocore(museum_folder(tmp_path)))["aws.museum.HangPicture"]
    assert depth_of(picture.parameters) < 3 * DEEPEST
    assert CUT in json.dumps(picture.parameters)


def test_the_installed_catalogue_has_its_19796_operations() -> None:
    started = time.process_time()
    tools = by_name(from_botocore(botocore_data(), origin="botocore"))
    assert len(tools) == 19_796  # as counted in the models of botocore 1.44.5
    assert time.process_time() - started < 30
    bucket = tools["aws.s3.CreateBucket"]
    assert bucket.parameters["required"] == ["Bucket"]
    assert bucket.service == "Amazon Simple Storage Service"
    assert tools["aws.ec2.TerminateInstances"].side_effect == "destroy"
    assert tools["aws.dynamodb.GetItem"].side_effect == "read"


def test_a_damaged_service_model_is_named(tmp_path: Path) -> None:
    museum_folder(tmp_path)
    (tmp_path / "museum" / "2024-01-01" / "service-2.json.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"service-2.json.gz is no service model"):
        list(from_botocore(tmp_path))


def test_methods_of_a_discovery_document() -> None:
    tools = by_name(from_discovery(LIBRARY))
    books = tools["google.library.v1.books.list"]
    assert books.parameters["properties"]["shelf"] == {"type": "array", "items": {"type": "string"}}
    assert books.origin == "discovery library v1 20260101"
    assert tools["google.library.v1.books.delete"].parameters["required"] == ["id"]
    loan = tools["google.library.v1.books.loans.create"]
    assert loan.parameters["properties"]["body"]["properties"]["reader"] == {"type": "string"}
    assert CUT in json.dumps(loan.parameters)  # a renewal of a renewal of …
    with pytest.raises(InputError, match="has a name and a version"):
        list(from_discovery({"kind": "discovery#directoryList"}))


def test_a_method_is_taken_from_its_ripest_version(tmp_path: Path) -> None:
    tools = by_name(from_discovery_folder(library_folder(tmp_path)))
    assert "google.library.v1.books.list" in tools
    assert "google.library.v2beta.books.list" not in tools
    assert "google.library.v2beta.books.scan" in tools
    assert len(tools) == 4


def test_operations_of_an_openapi_document() -> None:
    tools = by_name(from_openapi(SHOP, name="shop"))
    assert set(tools) == {"shop.orders.get", "shop.orders.cancel", "shop.post.orders"}
    get = tools["shop.orders.get"]
    assert get.description == "Get an order. Shows one order & its lines ."
    assert get.parameters == {
        "type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]
    }  # fmt: skip
    assert (get.service, get.origin) == ("Corner Shop orders", "openapi shop 2.1")
    assert [tools[name].side_effect for name in sorted(tools)] == ["destroy", "read", "write"]
    place = tools["shop.post.orders"].parameters
    assert set(place["properties"]) == {"dry_run", "note", "lines", "before"}
    assert place["required"] == ["lines"]


def test_a_body_whose_names_are_taken_stays_a_body() -> None:
    shop = json.loads(json.dumps(SHOP))
    shop["paths"]["/orders"]["post"]["parameters"][0]["name"] = "lines"
    place = by_name(from_openapi(shop, name="shop"))["shop.post.orders"].parameters
    assert set(place["properties"]) == {"lines", "note", "body"}


def test_swagger_two_and_yaml(tmp_path: Path) -> None:
    file = tmp_path / "api.yaml"
    file.write_text(
        "swagger: '2.0'\npaths:\n  /pets:\n    post:\n      operationId: addPet\n      parameters:"
        "\n        - {in: body, name: pet, schema: {properties: {tag: {type: string}}}}\n"
        "        - {in: query, name: dry, type: boolean}\n"
    )
    (pet,) = from_openapi(read(str(file)), name="pets")
    assert pet.name == "pets.addPet"
    assert pet.parameters["properties"] == {
        "dry": {"type": "boolean"}, "tag": {"type": "string"}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [("[1]", "holds no object"), ("{}", "no object 'paths'"), ("a: [", "neither JSON nor YAML")],
)
def test_what_is_no_description_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "api.json"
    file.write_text(text)
    with pytest.raises(InputError, match=says):
        list(from_openapi(read(str(file)), name="x"))
    with pytest.raises(InputError, match="Cannot read"):
        read(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/a"},
        {"$ref": "#/b"},
        {"properties": {str(n): {"$ref": "#/wide"} for n in range(50)}},
        {"items": {"$ref": "#/deep"}},
        {"allOf": [{"$ref": "#/wide"}] * 300},
        {"$ref": "#/nowhere"},
        {"$ref": 5, "type": ["string", "null"]},
    ],
)
def test_references_that_have_no_end_are_cut(schema: dict[str, Any]) -> None:
    wide: dict[str, Any] = {"properties": {str(n): {"$ref": "#/wide"} for n in range(50)}}
    deep: dict[str, Any] = {"items": {"$ref": "#/deep"}, "type": "array"}
    known = {"#/a": {"$ref": "#/b"}, "#/b": {"$ref": "#/a"}, "#/wide": wide, "#/deep": deep}
    bounds = Bounds()
    out = expanded(schema, known.__getitem__, bounds)
    assert MOST_NODES - 300 <= bounds.left <= MOST_NODES
    assert depth_of(out) < 4 * DEEPEST
    assert len(json.dumps(out)) < 100_000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["type", "properties", "items", "allOf", "$ref", "required", "enum",
                         "description", "additionalProperties", "x"]), inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["properties", "items", "anyOf", "$ref"]), json_values))
def test_no_schema_breaks_the_importer(schema: dict[str, Any]) -> None:
    def resolve(name: str) -> Any:
        return {"#/x": schema}[name]

    json.dumps(expanded(schema, resolve, Bounds()))


@pytest.mark.parametrize(
    ("operation", "method", "effect"),
    [
        ("DescribeInstances", "POST", "read"),
        ("BatchDeleteImage", "POST", "destroy"),
        ("TerminateInstances", "", "destroy"),
        ("PutObject", "PUT", "write"),
        ("GetRole", "PUT", "write"),
        ("frobnicate", "", "write"),
        ("frobnicate", "GET", "read"),
        ("emptyTrash", "DELETE", "destroy"),
        ("update", "GET", "read"),
    ],
)
def test_side_effects_err_on_the_side_of_harm(operation: str, method: str, effect: str) -> None:
    assert side_effect_of(operation, method) == effect


def test_a_name_that_only_contains_a_verb_of_destruction_is_judged_by_its_verb() -> None:
    assert side_effect_of("ListDeletedObjects", "GET") == "read"


def test_a_description_is_fetched_over_http(tmp_path: Path) -> None:
    (tmp_path / "shop.json").write_text(json.dumps(SHOP))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert read(f"{address}/shop.json") == SHOP
        with pytest.raises(InputError, match=r"Cannot fetch .*404"):
            read(f"{address}/none.json")
        server.shutdown()
    with pytest.raises(InputError, match="Cannot fetch"):
        read(f"{address}/shop.json")
