"""``shoal serve``: a model behind an OpenAI-compatible address."""

from __future__ import annotations

import os

import typer

from shoal.cli.console import errors
from shoal.core.errors import ConfigError


def serve(
    model: str = typer.Option(
        "smollm2-135m", "--model", "-m", help="Name, GGUF file, folder, hub name or URL."
    ),
    model_name: str = typer.Option("", help="The model's name at an endpoint."),
    dtype: str = typer.Option("bf16", help="bf16 or fp32 (exact, slower)."),
    kv_memory: int = typer.Option(1024, help="KV cache at most, in MiB."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    api_key_env: str = typer.Option(
        "", help="Environment variable with the key that clients must send."
    ),
) -> None:
    """Serve a model to any OpenAI client; requests that begin alike share what they can."""
    from shoal.cli.progress import loading
    from shoal.engine.open import open_engine
    from shoal.server.serve import address_of, listen
    from shoal.server.serve import serve as serve_on

    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise ConfigError(f"The environment variable {api_key_env} is empty: put a key into it.")
    with listen(host, port, api_key=key) as sock:
        with loading(errors) as progress:
            engine = open_engine(
                model,
                model_name=model_name or None,
                dtype=dtype,
                kv_bytes=kv_memory << 20,
                progress=progress,
            )
        name = engine.info.model
        errors.print(f"Serving {name} at {address_of(sock)} (Ctrl-C stops)", highlight=False)
        try:
            serve_on(engine, sock, model_name=name, api_key=key)
        except KeyboardInterrupt:
            errors.print("Stopped.")
