"""A job: a team, a task and what it reads, kept in a run folder from which it can go on.

The folder holds all that a run depends on (``config.toml``, ``team.toml``, ``material.json``,
``log.sqlite``), so it can be resumed although the files it read have changed since.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from shoal.agents.config import dump_team, parse_team
from shoal.agents.events import OnEvent, TeamResult
from shoal.agents.material import Material
from shoal.agents.outside import Ask
from shoal.agents.room import material_room
from shoal.agents.scheduler import run
from shoal.agents.team import Agent, Team
from shoal.core.chunks import chunk, fit
from shoal.core.documents import Document
from shoal.core.errors import InputError
from shoal.core.files import write_text
from shoal.core.log import EventLog
from shoal.core.protocols import Engine, Segment
from shoal.core.runs import Run, create_run

PART_TOKENS = 1500
"""Tokens of a part, where members read parts and the context allows more."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run was started with, beside team, task and material; written to config.toml."""

    model: str
    model_name: str = ""
    dtype: str = "bf16"
    sharing: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """Something a team can work on, or go on with."""

    run: Run
    team: Team
    task: str
    material: Material
    settings: Settings


@dataclass(frozen=True, slots=True)
class Prepared:
    """Material for a team, and what the user must know about it (what was cut or split)."""

    material: Material
    notes: tuple[str, ...] = field(default=())


def prepare(team: Team, task: str, documents: Sequence[Document], engine: Engine) -> Prepared:
    """Fit documents to what the team's prompts leave free; nothing is cut without a note.

    Members that read parts get chunks that are cut at headings and paragraphs. Raises
    :class:`InputError` where the context has no room for material at all.
    """
    room = material_room(team, task, engine)
    for free in (room.whole, room.part):
        if documents and free is not None and free < 1:
            raise InputError(
                f"The prompts of team {team.name!r} fill the context of "
                f"{engine.info.context_tokens} tokens: shorten roles or answers, or take a model "
                "with a longer context."
            )

    def count(text: str) -> int:
        return engine.count_tokens((Segment(text),))

    headed = [replace(document, text=_headed(document)) for document in documents]
    notes: list[str] = []
    parts: tuple[str, ...] = ()
    if _reads(team, "part"):
        limit = min(PART_TOKENS, room.part or PART_TOKENS)
        whole = "\n\n".join(document.text for document in headed)
        parts = tuple(piece.text for piece in chunk(whole, count, limit))
        notes.append(
            f"The documents have {count(whole):,} tokens and are read in {len(parts)} parts of "
            f"at most {limit:,}."
        )
    kept = headed
    if _reads(team, "all") and room.whole is not None:
        fitted = fit(headed, room.whole, count)
        kept = list(fitted.documents)
        notes.append(str(fitted))
        if fitted.cut:
            notes.append("To read all of it in parts, use a team such as map-reduce.")
    text = "\n\n".join(document.text for document in kept) if _reads(team, "all") else ""
    return Prepared(Material(text, parts), tuple(notes))


def create(
    team: Team, task: str, material: Material, settings: Settings, *, root: Path | None = None
) -> Job:
    """A new run folder with all that the job depends on."""
    task = task or team.task
    run_ = create_run({"task": task, "team": team.name, **asdict(settings)}, root=root)
    try:
        write_text(run_.folder / "team.toml", dump_team(team))
        write_text(run_.folder / "material.json", json.dumps(asdict(material), ensure_ascii=False))
    except OSError as error:
        raise InputError(f"Cannot write to {run_.folder}: {error.strerror}.") from error
    return Job(run_, team, task, material, settings)


def reopen(run_: Run) -> Job:
    """The job of a run folder; raises :class:`InputError` where a file of it is missing."""
    config = run_.config()
    names = Settings.__dataclass_fields__
    try:
        team = (run_.folder / "team.toml").read_text(encoding="utf-8")
        stored = json.loads((run_.folder / "material.json").read_text(encoding="utf-8"))
        material = Material(stored["text"], tuple(stored["parts"]))
        settings = Settings(**{name: config[name] for name in names if name in config})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Run {run_.id} cannot be resumed: {error}.") from error
    return Job(run_, parse_team(team, source="team.toml"), str(config["task"]), material, settings)


async def work(
    job: Job,
    engine: Engine,
    on_event: OnEvent | None = None,
    *,
    ask: Ask | None = None,
    open_log: Callable[[Run], EventLog] = Run.log,
) -> TeamResult:
    """Run the job, or go on with it, on its own log.

    Raises :class:`InputError` while another process works on the same run.
    """
    with _alone(job.run), open_log(job.run) as log:
        return await run(
            job.team,
            job.task,
            job.material,
            engine=engine,
            log=log,
            seed=job.settings.seed,
            run_id=job.run.id,
            on_event=on_event,
            ask=ask,
        )


async def work_again(job: Job, engine: Engine, on_event: OnEvent | None = None) -> TeamResult:
    """The same job from the beginning on another engine, to compare; its log is kept beside."""
    path = job.run.folder / "unshared.sqlite"
    return await work(job, engine, on_event, open_log=lambda _: EventLog(path))


@contextmanager
def _alone(run_: Run) -> Iterator[None]:
    """Hold the run's lock, which the system takes back from a process that dies."""
    lock = FileLock(run_.folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"Run {run_.id} is going on in another process: wait for it.") from error
    try:
        yield
    finally:
        lock.release()


def _headed(document: Document) -> str:
    """The text under its title, unless it begins with a heading of its own."""
    text = document.text.strip()
    return text if text.startswith("#") else f"# {document.title}\n\n{text}"


def _reads(team: Team, how: str) -> bool:
    return any(
        member.reads == how if isinstance(member, Agent) else _reads(member, how)
        for member in team.members
    )
