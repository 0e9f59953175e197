"""Which adapter a body asks for: by the model's name, as ``base:adapter`` or the adapter's own name
(vLLM's habit), or by a field ``adapter`` beside the base's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from shoal.core.errors import nearest
from shoal.core.protocols import Adaptable, Engine, Request
from shoal.server.errors import ApiError


def names_of(engine: Engine) -> tuple[str, ...]:
    """The adapters of an engine; none where it has no notion of them."""
    return engine.adapter_names if isinstance(engine, Adaptable) else ()


def id_of(base: str, adapter: str | None) -> str:
    """The name of a model that is looked at through an adapter."""
    return base if adapter is None else f"{base}:{adapter}"


def adapter_of(model: str, adapter: str | None, base: str, known: Sequence[str]) -> str | None:
    """The adapter that a body means, None for the model itself.

    Raises :class:`ApiError`: 404 for a model or an adapter there is not, 400 where two are named.
    """
    named = None
    if model != base:
        named = model.removeprefix(f"{base}:")
        if named not in known:
            ids = [base, *(id_of(base, one) for one in known)]
            guess = nearest(model, [*ids, *known]) or f" It serves {base!r}."
            message = f"This server has no model {model!r}.{guess}"
            raise ApiError(404, message, param="model", code="model_not_found")
    if adapter is None:
        return named
    if adapter not in known:
        guess = nearest(adapter, known) or f" It has {', '.join(known) or 'none'}."
        message = f"This server has no adapter {adapter!r}.{guess}"
        raise ApiError(404, message, param="adapter", code="model_not_found")
    if named not in (None, adapter):
        message = f"model names the adapter {named!r}, and adapter {adapter!r}: give one."
        raise ApiError(400, message, param="adapter")
    return adapter


def through(requests: Iterable[Request], adapter: str | None) -> list[Request]:
    """The same requests through an adapter."""
    return [replace(request, adapter=adapter) for request in requests]
