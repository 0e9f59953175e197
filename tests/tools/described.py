"""Small descriptions of interfaces, written by hand for these tests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

SHOP: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "Corner Shop", "version": "2.1"},
    "paths": {
        "/orders/{id}": {
            "parameters": [{"$ref": "#/components/parameters/id"}],
            "get": {
                "operationId": "orders/get",
                "summary": "Get an order",
                "description": "Shows one order &amp; its <b>lines</b>.",
                "tags": ["orders"],
            },
            "delete": {"operationId": "orders/cancel", "description": "Cancels an order."},
        },
        "/orders": {
            "post": {
                "description": "Places an order.",
                "parameters": [
                    {"name": "dry_run", "in": "query", "schema": {"type": "boolean"}},
                    {"name": "note", "in": "header", "schema": {"type": "string"}},
                ],
                "requestBody": {
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Order"}}
                    }
                },
            }
        },
    },
    "components": {
        "parameters": {
            "id": {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}
        },
        "schemas": {
            "Order": {
                "type": "object",
                "required": ["lines"],
                "properties": {
                    "lines": {"type": "array", "items": {"$ref": "#/components/schemas/Line"}},
                    "before": {"$ref": "#/components/schemas/Order"},
                },
            },
            "Line": {
                "type": "object",
                "properties": {"sku": {"type": "string"}, "count": {"type": "integer"}},
            },
        },
    },
}

LIBRARY: dict[str, Any] = {
    "name": "library",
    "version": "v1",
    "revision": "20260101",
    "title": "Library API",
    "canonicalName": "Library",
    "resources": {
        "books": {
            "methods": {
                "list": {
                    "id": "library.books.list",
                    "httpMethod": "GET",
                    "description": "Lists books.",
                    "parameters": {"shelf": {"type": "string", "repeated": True}},
                },
                "delete": {
                    "id": "library.books.delete",
                    "httpMethod": "DELETE",
                    "parameters": {"id": {"type": "string", "required": True}},
                },
            },
            "resources": {
                "loans": {
                    "methods": {
                        "create": {
                            "id": "library.books.loans.create",
                            "httpMethod": "POST",
                            "request": {"$ref": "Loan"},
                        }
                    }
                }
            },
        }
    },
    "schemas": {
        "Loan": {
            "type": "object",
            "properties": {"reader": {"type": "string"}, "renewal": {"$ref": "Loan"}},
        }
    },
}

MUSEUM: dict[str, Any] = {
    "metadata": {"serviceFullName": "Example Museum", "apiVersion": "2024-01-01"},
    "operations": {
        "ListRooms": {
            "name": "ListRooms",
            "http": {"method": "POST", "requestUri": "/"},
            "documentation": "<p>Lists the rooms of a <code>Museum</code>.</p>",
            "input": {"shape": "ListRoomsRequest"},
        },
        "DeleteRoom": {"name": "DeleteRoom", "http": {"method": "POST", "requestUri": "/"}},
        "HangPicture": {
            "name": "HangPicture",
            "http": {"method": "POST", "requestUri": "/"},
            "input": {"shape": "Picture"},
        },
    },
    "shapes": {
        "ListRoomsRequest": {
            "type": "structure",
            "required": ["Floor"],
            "members": {
                "Floor": {"shape": "Floor", "documentation": "<p>Which floor.</p>"},
                "Since": {"shape": "Day"},
            },
        },
        "Floor": {"type": "integer", "min": 0, "max": 5},
        "Day": {"type": "timestamp"},
        "Picture": {
            "type": "structure",
            "members": {"Copies": {"shape": "Pictures"}, "Labels": {"shape": "Labels"}},
        },
        "Pictures": {"type": "list", "member": {"shape": "Picture"}},
        "Labels": {"type": "map", "key": {"shape": "Day"}, "value": {"shape": "Floor"}},
    },
}


def museum_folder(folder: Path) -> Path:
    """A folder of service models: two versions of one service, and a file that is none."""
    for version, model in (("2023-01-01", {"operations": {}}), ("2024-01-01", MUSEUM)):
        place = folder / "museum" / version
        place.mkdir(parents=True)
        (place / "service-2.json.gz").write_bytes(gzip.compress(json.dumps(model).encode()))
    (folder / "_retry.json").write_text("{}")
    return folder


def library_folder(folder: Path) -> Path:
    """Discovery documents: a ripe version, and a preview with one more method."""
    folder.mkdir(parents=True, exist_ok=True)
    preview = json.loads(json.dumps(LIBRARY))
    preview["version"] = "v2beta"
    preview["resources"]["books"]["methods"]["scan"] = {
        "id": "library.books.scan",
        "httpMethod": "POST",
    }
    (folder / "library.v1.json").write_text(json.dumps(LIBRARY))
    (folder / "library.v2beta.json").write_text(json.dumps(preview))
    (folder / "index.json").write_text("{}")
    return folder
