"""One call from what a user wrote behind ``--model`` to an engine."""

from __future__ import annotations

from collections.abc import Callable

from shoal.core.protocols import Engine


def open_engine(
    model: str,
    *,
    model_name: str | None = None,
    dtype: str = "bf16",
    sharing: bool = True,
    kv_bytes: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Engine:
    """An engine for a catalog name, GGUF file, model folder, hub name or endpoint URL.

    ``model_name`` is the model's name at an endpoint; the other options are for local models.
    Raises :class:`ModelError` or :class:`RemoteError` in one sentence where it cannot be had.
    """
    if model.startswith(("http://", "https://")):
        from shoal.engine.remote import RemoteEngine

        return RemoteEngine.open(model, model_name)
    from shoal.engine.local import KV_BYTES, LocalEngine

    return LocalEngine.open(
        model,
        dtype=dtype,
        sharing=sharing,
        kv_bytes=KV_BYTES if kv_bytes is None else kv_bytes,
        progress=progress,
    )
