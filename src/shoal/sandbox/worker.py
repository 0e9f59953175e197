"""The inside of a session: runs what it is sent, and speaks JSON lines with the outside.

Started as a script with the bare interpreter; it imports nothing of this package. Whoever runs
code here may change all of it, so it decides nothing: limits, permissions and counts are the
outside's and the kernel's.
"""

from __future__ import annotations

import json
import os
import sys
from _ast import Expr, Expression

TYPE_CHECKING = False  # importing typing takes milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PARSE_ONLY = 0x400  # what ``ast.PyCF_ONLY_AST`` is; importing ``ast`` takes milliseconds


def limit(limits: dict[str, Any]) -> None:
    """Hold this process and all it starts to limits that cannot be raised again."""
    import resource

    for name, value in limits.items():
        soft, hard = value if isinstance(value, list) else (value, value)
        resource.setrlimit(getattr(resource, name), (soft, hard))


class Line:
    """Messages to and from the outside, on descriptors that printed text does not reach."""

    def __init__(self) -> None:
        self.incoming = os.fdopen(os.dup(0), "rb")
        self.outgoing = os.fdopen(os.dup(1), "wb")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)  # what is printed, by whatever means, goes one way

    def send(self, **message: Any) -> None:
        self.outgoing.write(json.dumps(message).encode() + b"\n")
        self.outgoing.flush()

    def receive(self) -> Any:
        text = self.incoming.readline()
        if not text:
            os._exit(0)
        return json.loads(text)


def caller(line: Line, name: str) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        line.send(kind="call", name=name, arguments=arguments)
        answer = line.receive()
        if "error" in answer:
            raise (
                PermissionError(answer["error"])
                if answer.get("refused")
                else RuntimeError(answer["error"])
            )
        return answer["value"]

    call.__name__ = name
    return call


def evaluate(code: str, space: dict[str, Any]) -> Any:
    """Run statements; the value of a last expression."""
    tree = compile(code, "<code>", "exec", PARSE_ONLY)
    last = None
    if tree.body and isinstance(tree.body[-1], Expr):
        last = Expression(tree.body.pop().value)
    exec(compile(tree, "<code>", "exec"), space)
    return eval(compile(last, "<code>", "eval"), space) if last is not None else None


def place(error: BaseException) -> int | None:
    """The last line of the code that an error passed through."""
    if isinstance(error, SyntaxError) and error.filename == "<code>":
        return error.lineno
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<code>":
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def answer(line: Line, message: dict[str, Any], space: dict[str, Any]) -> None:
    for alias, name in message.get("tools", {}).items():
        space[alias] = caller(line, name)
    try:
        value = evaluate(message["code"], space)
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            value = text = repr(value)
        sys.stdout.flush()
        line.send(kind="done", value=value) if len(text) < message["most"] else line.send(
            kind="raised", error="the result is larger than a message may be", line=None
        )
    except BaseException as error:
        kind = type(error).__name__
        said = "".join(str(error).splitlines(keepends=True)[:20])[:2000]
        try:  # noqa: SIM105  (contextlib takes time to import)
            sys.stdout.flush()
        except Exception:
            pass
        line.send(kind="raised", error=f"{kind}: {said}", line=place(error), type=kind)


def main() -> None:
    line = Line()
    limit(json.loads(sys.argv[1]))
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    line.send(kind="ready", pid=os.getpid())
    while True:
        message = line.receive()
        try:
            if message["kind"] == "run":
                answer(line, message, space)
            elif message["kind"] == "put":
                with open(message["name"], "wb") as file:
                    file.write(bytes.fromhex(message["data"]))
                line.send(kind="done", value=None)
            elif message["kind"] == "get":
                with open(message["name"], "rb") as file:
                    line.send(kind="done", value=file.read(message["most"]).hex())
        except OSError as error:
            line.send(kind="raised", error=f"{type(error).__name__}: {error}", line=None)


if __name__ == "__main__":
    main()
