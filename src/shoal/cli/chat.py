"""``shoal chat``: talk to a model in the terminal, or ask it one question."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from shoal.cli.console import console, errors, print_json
from shoal.core.errors import EngineError, InputError

if TYPE_CHECKING:
    from shoal.core.protocols import Completion, Engine, Sampling
    from shoal.core.records import Message, Usage

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def chat(
    question: str = typer.Argument("", help="Ask this and leave; text on stdin is added to it."),
    model: str = typer.Option(
        "smollm2-135m", "--model", "-m", help="Name, GGUF file, folder, hub name or URL."
    ),
    model_name: str = typer.Option("", help="The model's name at an endpoint."),
    dtype: str = typer.Option("bf16", help="bf16, fp32 (exact, slower) or packed (faster alone)."),
    system: str = typer.Option("", help="What the model is told before anything else."),
    max_tokens: int = typer.Option(512, min=1, help="Tokens of an answer at most."),
    temperature: float = typer.Option(0.0, min=0.0, max=2.0, help="0 is greedy."),
    seed: int = typer.Option(0, help="Every draw follows from it."),
    json: bool = typer.Option(False, "--json", help="Print the answer to one question as JSON."),
) -> None:
    """Talk to a model. /reset forgets what was said, /exit or Ctrl-D leaves."""
    from shoal.cli.progress import loading
    from shoal.core.protocols import Sampling
    from shoal.engine.open import open_engine

    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    asked = "\n\n".join(filter(None, (question.strip(), piped.strip())))
    if not asked and (json or not sys.stdin.isatty()):
        raise InputError("There is nothing to answer: give a question, or text on stdin.")
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    with loading(errors) as progress:
        engine = open_engine(model, model_name=model_name or None, dtype=dtype, progress=progress)
    with asyncio.Runner() as runner:
        conversation = _Conversation(engine, sampling, system, runner)
        try:
            if asked:
                conversation.answer_once(asked, json=json)
            else:
                conversation.talk()
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        finally:
            runner.run(engine.close())


class _Conversation:
    def __init__(
        self, engine: Engine, sampling: Sampling, system: str, runner: asyncio.Runner
    ) -> None:
        self._engine = engine
        self._sampling = sampling
        self._system = system
        self._runner = runner
        self._said: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        from shoal.core.records import Message

        self._said = [Message("system", self._system)] if self._system else []

    def answer_once(self, question: str, *, json: bool) -> None:
        """Print one answer, and what it cost on stderr."""
        completion = self._ask(question, (lambda _: None) if json else _write)
        if json:
            print_json(
                {
                    "answer": completion.text,
                    "finish": completion.finish,
                    "model": self._engine.info.model,
                    "how": completion.how,
                    "usage": asdict(completion.usage),
                }
            )
        else:
            _write("\n")
            errors.print(f"[dim]{_cost(completion.usage)}[/]", highlight=False)

    def talk(self) -> None:
        """Ask and answer until the user leaves."""
        import readline  # noqa: F401  (gives input() its history and its editing keys)

        _note(f"{self._engine.info.model}: /reset forgets, /exit leaves")
        while (line := _line()) is not None and line not in ("/exit", "/quit"):
            if line == "/reset":
                self.reset()
                _note("Forgotten.")
            elif line.startswith("/"):
                _note(f"There is no {line}: /reset or /exit.")
            elif line:
                self._turn(line)

    def _turn(self, line: str) -> None:
        """One answer; a failed or interrupted one leaves the conversation as it was."""
        try:
            completion = self._ask(line, _write)
        except EngineError as error:
            errors.print(str(error), style="red", markup=False)
        except KeyboardInterrupt:
            errors.print("\n[dim]Interrupted.[/]")
        else:
            _write("\n")
            _note(_cost(completion.usage))

    def _ask(self, text: str, write: Callable[[str], None]) -> Completion:
        from shoal.core.protocols import Request
        from shoal.core.records import Message

        prompt = (*self._said, Message("user", text))
        (completion,) = self._runner.run(
            self._engine.generate(
                [Request(prompt, self._sampling)], lambda delta: write(delta.text)
            )
        )
        if completion.error is not None:
            raise EngineError(completion.error)
        self._said = [*prompt, Message("assistant", completion.text)]
        return completion


def _line() -> str | None:
    """What the user types; None where there is no more."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _note(text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False)


def _write(text: str) -> None:
    """Print as it comes, without what could steer the terminal."""
    sys.stdout.write(_CONTROL.sub("", text))
    sys.stdout.flush()


def _cost(usage: Usage) -> str:
    seconds = (usage.total_ms - usage.first_token_ms) / 1e3
    speed = f", {(usage.decoded_tokens - 1) / seconds:.1f} tok/s" if seconds > 0 else ""
    return (
        f"{usage.decoded_tokens} tokens{speed}, first after {usage.first_token_ms:.0f} ms, "
        f"{usage.shared_tokens} of {usage.prompt_tokens} prompt tokens shared"
    )
