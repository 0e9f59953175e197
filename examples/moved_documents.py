"""The same document behind other words: found by content, moved, and partly computed again.

    python examples/moved_documents.py

Asks twice about one document, each time behind another note: exactly, and with approximate reuse.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

from shoal.core.protocols import Completion, Request, Sampling
from shoal.core.records import Message
from shoal.engine.kvshare.sharing import attach
from shoal.engine.local import LocalEngine

TEXT = Path(__file__).parent / "documents" / "constitution" / "2-bill-of-rights.md"
NOTES = ("Ticket 12.", "I have ten minutes until the meeting. Somebody left this on my desk.")


def ask(note: str, reuse: Literal["exact", "approx"]) -> Request:
    text = f"{note}\n\n{TEXT.read_text(encoding='utf-8')[:2500]}\n\nWhat is this text about?"
    # A salt of its own, so that neither way finds what the other has computed.
    return Request((Message("user", text),), Sampling(max_tokens=24), salt=reuse, reuse=reuse)


def show(done: Completion) -> None:
    print(f"  {done.usage.first_token_ms:5.0f} ms to the first token; {done.how}")
    print(f"  {' '.join(done.text.split())}")


async def main() -> None:
    engine = LocalEngine.open()
    kvshare = attach(engine)
    await engine.generate([Request((Message("user", "Hello."),), Sampling(max_tokens=2))])
    ways: tuple[Literal["exact", "approx"], ...] = ("exact", "approx")
    for reuse in ways:
        print(f"reuse={reuse!r}")
        for note in NOTES:
            (done,) = await engine.generate([ask(note, reuse)])
            show(done)
    print(f"{len(kvshare.store)} segments stored, {kvshare.store.bytes / 1e6:.0f} MB")
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
