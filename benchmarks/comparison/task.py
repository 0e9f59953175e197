"""The task that four programs work on: three readers and an editor on one document.

Each reader reads the document for one thing, all at once; the editor reads the document and the
three notes and writes the answer. What is said to a model stands here, so that the programs
differ in nothing but how a framework is told to say it.
"""

from __future__ import annotations

from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "examples" / "documents" / "jargon" / "01-welcome.md"

PREAMBLE = "You work in a team. Do what you are told, briefly and in plain words."
TASK = "What is this text for, and who should read it?"
READERS = {
    "purpose": "Say what the text is for.",
    "audience": "Say who should read it.",
    "doubts": "Say what the text leaves open.",
}
EDITOR = "Write the final answer to the task out of the notes of the others, in two sentences."
TOKENS = 64
TEMPERATURE = 0.0


def document() -> str:
    """The text that all of them read."""
    return DOCUMENT.read_text(encoding="utf-8").strip()
