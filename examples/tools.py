"""A server with a key, asked through its HTTP interface: a tool call that must fit its schema.

    python examples/tools.py

Any OpenAI client would do; httpx keeps the example free of further packages.
"""

from __future__ import annotations

import json
import threading
import time

import httpx

from shoal.engine.local import LocalEngine
from shoal.server.serve import address_of, listen, server_of
from shoal.server.tenants import Keyring

KEY = "sk-example"
BOOK = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Book a table.",
        "parameters": {
            "type": "object",
            "properties": {
                "people": {"type": "integer", "minimum": 1, "maximum": 12},
                "hour": {"type": "integer", "minimum": 17, "maximum": 22},
                "where": {"enum": ["inside", "terrace"]},
            },
            "required": ["people", "hour", "where"],
            "additionalProperties": False,
        },
    },
}


def main() -> None:
    keyring = Keyring.single(KEY)
    sock = listen("127.0.0.1", 0, keyring=keyring)
    server = server_of(LocalEngine.open(), model_name="smollm2-135m", keyring=keyring)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        with httpx.Client(
            base_url=address_of(sock), headers={"Authorization": f"Bearer {KEY}"}, timeout=120
        ) as client:
            ask(client)
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


def ask(client: httpx.Client) -> None:
    """Two requests that begin alike, and what sharing saved on the second."""
    for wish in ("A table for four at eight, outside.", "Two of us, at seven, inside please."):
        body = {
            "model": "smollm2-135m",
            "messages": [
                {"role": "system", "content": "You take bookings for a restaurant."},
                {"role": "user", "content": wish},
            ],
            "tools": [BOOK],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "temperature": 0,
        }
        answer = client.post("/chat/completions", json=body).raise_for_status().json()
        call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
        booking = json.loads(call["arguments"])
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        print(f"{wish}\n  {call['name']}({booking})")
        print(f"  {cached} of {answer['usage']['prompt_tokens']} prompt tokens were known already")


if __name__ == "__main__":
    main()
