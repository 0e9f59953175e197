"""Batches at work: one at a time for each tenant, resumed after a restart, stopped on request."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from shoal.core.errors import EngineError, ShoalError
from shoal.core.protocols import Engine
from shoal.engine.batch.jobs import Response, Task, result_line
from shoal.engine.batch.journal import Journal
from shoal.engine.batch.runner import BatchRun
from shoal.server.adapters import names_of
from shoal.server.batch_lines import LineError, Reading, read_lines
from shoal.server.batch_store import OPEN, BatchCard, BatchStore, Counts, Fault, Faults, Status
from shoal.server.tenants import Tenant

AGAIN_SECONDS = 5.0
"""Before an engine that failed is asked again."""


class BatchWorker:
    """Runs the batches of all tenants on one engine."""

    def __init__(self, engine: Engine, model_name: str, folder: Path) -> None:
        self._engine = engine
        self._model = model_name
        self._folder = folder
        self._queues: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._counts: dict[str, Counts] = {}
        self._stopping = False

    def store(self, tenant: Tenant) -> BatchStore:
        """A tenant's files and batches."""
        return BatchStore(self._folder, tenant)

    def wake(self, tenant: Tenant) -> None:
        """Work on a tenant's open batches, unless that is being done."""
        store = self.store(tenant)
        key = str(store.batches)
        task = self._queues.get(key)
        if task is None or task.done():
            self._remember(store)
            self._queues[key] = asyncio.create_task(self._work(store))

    def resume(self) -> None:
        """Go on with what was open when the server stopped."""
        for path in sorted(self._folder.glob("*/tenant.json")):
            found = json.loads(path.read_bytes())
            tenant = Tenant(found["name"], found["salt"])
            if any(card.status in OPEN for card in self.store(tenant).list_batches()):
                self.wake(tenant)

    def _remember(self, store: BatchStore) -> None:
        """Whose folder it is, for a restart."""
        path = store.batches.parent / "tenant.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"name": store.tenant.name, "salt": store.tenant.salt}))
            path.chmod(0o600)

    async def stop(self) -> None:
        """Stop where it is; results on disk stay, and a new server goes on with the rest."""
        self._stopping = True
        for task in self._queues.values():
            task.cancel()
        await asyncio.gather(*self._queues.values(), return_exceptions=True)

    def card(self, store: BatchStore, batch_id: str) -> BatchCard:
        """A batch as it stands at this moment."""
        card = store.batch(batch_id)
        counts = self._counts.get(batch_id)
        return card if counts is None else card.model_copy(update={"request_counts": counts})

    def cancel(self, store: BatchStore, batch_id: str) -> BatchCard:
        """Stop a batch; what it has answered is kept."""
        card = store.batch(batch_id)
        if card.status in ("validating", "in_progress"):
            card = _moved(store, card, "cancelling")
            if (task := self._running.get(batch_id)) is not None:
                task.cancel()
            self.wake(store.tenant)
        return card

    async def _work(self, store: BatchStore) -> None:
        while True:
            cards = [card for card in store.list_batches() if card.status in OPEN]
            if not cards:
                return
            card = cards[-1]
            task = asyncio.create_task(self._run(store, card))
            self._running[card.id] = task
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if self._stopping:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    raise
            except EngineError:
                await asyncio.sleep(AGAIN_SECONDS)
            finally:
                self._running.pop(card.id, None)

    async def _run(self, store: BatchStore, card: BatchCard) -> None:
        """One batch to its end, from wherever it is."""
        try:
            tasks = await asyncio.to_thread(self._read, store, card)
        except LineError as error:
            fault = Fault(code="invalid_line", message=str(error), line=error.line)
            _moved(store, card, "failed", errors=Faults(data=[fault]))
            return
        except (ShoalError, OSError) as error:
            fault = Fault(code="invalid_file", message=str(error))
            _moved(store, card, "failed", errors=Faults(data=[fault]))
            return
        job = hashlib.sha256(f"{card.id}\0{self._engine.info.model}".encode()).hexdigest()
        with Journal(store.journal(card.id), job) as journal:
            if card.status in ("validating", "in_progress"):
                if card.status == "validating":
                    card = _moved(store, card, "in_progress")
                ended = await self._answer(card, tasks, journal)
                card = store.batch(card.id)
                if card.status == "in_progress":
                    card = _moved(store, card, "finalizing")
            else:
                ended = len(journal.done) == len(tasks)
            self._finish(store, card, journal, len(tasks), whole=ended)
            journal.path.unlink(missing_ok=True)

    def _read(self, store: BatchStore, card: BatchCard) -> list[Task]:
        adapters = names_of(self._engine)
        reading = Reading(self._model, self._engine.info, store.tenant.salt, adapters=adapters)
        tasks = read_lines(store.content(card.input_file_id), reading, card.endpoint)
        self._counts[card.id] = Counts(total=len(tasks))
        return tasks

    async def _answer(self, card: BatchCard, tasks: Sequence[Task], journal: Journal) -> bool:
        """Answer what is left; whether all was answered before the batch expired or was stopped."""
        counts = self._counts[card.id]
        for place in journal.done:
            _count(counts, json.loads(journal.result(place))["response"]["status_code"])

        def keep(place: int, response: Response) -> None:
            journal.add(place, result_line(tasks[place], response))
            _count(counts, response.status)

        run = BatchRun(tasks, self._engine, keep, skip=journal.done, exclusive=False)
        try:
            async with asyncio.timeout(max(0.0, card.expires_at - time.time())):
                await run.run()
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if self._stopping:
                raise
            return False  # somebody cancelled the batch
        return True

    def _finish(
        self, store: BatchStore, card: BatchCard, journal: Journal, total: int, *, whole: bool
    ) -> None:
        """Sort the results into a file of answers and one of errors."""
        good: list[bytes] = []
        bad: list[bytes] = []
        for place in sorted(journal.done):
            line = journal.result(place)
            (good if json.loads(line)["response"]["status_code"] == 200 else bad).append(line)
        found: dict[str, object] = {
            "request_counts": Counts(total=total, completed=len(good), failed=len(bad))
        }
        if good:
            name = f"{card.id}_output.jsonl"
            found["output_file_id"] = store.add_file(b"".join(good), name, "batch_output").id
        if bad:
            name = f"{card.id}_errors.jsonl"
            found["error_file_id"] = store.add_file(b"".join(bad), name, "batch_output").id
        status: Status = "completed" if whole else "expired"
        if card.status == "cancelling":
            status = "cancelled"
        _moved(store, card, status, **found)
        self._counts.pop(card.id, None)


def _count(counts: Counts, status: int) -> None:
    if status == 200:
        counts.completed += 1
    else:
        counts.failed += 1


def _moved(store: BatchStore, card: BatchCard, status: Status, **found: object) -> BatchCard:
    """The batch with a new status, written down."""
    changed = card.model_copy(update={"status": status, f"{status}_at": int(time.time()), **found})
    store.save(changed)
    return changed
