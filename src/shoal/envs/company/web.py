"""The baseline without tools: one generic HTTP request, and pages of documentation to read.

It stands for a browser. Whoever works this way reads a service's page to find an operation, the
operation's page to learn its arguments, and writes the request as it goes over the wire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from shoal.core.records import ToolSpec
from shoal.envs.company.account import REGION, Account
from shoal.envs.company.solving import Bill
from shoal.envs.company.tasks import Task, filled
from shoal.tools.gateway.shelf import Tools
from shoal.tools.retrieval.prompt import tokens
from shoal.tools.text import brief


class Pages:
    """Documentation as pages: all services, one service, one operation."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._services: dict[str, list[str]] = {}
        for name in tools.names:
            if name.startswith("aws."):
                self._services.setdefault(name.split(".")[1], []).append(name)

    def index(self) -> str:
        """The names of all services."""
        return "\n".join(self._services)

    def service(self, name: str) -> str:
        """A service's operations, a line each."""
        lines = []
        for tool in self._services.get(name, ()):
            about = brief(self._tools[tool].description, 120)
            lines.append(f"{tool.rpartition('.')[2]}: {about}")
        return "\n".join(lines)

    def operation(self, tool: str) -> str:
        """One operation: documentation, arguments, and how it is asked for over HTTP."""
        spec: ToolSpec = self._tools[tool]
        return f"{spec.description}\n{json.dumps(dict(spec.parameters), indent=1)}"


def request_of(
    account: Account, service: str, operation: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The HTTP request of a call: method, path, headers, body; unsigned, as this is loopback."""
    client = account.client(service)
    model = client.meta.service_model.operation_model(operation)
    context = {"client_region": REGION, "client_config": client.meta.config, "auth_type": "none"}
    given = account.whole(service, operation, arguments)
    url, extra, _ = client._resolve_endpoint_ruleset(model, given, context)
    prepared = client._convert_to_request_dict(
        given, model, endpoint_url=url, context=context, headers=extra
    )
    scope = f"company/20260101/{REGION}/{client.meta.service_model.signing_name}/aws4_request"
    headers = {str(k): v if isinstance(v, str) else str(v) for k, v in prepared["headers"].items()}
    headers["Authorization"] = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=, Signature="
    body = prepared["body"]
    if isinstance(body, dict):
        body = httpx.QueryParams(body).__str__()
    return {
        "method": prepared["method"],
        "url": prepared["url"],
        "headers": headers,
        "body": body.decode() if isinstance(body, bytes) else body,
    }


def sent(account: Account, request: Mapping[str, Any]) -> tuple[int, str]:
    """Send a request to the account and nowhere else; status and text.

    Raises ``ValueError`` for any other address.
    """
    url = httpx.URL(str(request["url"]))
    if (url.scheme, url.host, url.port) != ("http", "127.0.0.1", httpx.URL(account.url).port):
        raise ValueError(f"{url} is not the company's address.")
    answer = httpx.request(
        request["method"],
        url,
        headers=dict(request["headers"]),
        content=request["body"],
        timeout=20,
    )
    return answer.status_code, answer.text


def parsed(account: Account, service: str, operation: str, status: int, text: str) -> Any:
    """What an answer says, as JSON can hold it."""
    from botocore.parsers import create_parser

    model = account.client(service).meta.service_model
    parser = create_parser(model.resolved_protocol)
    answer = {"status_code": status, "headers": {}, "body": text.encode()}
    found = parser.parse(answer, model.operation_model(operation).output_shape)
    found.pop("ResponseMetadata", None)
    return json.loads(json.dumps(found, default=str))


async def scripted(account: Account, pages: Pages, task: Task, bill: Bill) -> str:
    """A script that reads the pages it would need and writes the requests; why it stopped."""
    answers: dict[str, Any] = {}
    read: set[str] = set()
    for step in task.steps:
        _, service, operation = step.tool.split(".")
        for page, text in (
            ("index", pages.index),
            (service, lambda: pages.service(service)),  # noqa: B023  (called at once)
            (step.tool, lambda: pages.operation(step.tool)),  # noqa: B023
        ):
            if page not in read:  # a page stays in what was read
                read.add(page)
                bill.finds += 1
                bill.tokens_in += tokens(text())
        request = request_of(account, service, operation, filled(step.arguments, answers))
        bill.calls += 1
        bill.tokens_out += tokens(json.dumps(request))
        status, text_of = sent(account, request)
        bill.tokens_in += tokens(text_of)
        if status >= 400:
            bill.wrong += 1
            return f"{status}: {text_of[:200]}"
        answers[step.name] = parsed(account, service, operation, status, text_of)
    return ""
