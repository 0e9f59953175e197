"""``shoal serve``: a model behind an OpenAI-compatible address."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from shoal.cli.console import errors
from shoal.core.errors import ConfigError

if TYPE_CHECKING:
    from shoal.core.protocols import Engine
    from shoal.server.tenants import Keyring

REMEMBERED = 1024
"""Answers of an endpoint that are kept for exact duplicates of the same tenant."""


def serve(
    model: str = typer.Option(
        "smollm2-135m", "--model", "-m", help="Name, GGUF file, folder, hub name, URL or team:NAME."
    ),
    model_name: str = typer.Option("", help="The model's name at an endpoint."),
    upstream: str = typer.Option(
        "", help="Plan and pass on to this OpenAI-compatible endpoint instead."
    ),
    adapters: Path | None = typer.Option(
        None, help="Folder of adapters: NAME.safetensors of shoal, or NAME/ as PEFT writes it."
    ),
    adapter_memory: int = typer.Option(
        256, min=1, help="Assembled adapters that are kept, in MiB, beside what they store."
    ),
    concurrency: int = typer.Option(64, min=1, help="Requests at the endpoint at a time."),
    dtype: str = typer.Option("bf16", help="bf16, fp32 (exact, slower) or packed (faster alone)."),
    kv_memory: int = typer.Option(1024, help="KV cache at most, in MiB."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    keys: Path | None = typer.Option(None, help="File of tenants, their keys and limits."),
    api_key_env: str = typer.Option(
        "", help="Environment variable with the one key that clients must send."
    ),
    reuse: str = typer.Option(
        "exact", help="approx: cache of equal text may be moved between a key's prompts."
    ),
    batches: Path | None = typer.Option(
        None, help="Folder of files and batches; else one for the model in the cache folder."
    ),
    max_body: int = typer.Option(16, min=1, help="Largest request, in MiB."),
    max_running: int = typer.Option(256, min=1, help="Requests answered at a time."),
    max_waiting: int = typer.Option(1024, min=0, help="Requests that may wait; then 429."),
    store_memory: int = typer.Option(64, min=0, help="Responses kept to be continued, in MiB."),
    timeout: float = typer.Option(600.0, min=0.1, help="Seconds a request may take."),
    stop_timeout: float = typer.Option(30.0, min=0.0, help="Seconds to finish when stopped."),
) -> None:
    """Serve a model to any OpenAI client; requests that begin alike share what they can."""
    from shoal.cli.progress import loading
    from shoal.core.files import cache_folder
    from shoal.server.serve import address_of, listen
    from shoal.server.serve import serve as serve_on
    from shoal.server.service import ServerLimits

    keyring = _keyring(keys, api_key_env, reuse)
    with listen(host, port, keyring=keyring) as sock:
        if upstream:
            engine: Engine = _in_front_of(upstream, model_name, concurrency)
        else:
            with loading(errors) as progress:
                engine = _opener(model)(
                    model,
                    model_name=model_name or None,
                    dtype=dtype,
                    kv_bytes=kv_memory << 20,
                    progress=progress,
                )
        if adapters is not None:
            _load_adapters(engine, adapters, adapter_memory << 20)
        name = engine.info.model
        errors.print(f"Serving {name} at {address_of(sock)} (Ctrl-C stops)", highlight=False)
        limits = ServerLimits(
            max_body_bytes=max_body << 20,
            max_running=max_running,
            max_waiting=max_waiting,
            request_seconds=timeout,
            stop_seconds=stop_timeout,
            stored_bytes=store_memory << 20,
        )
        folder = batches or cache_folder() / "batches" / re.sub(r"[^\w.-]+", "-", name)
        serve_on(engine, sock, model_name=name, keyring=keyring, limits=limits, batch_folder=folder)
        errors.print("Stopped.")


def _opener(model: str) -> Callable[..., Engine]:
    """What opens a model, or a team that is served as one (``team:NAME[@MODEL]``)."""
    if model.startswith("team:"):
        from shoal.agents.team_engine import open_model_or_team

        return open_model_or_team
    from shoal.engine.open import open_engine

    return open_engine


def _load_adapters(engine: Engine, folder: Path, limit_bytes: int) -> None:
    """Give an engine a folder's adapters, and say how much they take."""
    from shoal.engine.compute import compute
    from shoal.engine.local import LocalEngine

    if not isinstance(engine, LocalEngine):
        raise ConfigError(
            f"--adapters needs a model in this process, but {engine.info.model} is elsewhere: "
            "load them there, and name them as models."
        )
    found = engine.adapters
    found.bank.limit_bytes = limit_bytes
    compute.call(lambda: found.load_folder(folder))
    each = found.resident_bytes / len(found.names) / 2**20
    errors.print(
        f"{len(found.names)} adapters, {each:.1f} MiB each: {', '.join(found.names)}",
        highlight=False,
    )


def _in_front_of(upstream: str, model_name: str, concurrency: int) -> Engine:
    from shoal.engine.upstream import UpstreamEngine

    return UpstreamEngine.open(
        upstream, model_name or None, concurrency=concurrency, remember=REMEMBERED
    )


def _keyring(keys: Path | None, api_key_env: str, reuse: str) -> Keyring:
    from shoal.server.tenants import Keyring

    if reuse not in ("exact", "approx"):
        raise ConfigError(f"There is no reuse {reuse!r}: choose exact or approx.")
    allowed: Literal["exact", "approx"] = "approx" if reuse == "approx" else "exact"
    if keys is not None and allowed == "approx":
        raise ConfigError("With --keys the file says who may have cache moved (reuse).")
    if keys is not None and api_key_env:
        raise ConfigError("Give --keys or --api-key-env, not both: put the key into the file.")
    if keys is not None:
        return Keyring.read(keys)
    if not api_key_env:
        return Keyring(reuse=allowed)
    key = os.environ.get(api_key_env)
    if not key:
        raise ConfigError(f"The environment variable {api_key_env} is empty: put a key into it.")
    return Keyring.single(key, reuse=allowed)
