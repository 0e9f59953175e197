"""The account as a backend of a gateway: calls of ``aws.SERVICE.Operation``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from shoal.core.records import ToolSpec
from shoal.envs.company.account import Account, CloudDown, Refused
from shoal.tools.gateway.backends import BackendFault


class Cloud:
    """Answers calls of AWS tools from an account; a call at a time, as state is one."""

    keyed = False

    def __init__(self, account: Account) -> None:
        self.account = account
        self._lock = asyncio.Lock()

    async def call(self, spec: ToolSpec, arguments: Mapping[str, Any], key: str) -> str:
        """Make the call; its answer as JSON."""
        _, service, operation = spec.name.split(".")
        async with self._lock:
            try:
                answer = await asyncio.to_thread(self.account.call, service, operation, arguments)
            except Refused as error:
                raise BackendFault("failed", str(error)) from error
            except ValueError as error:
                raise BackendFault("bad_arguments", str(error), sent=False) from error
            except CloudDown as error:
                raise BackendFault("unavailable", str(error), sent=error.sent) from error
        return json.dumps(answer, ensure_ascii=False)
