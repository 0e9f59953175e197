"""KVCOMM: equations 5 to 7 in the plainest way, the anchors' upkeep, and calls end to end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.core.errors import ConfigError, EngineError
from shoal.core.protocols import Grammar, Request, Sampling, Segment
from shoal.core.records import Message
from shoal.engine.generation import Composition, Generation, Piece
from shoal.engine.kvcomm import Anchor, AnchorPool, CommPolicy, Gate, KVComm
from shoal.engine.kvcomm.anchors import after_offset, compare, entropy, text_offset
from shoal.engine.kvcomm.comparing import Comparer
from shoal.engine.kvcomm.gate import least_margin
from shoal.engine.kvcomm.templates import Part, Template
from shoal.engine.kvcomm.watches import Learn
from shoal.engine.local import LocalEngine
from shoal.engine.repair import Repair
from shoal.engine.segments import KVSegment
from shoal.models.decoder import Decoder
from shoal.models.loading import load

L, K, D = 2, 3, 4
QUESTIONS = [
    "How many herring make a shoal?",
    "Why do sardines swim so close together?",
    "What does a lone fish lose when it leaves?",
    "Who decides where the school turns next?",
    "When do mackerel come near to the shore?",
]


def segment(length: int, seed: int, model: str = "m") -> KVSegment:
    torch.manual_seed(seed)
    keys, values = torch.randn(L, length, K, D), torch.randn(L, length, K, D)
    return KVSegment(tuple(range(length)), keys, values, model)


def anchor(length: int, seed: int, after: int = 3) -> Anchor:
    base = segment(length, seed)
    text = (torch.randn(L, length, K, D), torch.randn(L, length, K, D))
    return Anchor(base, text, (torch.randn(L, after, K, D), torch.randn(L, after, K, D)))


def test_closeness_is_a_softmax_over_distances_of_all_values() -> None:
    base, anchors = segment(5, 0), [anchor(5, 1), anchor(8, 2)]
    far = [
        math.sqrt(float((base.values_LTKd - each.base.values_LTKd[:, :5]).square().sum()))
        for each in anchors
    ]
    total = sum(math.exp(-each) for each in far)
    expected = [math.exp(-each) / total for each in far]
    assert compare(base, anchors).weights.tolist() == pytest.approx(expected, rel=1e-5)
    assert compare(base, anchors).relative == pytest.approx(
        min(far) / float(base.values_LTKd.norm()), rel=1e-5
    )


def test_what_was_compared_once_is_not_read_again() -> None:
    base, anchors = segment(5, 0), [anchor(length, length) for length in (5, 8, 6)]
    comparer = Comparer(most=3)
    comparer("ann", base, anchors[:2])
    found = comparer("ann", base, [anchors[2], *anchors[:2]])
    assert comparer.read == 3
    expected = compare(base, [anchors[2], *anchors[:2]])
    assert torch.equal(found.values_A, expected.values_A) and found.length == expected.length
    assert torch.equal(found.tokens_2An, expected.tokens_2An)
    assert torch.equal(found.channels_2ALKd, expected.channels_2ALKd)
    comparer("bob", base, anchors[:1])  # of another scope, and now one too many
    assert comparer.read == 4
    comparer("ann", base, anchors)
    assert comparer.read == 5  # the oldest had been forgotten


def test_entropy_is_in_bits() -> None:
    assert entropy(torch.tensor([0.5, 0.5])) == pytest.approx(1)
    assert entropy(torch.tensor([1.0, 0.0])) == pytest.approx(0, abs=1e-6)


def test_a_texts_offset_weighs_anchors_token_by_token() -> None:
    base, anchors = segment(4, 0), [anchor(4, 1), anchor(6, 2)]
    keys, values = text_offset(compare(base, anchors), anchors)
    for t in range(4):
        far = [
            float((base.keys_LTKd[:, t] - each.base.keys_LTKd[:, t]).abs().mean())
            for each in anchors
        ]
        total = sum(math.exp(-each) for each in far)
        expected = sum(
            math.exp(-each_far) / total * each.text[0][:, t]
            for each_far, each in zip(far, anchors, strict=True)
        )
        torch.testing.assert_close(keys[:, t], expected)
    assert values.shape == (L, 4, K, D)


def test_the_offset_of_the_piece_after_weighs_every_channel_by_the_last_tokens() -> None:
    base, anchors = segment(4, 0), [anchor(4, 1), anchor(6, 2)]
    _, values = after_offset(compare(base, anchors), anchors)
    own, one, two = (base.values_LTKd, *(each.base.values_LTKd[:, -4:] for each in anchors))
    for layer, head, channel in ((0, 0, 0), (1, 2, 3)):
        place = (layer, slice(None), head, channel)
        far = [float((own[place] - other[place]).norm()) for other in (one, two)]
        total = sum(math.exp(-each) for each in far)
        expected = sum(
            math.exp(-each_far) / total * each.after[1][place]
            for each_far, each in zip(far, anchors, strict=True)
        )
        torch.testing.assert_close(values[place], expected)


def test_one_anchor_applied_to_itself_gives_what_was_seen() -> None:
    only = anchor(5, 3)
    seen = compare(only.base, [only])
    keys, values = text_offset(seen, [only])
    torch.testing.assert_close(keys, only.text[0])
    torch.testing.assert_close(values, only.text[1])
    torch.testing.assert_close(after_offset(seen, [only])[0], only.after[0])


def test_a_full_pool_drops_the_least_used_of_the_oldest() -> None:
    pool = AnchorPool(size=4, window=3)
    made = [anchor(2, seed) for seed in range(5)]
    for each, uses in zip(made, (5, 1, 3, 0, 0), strict=True):
        each.uses = uses
        pool.add(each)
    assert pool.anchors == [made[0], made[2], made[3], made[4]]


def test_a_pool_keeps_within_its_bytes() -> None:
    size = anchor(4, 0).nbytes
    pool = AnchorPool(size=20, budget=3 * size)
    for seed in range(7):
        pool.add(anchor(4, seed))
    assert len(pool.anchors) == 3
    assert pool.nbytes <= pool.budget


def test_a_pool_survives_the_disk(tmp_path: Path) -> None:
    pool = AnchorPool()
    for seed in range(3):
        pool.add(anchor(4, seed))
    pool.anchors[1].uses = 7
    path = tmp_path / "pool.safetensors"
    pool.save(path)
    again = AnchorPool()
    assert again.load(path, "m")
    assert [each.uses for each in again.anchors] == [0, 7, 0]
    assert torch.equal(again.anchors[2].after[1], pool.anchors[2].after[1])
    assert not AnchorPool().load(path, "another model")
    path.write_bytes(path.read_bytes()[:-30])
    assert not AnchorPool().load(path, "m")
    assert not AnchorPool().load(tmp_path / "nowhere", "m")


def test_a_gate_closes_when_looks_are_bad_and_opens_when_they_are_good() -> None:
    gate = Gate(max_kl=0.1)
    assert gate.open and gate.looks()
    gate.note(0.5, 0.4)
    assert not gate.open
    for _ in range(4):
        gate.note(0.3, 0.01)
    assert gate.open
    assert gate.reaches(0.3) and gate.reaches(0.36) and not gate.reaches(0.5)


def test_templates_join_fixed_neighbours_and_fill_gaps() -> None:
    a, b, c = Part((1, 2)), Part((3,)), Part((4,), "question")
    assert Template.of([a, b, c]).parts == (Part((1, 2, 3)), c, Part(()))
    assert Template.of([c, c]).parts == (Part(()), c, Part(()), c, Part(()))
    assert Template.of([a, Part((), "question"), b]).parts == (Part((1, 2, 3)),)
    other = Part((9, 9), "question")
    assert Template.of([a, c]).key() == Template.of([a, other]).key()
    assert Template.of([a, c]).key() != Template.of([b, c]).key()
    assert Template.of([a, c]).key("tenant") != Template.of([a, c]).key()


# -- with a model ---------------------------------------------------------------------------


@pytest.fixture
def engine(tiny_model: Path) -> LocalEngine:
    return LocalEngine(load(str(tiny_model), dtype="fp32"), kv_bytes=32 << 20)


def ask(question: str, role: str = "solver", new: int = 8) -> Request:
    return Request(
        (
            Segment(f"You are the {role}. Read this: "),
            Segment(question, name="question"),
            Segment(" Answer in a word."),
        ),
        Sampling(max_tokens=new, ignore_eos=True),
    )


async def test_two_anchors_are_learned_and_then_texts_are_moved(engine: LocalEngine) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1, gated=False))
    for question in sorted(QUESTIONS, key=len, reverse=True):
        (answer,) = await comm.generate([ask(question)])
        assert len(answer.tokens) == 8
    assert [call.mode for call in comm.calls] == ["dense", "dense", "moved", "moved", "moved"]
    assert answer.usage.computed_prompt_tokens == 1
    assert answer.usage.approx_tokens == answer.usage.prompt_tokens - 1 - answer.usage.shared_tokens
    assert "moved" in answer.how
    assert engine.load.pinned_bytes == 0


async def test_an_anchors_own_question_is_answered_as_exactly(engine: LocalEngine) -> None:
    """Its offsets reproduce its own context, once distances are far enough apart."""
    comm = KVComm(engine, CommPolicy(gamma=1, gated=False))
    longest = max(QUESTIONS, key=len)
    for question in (longest, "w" * len(longest)):
        await comm.generate([ask(question)])
    template = comm.template(ask(longest))
    (known,) = comm.library.templates
    known.pools[0].anchors = known.pools[0].anchors[:1]
    pieces = await comm.pieces(template)
    real = await engine.capture(template.tokens)
    done = len(pieces[0].tokens)
    for piece in pieces[1:-1]:
        assert piece.segment is not None
        expected = real.slice(done, done + len(piece.tokens))
        torch.testing.assert_close(
            piece.segment.keys_LTKd, expected.keys_LTKd, atol=1e-4, rtol=1e-3
        )
        torch.testing.assert_close(
            piece.segment.values_LTKd, expected.values_LTKd, atol=1e-4, rtol=1e-3
        )
        done += len(piece.tokens)


async def test_repairing_everything_on_top_is_exact(engine: LocalEngine) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1, gated=False, repair=Repair(share=1)))
    for question in sorted(QUESTIONS, key=len, reverse=True):
        (answer,) = await comm.generate([ask(question)])
        tokens = comm.template(ask(question)).tokens
        request = Request((Segment(tokens=tokens),), Sampling(max_tokens=8, ignore_eos=True))
        (exact,) = await engine.generate([request])
        assert answer.tokens == exact.tokens


async def test_chat_messages_are_cut_around_their_placeholders(engine: LocalEngine) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1, gated=False))

    def chat(question: str) -> Request:
        text = f"Please think. {question} Be brief."
        return Request(
            (Message("system", "You are a fish."), Message("user", text)),
            Sampling(max_tokens=4, ignore_eos=True),
            placeholders=(Segment(question, name="question"),),
        )

    for question in sorted(QUESTIONS, key=len, reverse=True):
        (answer,) = await comm.generate([chat(question)])
        assert len(answer.tokens) == 4
    assert comm.calls[-1].mode == "moved"
    template = comm.template(chat(QUESTIONS[0]))
    text = engine.decode(template.tokens)
    assert text == engine.decode(engine.encode(chat(QUESTIONS[0]).prompt))
    (wrong,) = await comm.generate(
        [Request((Message("user", "Hi."),), placeholders=(Segment("Elsewhere", name="q"),))]
    )
    assert wrong.finish == "error" and "'Elsewhere' is not in the messages" in (wrong.error or "")


async def test_an_empty_placeholder_is_no_placeholder(engine: LocalEngine) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1))
    (answer,) = await comm.generate([ask("")])
    assert len(answer.tokens) == 8
    assert comm.calls[0].why == "nothing in the prompt changes"


async def test_a_prompt_beyond_the_context_fails_alone(engine: LocalEngine) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1))
    long, short = await comm.generate([ask("x" * 100_000), ask("Well?")])
    assert long.finish == "error" and "context" in (long.error or "")
    assert len(short.tokens) == 8


async def test_looks_are_taken_and_told(engine: LocalEngine) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1))
    for question in sorted(QUESTIONS, key=len, reverse=True)[:3]:
        (answer,) = await comm.generate([ask(question)])
    kl = comm.calls[-1].kl
    assert kl is not None and kl >= 0
    assert answer.how.endswith(f"(KL {kl:.3f})")


async def test_a_look_that_fails_leaves_the_answer_as_it_is(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1.0))

    async def fails(*_: object) -> None:
        raise EngineError("no room to look")

    *learned, last = sorted(QUESTIONS, key=len, reverse=True)[:3]
    for question in learned:
        await comm.generate([ask(question)])
    monkeypatch.setattr(comm, "_glance", fails)
    (answer,) = await comm.generate([ask(last)])
    assert comm.calls[-1].mode == "moved" and comm.calls[-1].kl is None
    assert answer.error is None and len(answer.tokens) == 8


async def test_an_exact_prompt_is_learned_once_though_its_answer_begins_again(
    engine: LocalEngine,
) -> None:
    comm = KVComm(engine)
    template = comm.template(ask(QUESTIONS[0]))
    known, bases = await comm.library.read(template, "")
    learned: list[Callable[[], None]] = []
    learn = Learn(engine, template, known, bases, learned)

    class Twice(Learn):
        def prefilled(self, job: Generation) -> None:
            learn.prefilled(job)
            job.preempted = True
            learn.prefilled(job)

    watch = Twice(engine, template, known, bases, learned)
    pieces = (Piece(template.tokens),)
    await engine.compose([Composition(ask(QUESTIONS[0]), pieces, watch=watch)])
    assert len(learned) == len(bases) == 1


async def test_tenants_share_neither_anchors_nor_texts(engine: LocalEngine) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1, gated=False))
    ordered = sorted(QUESTIONS, key=len, reverse=True)
    for question in ordered:
        await comm.generate([ask(question)])
    other = Request(ask(ordered[0]).prompt, Sampling(max_tokens=4), salt="tenant")
    (answer,) = await comm.generate([other])
    assert comm.calls[-1].mode == "dense"
    assert answer.usage.shared_tokens == 0 or answer.how == "exact"


def test_the_least_margin_is_the_smallest_from_which_enough_agree() -> None:
    margins = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    agreed = [False, True, False, True, True, True]
    assert least_margin(margins, agreed, 1.0) == 0.4
    assert least_margin(margins, agreed, 0.8) == 0.2
    assert least_margin(margins, agreed, 0.5) == 0.0
    assert least_margin([0.3, 0.3], [True, False], 1.0) == math.inf
    assert least_margin([], [], 0.9) == math.inf


def choose(question: str) -> Request:
    request = replace(ask(question), grammar=Grammar("choice", ("herring", "heron", "tuna")))
    return replace(request, sampling=Sampling(max_tokens=16))


@pytest.mark.parametrize("sure", [0.0, math.inf])
async def test_a_choice_in_doubt_is_answered_exactly(engine: LocalEngine, sure: float) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1, sure=sure))
    told: list[str] = []
    for question in sorted(QUESTIONS, key=len, reverse=True)[:3]:
        told.clear()
        (answer,) = await comm.generate([choose(question)], lambda delta: told.append(delta.text))
        assert answer.text in ("herring", "heron", "tuna") and "".join(told) == answer.text
    last = comm.calls[-1]
    assert last.margin is not None and last.margin >= 0
    if sure:
        assert last.mode == "dense" and "too near" in last.why
        whole = (Segment(tokens=comm.template(choose(question)).tokens),)
        (exact,) = await engine.generate([replace(choose(question), prompt=whole)])
        assert answer.tokens == exact.tokens
        (known,) = comm.library.templates
        assert len(known.pools[0].anchors) == 3  # what was computed is an anchor, too
    else:
        assert last.mode == "moved"


async def closed(engine: LocalEngine, policy: CommPolicy, *closed: int) -> KVComm:
    """With two anchors, a look at every call, and these ways found to be far off."""
    comm = KVComm(engine, policy)
    for question in sorted(QUESTIONS, key=len, reverse=True)[:2]:
        await comm.generate([ask(question)])
    (known,) = comm.library.templates
    known.gates[0].every = 1
    known.gates[0].max_kl = 2.0  # an untrained model is easily led astray
    for way in closed:
        known.gates[way].note(0.0, 9.0)
        assert not known.gates[way].open
    return comm


async def test_a_closed_gate_goes_on_looking_and_opens_again(engine: LocalEngine) -> None:
    comm = await closed(engine, CommPolicy(gamma=1, closer=None), 0)
    for index in range(6):
        await comm.generate([ask(f"{index} is how many?")])
    assert all(call.kl is not None and call.kl < 2.0 for call in comm.calls[2:])
    modes = [call.mode for call in comm.calls[2:]]
    assert modes == ["dense"] * 4 + ["moved"] * 2  # the mean of four looks


async def test_where_moving_is_too_far_off_the_pieces_are_computed_and_some_repaired(
    engine: LocalEngine,
) -> None:
    comm = await closed(engine, CommPolicy(gamma=1), 0)
    (answer,) = await comm.generate([ask("And the tuna?")])
    assert comm.calls[-1].mode == "moved" and comm.calls[-1].why.startswith("looks found")
    text = len("And the tuna?")
    assert answer.usage.repaired_tokens == math.ceil(0.15 * text)
    assert answer.usage.approx_tokens == text - answer.usage.repaired_tokens
    both = await closed(engine, CommPolicy(gamma=1), 0, 1)
    (answer,) = await both.generate([ask("And the tuna?")])
    assert both.calls[-1].mode == "dense" and answer.how == "exact"


async def test_a_short_text_beside_a_long_one_is_computed_where_it_stands(
    engine: LocalEngine,
) -> None:
    def both(document: str, said: str) -> Request:
        parts = (Segment("Read: "), Segment(document, name="document"), Segment(" They said: "))
        rest = (Segment(said, name="said"), Segment(" And you?"))
        return Request((*parts, *rest), Sampling(max_tokens=4, ignore_eos=True))

    comm = KVComm(engine, CommPolicy(gamma=1, gated=False))
    for index in range(3):
        (answer,) = await comm.generate([both("herring " * (30 - index), f"word {index}" * 3)])
    assert [call.mode for call in comm.calls] == ["dense", "dense", "moved"]
    computed = len("word 2" * 3 + " And you?")
    assert answer.usage.computed_prompt_tokens == computed
    assert comm.library.texts == 3  # of the documents alone
    (known,) = comm.library.templates
    assert [len(pool.anchors) for pool in known.pools] == [2, 0]
    alike = KVComm(engine, CommPolicy(gamma=1, gated=False, repair=Repair(share=1)))
    for index in range(3):
        (answer,) = await alike.generate([both("herring " * (30 - index), f"word {index}" * 3)])
    tokens = comm.template(both("herring " * 28, "word 2" * 3)).tokens
    request = Request((Segment(tokens=tokens),), Sampling(max_tokens=4, ignore_eos=True))
    (exact,) = await engine.generate([request])
    assert answer.tokens == exact.tokens and answer.usage.repaired_tokens > 200


async def test_a_free_answer_is_never_in_doubt(engine: LocalEngine) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1, sure=math.inf))
    for question in sorted(QUESTIONS, key=len, reverse=True)[:3]:
        await comm.generate([ask(question)])
    assert comm.calls[-1].mode == "moved" and comm.calls[-1].margin is None


async def test_a_call_that_is_cancelled_leaves_its_text_to_others(engine: LocalEngine) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1))
    call = asyncio.create_task(comm.generate([ask(QUESTIONS[0])]))
    while not comm.library._known:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    (answer,) = await comm.generate([ask(QUESTIONS[0])])
    assert len(answer.tokens) == 8


@pytest.mark.parametrize(
    "wrong", [{"gamma": 1.5}, {"top_p": 0.0}, {"size": 0}, {"budget": 0}, {"sure": -1.0}]
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        CommPolicy(**wrong)  # type: ignore[arg-type]


async def test_anchors_behind_another_beginning_are_not_taken(
    engine: LocalEngine, tmp_path: Path
) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1, gated=False), tmp_path)
    for question in sorted(QUESTIONS, key=len, reverse=True)[:2]:
        await comm.generate([ask(question)])
    await comm.close()
    again = LocalEngine(engine.model, kv_bytes=32 << 20)
    other = KVComm(again, CommPolicy(gamma=1, gated=False, beginning="Once: "), tmp_path)
    await other.generate([ask(min(QUESTIONS, key=len))])
    assert other.calls[0].mode == "dense"


async def test_plain_requests_pass_through(engine: LocalEngine) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1))
    plain = Request((Segment("A plain prompt"),), Sampling(max_tokens=5, ignore_eos=True))
    both = await comm.generate([plain, ask("Well?"), plain])
    (expected,) = await engine.generate([plain])
    assert both[0].tokens == both[2].tokens == expected.tokens
    assert [call.mode for call in comm.calls] == ["dense"]


async def test_anchors_come_back_from_the_folder(engine: LocalEngine, tmp_path: Path) -> None:
    comm = KVComm(engine, CommPolicy(gamma=1, gated=False), tmp_path)
    ordered = sorted(QUESTIONS, key=len, reverse=True)
    for question in ordered[:2]:
        await comm.generate([ask(question)])
    await comm.close()
    again = KVComm(
        LocalEngine(engine.model, kv_bytes=32 << 20), CommPolicy(gamma=1, gated=False), tmp_path
    )
    await again.generate([ask(ordered[3])])
    assert again.calls[0].mode == "moved"


async def test_damaged_anchors_are_learned_anew_with_a_warning(
    engine: LocalEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = KVComm(engine, CommPolicy(gamma=1, gated=False), tmp_path)
    for question in QUESTIONS[:3]:
        await first.generate([ask(question)])
    first.library.save()
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    again = KVComm(engine, CommPolicy(gamma=1, gated=False), tmp_path)
    (answer,) = await again.generate([ask(QUESTIONS[0])])
    assert len(answer.tokens) == 8 and again.calls[0].why.startswith("fewer than two anchors")
    assert "anchors begin anew" in caplog.text


class Tilted(Decoder):
    """A decoder that adds positions to its inputs, as models before rotary embeddings did."""

    def through(self, x_TD, positions_T, attend, first, last):  # type: ignore[no-untyped-def]
        if not first:
            x_TD = x_TD + torch.sin(positions_T[:, None] / 50)
        return super().through(x_TD, positions_T, attend, first, last)


async def test_a_model_whose_keys_do_more_than_rotate_is_answered_exactly(
    engine: LocalEngine,
) -> None:
    decoder = Tilted(engine.model.decoder.config, engine.model.decoder.weights)
    tilted = LocalEngine(replace(engine.model, decoder=decoder), kv_bytes=16 << 20)
    comm = KVComm(tilted, CommPolicy(gamma=1, gated=False))
    for question in QUESTIONS[:4]:
        (answer,) = await comm.generate([ask(question)])
        assert answer.how == "exact"
    assert {call.mode for call in comm.calls} == {"dense"}
    assert all("more than a rotation" in call.why for call in comm.calls)
    await tilted.close()
