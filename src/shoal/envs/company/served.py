"""Which operations the local cloud answers: by the handlers it has, per service.

The list is kept with the package, for the version it was made of; another version of moto is asked
anew, which takes some seconds.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from shoal.core.errors import MissingExtra
from shoal.core.records import ToolSpec
from shoal.tools.gateway.shelf import Tools

KEPT = Path(__file__).parent / "served.json"

OTHERWISE = {
    "lambda": "awslambda",
    "application-autoscaling": "applicationautoscaling",
    "config": "config",
    "email": "ses",
}
"""Services whose module in moto has another name than botocore's, without its hyphens."""

WITHOUT_HANDLER = {
    "s3": frozenset(
        """
        CompleteMultipartUpload CreateBucket CreateMultipartUpload DeleteObjects
        GetBucketLifecycleConfiguration GetBucketNotificationConfiguration GetBucketTagging
        ListBuckets PutBucketAccelerateConfiguration PutBucketAcl PutBucketCors
        PutBucketEncryption PutBucketInventoryConfiguration PutBucketLifecycleConfiguration
        PutBucketLogging PutBucketNotificationConfiguration PutBucketOwnershipControls
        PutBucketPolicy PutBucketReplication PutBucketTagging PutBucketVersioning
        PutBucketWebsite PutObjectLockConfiguration PutPublicAccessBlock RestoreObject
        SelectObjectContent
        """.split()  # noqa: SIM905
    )
}
"""Operations that moto answers in one function for all requests of a kind."""


@lru_cache(maxsize=1)
def served_operations() -> Mapping[str, tuple[str, ...]]:
    """Operations by service of botocore; raises :class:`MissingExtra` without moto."""
    try:
        version = importlib.metadata.version("moto")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra("A company", "company") from error
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    if kept.get("moto") == version:
        return {name: tuple(found) for name, found in kept["operations"].items()}
    return dict(handled())


def handled() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Ask moto: an operation is served where a response class has a method of its name."""
    import botocore.session
    from botocore import xform_name
    from moto.backends import list_of_moto_modules
    from moto.core.responses import BaseResponse

    modules = set(list_of_moto_modules())
    session = botocore.session.get_session()
    for service in session.get_available_services():
        module = OTHERWISE.get(service, service.replace("-", ""))
        if module not in modules:
            continue
        try:
            responses = importlib.import_module(f"moto.{module}.responses")
        except ModuleNotFoundError:
            continue  # an alias of another service
        methods: set[str] = set()
        for _, kind in inspect.getmembers(responses, inspect.isclass):
            if issubclass(kind, BaseResponse) and kind is not BaseResponse:
                methods |= set(dir(kind)) - set(dir(BaseResponse))
        operations = session.get_service_model(service).operation_names
        also = WITHOUT_HANDLER.get(service, ())
        found = tuple(x for x in operations if xform_name(x) in methods or x in also)
        if found:
            yield service, found


def write_kept() -> None:
    """Make the list that is kept, for the version of moto that is installed."""
    found = {
        "moto": importlib.metadata.version("moto"),
        "botocore": importlib.metadata.version("botocore"),
        "operations": dict(handled()),
    }
    KEPT.write_text(json.dumps(found, separators=(",", ":")) + "\n")


class Offered:
    """A catalogue in which exactly those AWS tools are served that the local cloud answers."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._served = {
            f"aws.{service}.{operation}"
            for service, operations in served_operations().items()
            for operation in operations
        }

    @property
    def names(self) -> Sequence[str]:
        """All names of the catalogue."""
        return self._tools.names

    @property
    def served(self) -> int:
        """How many of them are answered."""
        return sum(name in self._served for name in self.names)

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __getitem__(self, name: str) -> ToolSpec:
        """A tool, with the truth about whether it is served."""
        return replace(self._tools[name], served=name in self._served)
