"""Texts of 200 to 400 tokens, prompts around them, and texts that move from one to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal.core.claims import Bench
from shoal.core.claims.items import items
from shoal.models.loading import Model

SOURCES = Path(__file__).parents[2] / "examples" / "documents"
SEGMENT = (200, 400)  # tokens of a moved text
SYSTEMS = (
    "You are a careful clerk who answers from the text you are given, in plain words.",
    "You help pupils with their homework. Be brief and friendly, and never make things up.",
    "You work for a newspaper and check what others have written before it is printed tonight.",
)
NOTES = (
    "Ticket {n}.",
    "This is request {n} of today. Please read the following carefully before you answer.",
    "My name is {who}, I have {n} minutes until the meeting begins, and nobody has told me what it "
    "is about. Somebody left this on my desk this morning, and I need to know what is in it.",
    "Hello! {who} here again, about case {n}. I know you have seen some of this before. Please "
    "look at it with fresh eyes, because the last answer was not what we had hoped for, and the "
    "people upstairs want to have it on paper before they leave. Here it is in full.",
)
WHO = ("Ada", "Boris", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana")
QUESTIONS = (
    "What is the most important point of this text?",
    "Who or what is this text about?",
    "Name one thing that this text says must be done.",
    "Give this text a title.",
    "Which word of this text would a beginner not understand?",
)


class Corpus:
    """Texts of 200 to 400 tokens, and prompts around them, as tokens."""

    def __init__(self, model: Model, bench: Bench) -> None:
        self.model, self.bench = model, bench
        self.texts = self._documents()

    def tokens(self, text: str, special: bool = True) -> tuple[int, ...]:
        return tuple(self.model.tokenizer.encode(text, special=special))

    def _documents(self) -> list[tuple[int, ...]]:
        """Runs of whole paragraphs; the files in turn, so that neighbours differ."""
        files: list[list[tuple[int, ...]]] = []
        for path in sorted(SOURCES.glob("*/*.md")):
            runs, held = [], []  # type: ignore[var-annotated]
            for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
                part = self.tokens(paragraph.strip() + "\n\n", special=False)
                if len(held) + len(part) > SEGMENT[1]:
                    runs, held = ([*runs, tuple(held)] if len(held) >= SEGMENT[0] else runs), []
                if len(part) <= SEGMENT[1]:
                    held = [*held, *part]
            files.append(runs)
        deepest = max(map(len, files))
        return [runs[i] for i in range(deepest) for runs in files if i < len(runs)]

    def few_shot(self, index: int) -> tuple[int, ...]:
        """Some GSM8K questions with their answers."""
        block: tuple[int, ...] = ()
        for item in items("gsm8k")[5 * index : 5 * index + 5]:
            part = self.tokens(f"{item.question}\nAnswer: {item.answer}\n\n", special=False)
            if len(block) + len(part) <= SEGMENT[1]:
                block += part
        return block

    def before(self, tenant: int, note: str) -> tuple[int, ...]:
        return self.tokens(
            f"<|im_start|>system\n{SYSTEMS[tenant]}<|im_end|>\n<|im_start|>user\n{note}\n\n"
        )

    def after(self, question: str) -> tuple[int, ...]:
        return self.tokens(f"{question}<|im_end|>\n<|im_start|>assistant\n")


def note(draw: np.random.Generator) -> str:
    """A beginning of 3 to 80 tokens that nobody else has."""
    words = {"n": int(draw.integers(1000, 9999)), "who": WHO[draw.integers(len(WHO))]}
    return NOTES[draw.integers(len(NOTES))].format(**words)


@dataclass(frozen=True)
class Case:
    """Texts, each in the context it was computed in, and the one that they are moved to."""

    before: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]
    behind: tuple[tuple[int, ...], ...]
    after: tuple[int, ...]


def cases_of(bench: Bench, corpus: Corpus) -> list[Case]:
    """Twenty prompts with one text and fourteen with two; no text twice."""
    documents = corpus.texts[:36]
    blocks = [corpus.few_shot(index) for index in range(12)]
    alone = [(text,) for text in (*documents[:12], *blocks[:8])]
    rest = [*documents[12:], *blocks[8:]]
    groups = [*alone, *zip(rest[::2], rest[1::2], strict=True)]
    if bench.smoke:
        groups = [groups[0], groups[-1]]
    found = []
    for index, texts in enumerate(groups):
        draw = bench.generator("case", index)
        here, *elsewhere = draw.permutation(len(SYSTEMS)).tolist()
        behind = tuple(
            corpus.before(one, note(draw)) for one, _ in zip(elsewhere, texts, strict=False)
        )
        question = QUESTIONS[draw.integers(len(QUESTIONS))]
        found.append(Case(corpus.before(here, note(draw)), texts, behind, corpus.after(question)))
    return found
