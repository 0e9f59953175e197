"""A tool's version changes with what callers rely on, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from shoal.core.records import ToolSpec, from_json, to_json

SPEC = ToolSpec("aws.s3.DeleteBucket", "Deletes a bucket.", {"type": "object"}, "destroy")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "aws.s3.DropBucket"},
        {"description": "Deletes a bucket and its objects."},
        {"parameters": {"type": "object", "required": ["Bucket"]}},
        {"side_effect": "write"},
        {"service": "Amazon S3"},
    ],
)
def test_a_change_that_callers_see_changes_the_version(change: dict[str, object]) -> None:
    assert replace(SPEC, **change).version != SPEC.version


def test_the_version_is_of_the_content_and_not_of_where_it_runs() -> None:
    same = replace(
        SPEC, origin="elsewhere", served=False, cost=3, parameters=MappingProxyType(SPEC.parameters)
    )
    assert same.version == SPEC.version
    assert from_json(ToolSpec, to_json(SPEC)).version == SPEC.version
    assert len(SPEC.version) == 16
