"""Samplers: every answer's log-probabilities are the policy's, and old weights are noticed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from worlds import Walk

from shoal.core.errors import ConfigError, InputError, RemoteError
from shoal.engine.endpoint import Endpoint
from shoal.training.engine_sampler import EngineSampler
from shoal.training.forward import causal, distinct
from shoal.training.policies import Policy, word_policy
from shoal.training.remote_sampler import RemoteSampler
from shoal.training.samplers import DirectSampler, Drawing, Sample, Sampler, canary, draw
from shoal.training.transformers_sampler import TransformersSampler

PROMPTS = [(5, 6, 7), (5, 6, 7), (5, 6, 8, 9, 3), (4,)]
SEEDS = [11, 12, 13, 14]


@pytest.fixture
def policy() -> Policy:
    made = word_policy(Walk().words(), hidden=16, layers=2, heads=2, context=64, seed=3)
    with torch.no_grad():  # far from uniform, so that a wrong position or mask shows
        for tensor in made.trained.values():
            tensor.mul_(3)
    return made


@pytest.fixture(params=[DirectSampler, EngineSampler, TransformersSampler])
def sampler(request: pytest.FixtureRequest, policy: Policy) -> Iterator[Sampler]:
    make: Callable[[Policy], Sampler] = request.param
    made = make(policy)
    yield made
    asyncio.run(made.close())


def generate(sampler: Sampler, drawing: Drawing = Drawing(6)) -> list[Sample]:
    return asyncio.run(sampler.generate(PROMPTS, SEEDS, drawing))


def nudge(policy: Policy) -> None:
    with torch.no_grad():
        for tensor in policy.trained.values():
            tensor.add_(0.05)
    policy.version += 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_the_policys(
    sampler: Sampler, policy: Policy, temperature: float
) -> None:
    found = generate(sampler, Drawing(6, temperature))
    actions = [one.tokens for one in found]
    logp = distinct(policy, PROMPTS, actions, temperature=temperature).logp_A
    sampled = torch.tensor([value for one in found for value in one.logprobs])
    assert (logp - sampled).abs().max() < 2e-5


def test_an_answer_ends_with_the_end_or_at_its_limit(sampler: Sampler, policy: Policy) -> None:
    for one in generate(sampler):
        ended = one.tokens[-1] == policy.end
        assert ended or len(one.tokens) == 6
        assert policy.end not in one.tokens[:-1]


def test_draws_depend_on_their_seed_alone(sampler: Sampler) -> None:
    together = generate(sampler)
    alone = asyncio.run(sampler.generate(PROMPTS[2:3], SEEDS[2:3], Drawing(6)))
    assert alone[0].tokens == together[2].tokens


def test_after_an_update_version_and_answers_are_new(sampler: Sampler, policy: Policy) -> None:
    before, known = asyncio.run(sampler.canary()), generate(sampler)
    nudge(policy)
    asyncio.run(sampler.update(policy))
    assert sampler.version == 1 and asyncio.run(sampler.canary()) != before
    after = generate(sampler)
    assert {one.version for one in after} == {1}
    logp = distinct(policy, PROMPTS, [one.tokens for one in after]).logp_A
    assert (logp - torch.tensor([v for one in after for v in one.logprobs])).abs().max() < 2e-5
    assert known[0].version == 0


def test_the_engine_in_bf16_serves_a_copy_that_follows(policy: Policy) -> None:
    sampler = EngineSampler(policy, dtype="bf16")
    assert not sampler.exact
    nudge(policy)
    before = asyncio.run(sampler.canary())
    asyncio.run(sampler.update(policy))
    assert asyncio.run(sampler.canary()) != before
    asyncio.run(sampler.close())


def test_frequencies_of_draws_are_the_distribution(policy: Policy) -> None:
    n = 4_000
    found = draw(policy, [PROMPTS[0]] * n, list(range(n)), Drawing(1))
    hidden = causal(policy, [PROMPTS[0]])[0, -1:]
    expected = torch.softmax(policy.decoder.logits(hidden), -1)[0]
    counts = torch.bincount(torch.tensor([one.tokens[0] for one in found]), minlength=len(expected))
    assert (counts / n - expected).abs().max() < 4 * (0.25 / n) ** 0.5


def test_temperature_zero_takes_the_likeliest(policy: Policy) -> None:
    found = draw(policy, PROMPTS, SEEDS, Drawing(1, 0.0))
    hidden = torch.stack([causal(policy, [prompt])[0, -1] for prompt in PROMPTS])
    assert [one.tokens[0] for one in found] == policy.decoder.logits(hidden).argmax(-1).tolist()


def test_the_canary_moves_with_any_weight(policy: Policy) -> None:
    for name, tensor in policy.trained.items():
        before = canary(policy)
        with torch.no_grad():
            tensor.add_(0.01)
        assert canary(policy) != before, name


def test_a_row_beyond_the_context_is_named(policy: Policy) -> None:
    with pytest.raises(InputError, match=r"Row 1 has 60 \+ 5 tokens, but the context .* holds 64"):
        distinct(policy, [(1,), (1,) * 60], [(1,), (1,) * 5])


def test_an_empty_prompt_is_named(policy: Policy) -> None:
    with pytest.raises(InputError, match="Row 0 has an empty prompt"):
        distinct(policy, [()], [(1,)])


def test_an_empty_answer_has_no_tokens_and_no_harm(policy: Policy) -> None:
    found = distinct(policy, [(1, 2), (1, 2)], [(), (3,)], entropy=True)
    assert found.logp_A.shape == (1,) and found.entropy_A is not None
    assert torch.isfinite(found.logp_A).all()
    assert distinct(policy, [(1,)], [()]).logp_A.shape == (0,)


def test_equal_rows_share_one_computation_and_all_count(policy: Policy) -> None:
    once = distinct(policy, [(5, 6)], [(7, 3)]).logp_A
    once.sum().backward()
    gradient = {name: tensor.grad.clone() for name, tensor in policy.trained.items()}  # type: ignore[union-attr]
    for tensor in policy.trained.values():
        tensor.grad = None
    distinct(policy, [(5, 6)] * 3, [(7, 3)] * 3).logp_A.sum().backward()
    for name, tensor in policy.trained.items():
        assert tensor.grad is not None
        assert torch.allclose(tensor.grad, 3 * gradient[name], atol=1e-4), name


def test_entropy_is_that_of_the_distribution(policy: Policy) -> None:
    found = distinct(policy, [(5, 6)], [(7,)], entropy=True)
    probs = torch.softmax(policy.decoder.logits(causal(policy, [(5, 6)])[0, -1:]), -1)[0]
    assert found.entropy_A is not None
    assert float(found.entropy_A[0]) == pytest.approx(float(-(probs * probs.log()).sum()), abs=1e-5)


# -- remote ---------------------------------------------------------------------------------


def remote(policy: Policy, answer: dict[str, object], **more: object) -> RemoteSampler:
    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json=answer)

    seen: list[dict[str, object]] = []
    client = httpx.AsyncClient(transport=httpx.MockTransport(reply))
    made = RemoteSampler(
        Endpoint("http://127.0.0.1:9/v1", client=client, retries=0),
        "m",
        policy,
        **more,  # type: ignore[arg-type]
    )
    made.seen = seen  # type: ignore[attr-defined]
    return made


def choice(**more: object) -> dict[str, object]:
    return {"choices": [{"finish_reason": "length", **more}]}


def test_a_server_is_asked_in_tokens_and_answers_in_tokens(policy: Policy) -> None:
    one = remote(policy, choice(token_ids=[3, 4], logprobs={"token_logprobs": [-1.0, -2.0]}))
    (sample,) = asyncio.run(one.generate([(5, 6)], [2**40], Drawing(2)))
    assert sample == Sample((3, 4), (-1.0, -2.0), 0)
    (body,) = one.seen  # type: ignore[attr-defined]
    assert body["prompt"] == [5, 6] and body["top_p"] == 1.0 and body["return_token_ids"] is True


def test_a_server_without_token_ids_is_refused(policy: Policy) -> None:
    one = remote(policy, choice(text="right", logprobs={"token_logprobs": [-1.0]}))
    with pytest.raises(RemoteError, match="returns no token ids"):
        asyncio.run(one.generate([(5,)], [0], Drawing(2)))


def test_a_token_without_its_log_probability_is_refused(policy: Policy) -> None:
    one = remote(policy, choice(token_ids=[3, 4], logprobs={"token_logprobs": [-1.0]}))
    with pytest.raises(RemoteError, match="1 log-probabilities for 2 tokens"):
        asyncio.run(one.generate([(5,)], [0], Drawing(2)))


def test_a_temperature_needs_log_probabilities_after_it(policy: Policy) -> None:
    one = remote(policy, choice())
    with pytest.raises(ConfigError, match=r"draws at temperature 0\.7"):
        asyncio.run(one.generate([(5,)], [0], Drawing(2, 0.7)))


def test_a_server_that_cannot_take_weights_is_refused(policy: Policy) -> None:
    with pytest.raises(ConfigError, match="cannot be given new weights"):
        asyncio.run(remote(policy, choice()).update(policy))


def test_published_weights_are_asked_for_by_name(policy: Policy) -> None:
    async def publish(given: Policy) -> str:
        return f"adapter-{given.version}"

    answer = choice(token_ids=[3], logprobs={"token_logprobs": [-1.0]})
    one = remote(policy, answer, publish=publish)
    nudge(policy)

    async def run() -> Sample:
        await one.update(policy)
        return (await one.generate([(5,)], [0], Drawing(1)))[0]

    assert asyncio.run(run()).version == 1
    assert one.seen[-1]["model"] == "adapter-1"  # type: ignore[attr-defined]


def test_an_exported_policy_is_loaded_by_transformers_alike(policy: Policy, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from shoal.models.folder import ModelFolder
    from shoal.training.export import export

    export(policy, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([PROMPTS[2]])
    ours = policy.decoder.logits(causal(policy, [PROMPTS[2]])[0])
    assert (theirs(input_ids=ids).logits[0] - ours).abs().max() < 1e-4
    own = dict(ModelFolder(tmp_path).weights(policy.config, torch.float32))
    assert all(torch.equal(own[name], tensor) for name, tensor in policy.trained.items())
