"""The second stage of KVShare: moved tokens computed again while an answer is written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np
import torch

from moving.texts import Case
from moving.timed import Timed
from shoal.core.claims import Bench
from shoal.core.protocols import Request, Sampling
from shoal.core.stats import difference_interval, mean_interval, ratio_interval
from shoal.engine.compute import compute
from shoal.engine.generation import Composition, Generation, Piece
from shoal.engine.late_repair import Late
from shoal.engine.repair import Repair

FORCED = 16  # tokens of the dense answer over which arms are compared
LATER = 8  # tokens from here on are the later ones
FIRST, CHANCE, BOTH, MORE = (
    "15 % with the prompt",
    "15 %, then 5 % at random",
    "15 %, then 5 % by DHD",
    "20 % with the prompt",
)
JUDGED = (FIRST, CHANCE, BOTH, MORE)
Pieces = tuple[Piece, ...]
STAGES: Mapping[str, Repair] = {
    "rotation only": Repair("none"),
    "rotation only, then 5 % by DHD": Repair("none", late=Late()),
    FIRST: Repair("values", 0.15),
    CHANCE: Repair("values", 0.15, late=Late("random")),
    BOTH: Repair("values", 0.15, late=Late()),
    MORE: Repair("values", 0.20),
}


@dataclass(eq=False)
class Forced:
    """Forces an answer, and keeps the state behind which each of its tokens was chosen."""

    answer: Sequence[int]
    vocabulary: int
    job: Generation = field(init=False)
    states: list[torch.Tensor] = field(default_factory=list)

    finished = False

    def allowed(self) -> torch.Tensor:
        assert self.job.end is not None and self.job.end.last_hidden is not None
        mask_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        mask_V[self.answer[len(self.states)]] = True
        self.states.append(self.job.end.last_hidden.clone())
        return mask_V

    def accept(self, token: int) -> None:
        """The only token that was allowed."""


def forced_job(
    engine: Timed, pieces: Pieces, repair: Repair | None, answer: Sequence[int]
) -> tuple[Generation, Forced]:
    """A prompt in pieces whose answer is given."""
    forced = Forced(answer, engine.model.config.vocab)
    tokens = [token for piece in pieces for token in piece.tokens]
    job = Generation(
        request=Request((), Sampling(max_tokens=len(answer), ignore_eos=True)),
        prompt_tokens=len(tokens),
        tokens=tokens,
        max_new=len(answer),
        stream=engine.model.tokenizer.stream(),
        eos_ids=engine.model.tokenizer.eos_ids,
        constraint=forced,  # type: ignore[arg-type]
        on_text=lambda text, tokens: None,
        on_done=lambda completion: None,
        pieces=pieces,
        repair=repair,
    )
    forced.job = job
    return job, forced


async def second_stage(bench: Bench, engine: Timed, cases: Sequence[Case]) -> None:
    """All arms on all cases, side by side; then two of them alone, for their time."""
    prompts, answers = await prompts_of(engine, cases)
    stages = {name: STAGES[name] for name in bench.pick(full=tuple(STAGES), smoke=JUDGED)}
    kl: dict[str, list[np.ndarray]] = {name: [] for name in stages}
    repaired: dict[str, list[float]] = {name: [] for name in stages}
    for index, ((exact, moved), answer) in enumerate(
        bench.track(list(zip(prompts, answers, strict=True)), "while writing")
    ):
        arms = {name: replace(repair, seed=index) for name, repair in stages.items()}
        for name, (far, again) in compute.call(
            lambda e=exact, m=moved, a=answer, r=arms: _far(engine, e, m, a, r)
        ).items():
            kl[name].append(far)
            repaired[name].append(again)
    later = {name: [float(far[LATER:].mean()) for far in each] for name, each in kl.items()}
    for name, each in kl.items():
        bench.arm(
            f"while writing: {name}",
            kl_to_dense_nats=mean_interval([float(far.mean()) for far in each], seed=bench.seed),
            kl_of_later_tokens=mean_interval(later[name], seed=bench.seed),
            computed_again_percent=100 * fmean(repaired[name]),
        )
    for other, what in (
        (FIRST, "the prompt's stage alone"),
        (CHANCE, "a second stage at random"),
        (MORE, "the same share with the prompt"),
    ):
        bench.verdict(
            f"both stages: KL of tokens {LATER + 1} to {FORCED} less than that of {what} by (nats)",
            difference_interval(later[other], later[BOTH], paired=True, seed=bench.seed),
            at_least=0.0,
        )
    timed = prompts[:: bench.pick(full=4, smoke=1)]
    seconds: dict[str, list[float]] = {FIRST: [], BOTH: []}
    for (_, moved), answer in zip(timed, answers[:: bench.pick(full=4, smoke=1)], strict=True):
        for name in seconds:
            seconds[name].append(
                compute.call(lambda m=moved, a=answer, n=name: _decoding(engine, m, a, STAGES[n]))
            )
    bench.verdict(
        "both stages: CPU seconds of a decoding step, alone, over those of the first stage alone",
        ratio_interval(seconds[BOTH], seconds[FIRST], seed=bench.seed),
        at_most=1.3,
    )


@torch.inference_mode()
def _far(
    engine: Timed,
    exact: Pieces,
    moved: Pieces,
    answer: Sequence[int],
    arms: Mapping[str, Repair],
) -> dict[str, tuple[np.ndarray, float]]:
    """KL to dense of every forced token, and the share of moved tokens computed again."""
    reference = forced_job(engine, exact, None, answer)
    jobs = {name: forced_job(engine, moved, repair, answer) for name, repair in arms.items()}
    engine.scheduler.submit([reference[0], *(job for job, _ in jobs.values())])
    while engine.scheduler.busy:
        engine.turn()

    def logprobs(forced: Forced) -> torch.Tensor:
        logits_FV = engine.model.decoder.logits(torch.stack(forced.states), precise=True)
        return logits_FV.log_softmax(-1)

    true_FV = logprobs(reference[1])
    count = sum(len(piece.tokens) for piece in moved if piece.segment is not None)
    found = {}
    for name, (job, forced) in jobs.items():
        kl_F = (true_FV.exp() * (true_FV - logprobs(forced))).sum(-1)
        again = job.repaired_late + (0 if job.repaired is None else len(job.repaired.selected))
        found[name] = kl_F.numpy(), again / count
    return found


@torch.inference_mode()
def _decoding(engine: Timed, moved: Pieces, answer: Sequence[int], repair: Repair) -> float:
    """CPU seconds of a decoding step, alone."""
    job, _ = forced_job(engine, moved, repair, answer)
    engine.scheduler.submit([job])
    while not job.decoding:
        engine.turn()
    begun, steps = time.thread_time(), 0
    while engine.scheduler.busy:
        engine.turn()
        steps += 1
    return (time.thread_time() - begun) / steps


async def prompts_of(
    engine: Timed, cases: Sequence[Case]
) -> tuple[list[tuple[Pieces, Pieces]], list[Sequence[int]]]:
    """Each case's prompt, exact and moved, and its dense answer."""
    prompts, answers = [], []
    sampling = Sampling(max_tokens=FORCED, ignore_eos=True)
    for case in cases:
        segments = [
            await engine.capture((*before, *text), len(before))
            for before, text in zip(case.behind, case.texts, strict=True)
        ]
        exact = (Piece(case.before), *map(Piece, case.texts), Piece(case.after))
        (dense,) = await engine.compose([Composition(Request((), sampling), exact)])
        assert dense.error is None, dense.error
        carried = map(Piece, case.texts, segments)
        prompts.append((exact, (Piece(case.before), *carried, Piece(case.after))))
        answers.append(dense.tokens)
    return prompts, answers
