"""The company: real state, snapshots, differences, tasks that are verified, and refusals."""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from shoal.core.errors import ConfigError
from shoal.envs.company import web
from shoal.envs.company.account import Account, Called, CloudDown, Refused, difference
from shoal.envs.company.cloud import Cloud
from shoal.envs.company.deciding import values_in
from shoal.envs.company.environment import Company
from shoal.envs.company.office import Office
from shoal.envs.company.seed import TEAMS, seed_calls
from shoal.envs.company.served import Offered, served_operations
from shoal.envs.company.server import seeded
from shoal.envs.company.solving import Bench, Bill, Look, gateway_look, once_look, oracle_look
from shoal.envs.company.tasks import Task, filled, find_task, gold, load_tasks, verified
from shoal.tools import sources
from shoal.tools.gateway import Access, Gateway, Shelf
from shoal.tools.importers.botocore import from_botocore
from shoal.tools.retrieval.index import ToolIndex

pytest.importorskip("moto")

SERVICES = ("sqs", "sns", "iam", "dynamodb", "events", "s3", "deadline")


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with Account() as account:
        yield account


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return Shelf(from_botocore(sources.botocore_data(), services=SERVICES))


@pytest.fixture(scope="module")
def index(shelf: Shelf) -> ToolIndex:
    index = ToolIndex()
    index.add(shelf)
    return index


@pytest.fixture
def gateway(account: Account, shelf: Shelf, index: ToolIndex) -> Gateway:
    account.reset(seed_calls())
    return Gateway(
        Offered(shelf),
        lambda query, k: [found.name for found in index.search(query, k)],
        {"aws": Cloud(account)},
    )


def test_the_same_calls_give_the_same_account(account: Account) -> None:
    account.reset(seed_calls())
    first = account.state()
    account.reset(seed_calls())
    assert not difference(first, account.state())
    assert len(first) > 500
    assert all(any(f"company-{team}-data" in path for path in first) for team in TEAMS)


def test_a_difference_names_what_was_added_changed_and_removed(account: Account) -> None:
    account.reset(seed_calls())
    before = account.state()
    account.call("sqs", "CreateQueue", {"QueueName": "new"})
    account.call("iam", "DeleteRole", {"RoleName": "media-worker"})
    account.call("events", "DisableRule", {"Name": "media-nightly"})
    found = difference(before, account.state())
    assert any("queues.new" in path for path in found.added)
    assert any("media-worker" in leaf for leaf in found.removed.values())
    assert ("'ENABLED'", "'DISABLED'") in found.changed.values()
    assert {place.split("/")[0] for place in found.places()} == {"sqs", "iam", "events"}


def test_reading_changes_nothing(account: Account) -> None:
    account.reset(seed_calls())
    before = account.state()
    account.call("s3", "ListBuckets", {})
    account.call("dynamodb", "ListTables", {})
    account.call("iam", "ListUsers", {})
    assert not difference(before, account.state())


def test_a_snapshot_brings_back_identifiers_too(account: Account) -> None:
    account.reset()
    key = account.call("kms", "CreateKey", {})["KeyMetadata"]["KeyId"]
    secret = account.call("secretsmanager", "CreateSecret", {"Name": "a", "SecretString": "b"})
    taken = account.snapshot()
    account.call("kms", "CreateKey", {})
    account.restore(taken)
    assert [k["KeyId"] for k in account.call("kms", "ListKeys", {})["Keys"]] == [key]
    again = account.call("secretsmanager", "DescribeSecret", {"SecretId": "a"})
    assert secret["VersionId"] in again["VersionIdsToStages"]


@pytest.mark.parametrize("name", ["dms-CreateEndpoint", "s3-CreateMultipartUpload"])
def test_identifiers_from_other_generators_follow_from_the_seed_too(
    account: Account, name: str
) -> None:
    task, states = find_task(name), []
    for seed in (7, 7, 8):
        account.reset((*seed_calls(), *task.setup), seed=seed)
        gold(task, account)
        states.append(account.state())
    first, again, other = states
    assert not difference(first, again)
    assert difference(first, other)


def test_only_services_draw_bytes_from_the_seed() -> None:
    def drawn(module: str) -> bytes:
        names = {"__name__": module, "seeded": seeded}
        random.seed(3)
        exec("found = seeded(16)", names)
        return bytes(names["found"])

    assert drawn("moto.s3.models") == drawn("moto.s3.models")
    assert drawn("uuid") != drawn("uuid")  # by which moto tells the registries of services apart


def test_a_refusal_passes_through_a_context_manager(account: Account) -> None:
    @contextlib.contextmanager
    def block() -> Iterator[None]:
        yield

    with pytest.raises(Refused), block():
        account.call("sqs", "GetQueueUrl", {"QueueName": "nothing"})


def test_what_cannot_be_is_refused_as_the_real_service_does(account: Account) -> None:
    account.reset(seed_calls())
    with pytest.raises(Refused, match=r"NonExistentQueue|QueueDoesNotExist"):
        account.call("sqs", "GetQueueUrl", {"QueueName": "nothing"})
    with pytest.raises(ValueError, match="Parameter validation failed"):
        account.call("sqs", "CreateQueue", {"Name": "x"})
    with pytest.raises(ValueError, match="no operation"):
        account.call("sqs", "MakeQueue", {})


def test_messages_cross_services(account: Account) -> None:
    account.reset(seed_calls())
    topic = "arn:aws:sns:us-east-1:123456789012:media-alerts"
    queue = "arn:aws:sqs:us-east-1:123456789012:media-jobs"
    account.call("sns", "Subscribe", {"TopicArn": topic, "Protocol": "sqs", "Endpoint": queue})
    account.call("sns", "Publish", {"TopicArn": topic, "Message": "hello"})
    url = account.call("sqs", "GetQueueUrl", {"QueueName": "media-jobs"})["QueueUrl"]
    (message,) = account.call("sqs", "ReceiveMessage", {"QueueUrl": url})["Messages"]
    assert json.loads(message["Body"])["Message"] == "hello"


def test_the_list_of_what_is_served_is_kept_with_its_counts() -> None:
    operations = served_operations()
    assert len(operations) >= 150
    assert 3_000 < sum(map(len, operations.values())) < 4_500
    assert "CreateQueue" in operations["sqs"]
    assert "CreateBucket" in operations["s3"]
    assert "gamelift" not in operations


def test_there_are_as_many_tasks_as_promised_and_each_is_whole() -> None:
    tasks = load_tasks()
    assert Counter(task.kind for task in tasks) == {
        "primitive": 60,
        "composite": 20,
        "impossible": 10,
    }
    assert len({task.name for task in tasks}) == len(tasks)
    for task in tasks:
        assert bool(task.predicates) == (task.kind != "impossible")
        assert len(task.steps) == 1 if task.kind == "primitive" else task.steps
        for predicate in task.predicates:
            assert predicate.tool != task.steps[-1].tool, task.name


NAMES = ["orders-fan-out", "colleague-leaves", "repair-nightly", "website", "records"]


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_false_before_its_calls_and_true_after_them(account: Account, name: str) -> None:
    assert verified(find_task(name), account, seed_calls()) is None


@pytest.mark.slow
async def test_every_task_is_verified_and_can_be_done_over_http_too(account: Account) -> None:
    shelf = Shelf(from_botocore(sources.botocore_data()))
    pages = web.Pages(shelf)
    bench = Bench(account, Gateway(Offered(shelf), lambda query, k: [], {"aws": Cloud(account)}))
    for task in load_tasks():
        if task.kind != "impossible":
            assert verified(task, account, seed_calls()) is None, task.name
            solved = await bench.by(task, lambda one, bill: web.scripted(account, pages, one, bill))
            assert solved.done, (task.name, solved.why)


async def test_a_service_that_is_down_is_a_typed_fault_and_then_works_again(
    shelf: Shelf, index: ToolIndex
) -> None:
    with Account() as own:
        own.reset()
        gateway = Gateway(Offered(shelf), lambda query, k: [], {"aws": Cloud(own)})
        session = gateway.session(Access(any_name=True))
        made = {"QueueName": "once"}
        assert (await session.call("aws.sqs.CreateQueue", made)).ok
        own.stop()
        down = await session.call("aws.sqs.CreateQueue", {"QueueName": "two"}, key="k")
        assert down.fault is not None
        assert (down.fault.kind, down.fault.retryable) == ("unavailable", True)
        own.start()
        again = await session.call("aws.sqs.CreateQueue", {"QueueName": "two"}, key="k")
        assert again.ok
        assert len(own.call("sqs", "ListQueues", {})["QueueUrls"]) == 1


def test_a_stopped_cloud_says_so() -> None:
    account = Account()
    account.stop()
    with pytest.raises(CloudDown, match="stopped"):
        account.call("sqs", "ListQueues", {})
    account.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("not-drop-table", "not_approved"), ("no-render-farm", "not_served")],
)
async def test_impossible_tasks_are_refused_and_change_nothing(
    account: Account, gateway: Gateway, name: str, kind: str
) -> None:
    solved = await Bench(account, gateway).scripted(find_task(name), oracle_look)
    assert solved.done
    assert solved.why.startswith(kind)
    assert solved.damage == 0


@pytest.mark.parametrize("look", [oracle_look, gateway_look(3)])
async def test_the_script_does_tasks_with_data_flow(
    account: Account, gateway: Gateway, look: Look
) -> None:
    solved = await Bench(account, gateway).scripted(find_task("orders-fan-out"), look)
    assert (solved.done, solved.score, solved.damage) == (True, 1.0, 0)
    assert solved.bill.calls == 3


async def test_what_was_not_found_is_not_called(account: Account, gateway: Gateway) -> None:
    bench = Bench(account, gateway)
    solved = await bench.scripted(find_task("orders-fan-out"), once_look(lambda query, k: []))
    assert (solved.done, solved.bill.calls) == (False, 0)
    assert "was not found" in solved.why


async def test_attempts_that_change_nothing_do_not_damage_the_next(
    account: Account, gateway: Gateway
) -> None:
    task, bench = find_task("orders-fan-out"), Bench(account, gateway)
    for _ in range(2):
        idle = await bench.scripted(task, once_look(lambda query, k: []))
        assert (idle.done, idle.bill.calls) == (False, 0)
        solved = await bench.scripted(task, oracle_look)
        assert (solved.done, solved.damage) == (True, 0)


async def test_damage_is_counted(account: Account, gateway: Gateway) -> None:
    task = find_task("repair-nightly")

    async def clumsy(task: Task, bill: Bill) -> str:
        account.call("events", "EnableRule", {"Name": "research-nightly"})
        account.call("sqs", "CreateQueue", {"QueueName": "oops"})
        return ""

    solved = await Bench(account, gateway).by(task, clumsy)
    assert solved.done
    assert solved.damage > 5


async def test_pages_and_http_do_a_task_too(
    account: Account, gateway: Gateway, shelf: Shelf
) -> None:
    pages = web.Pages(shelf)
    assert "CreateQueue" in pages.service("sqs")
    bench = Bench(account, gateway)
    solved = await bench.by(
        find_task("orders-fan-out"), lambda task, bill: web.scripted(account, pages, task, bill)
    )
    assert solved.done, solved.why
    with pytest.raises(ValueError, match="not the company's address"):
        web.sent(account, {"method": "GET", "url": "http://127.0.0.1:1/", "headers": {}})


def test_references_are_filled_from_earlier_answers() -> None:
    answers = {"a": {"B": [{"C": "x"}]}}
    assert filled({"k": ["{{a.B[0].C}}-1"]}, answers) == {"k": ["x-1"]}
    with pytest.raises(ConfigError, match="No earlier step"):
        filled("{{a.D}}", answers)


def test_a_task_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="no task 'webiste'"):
        find_task("webiste")


def test_values_of_a_sentence() -> None:
    text = 'Put "two words" into /a/b of company-data for 30 days, version 1.2'
    assert values_in(text) == ["two words", "/a/b", "company-data", "30", "1.2"]


def test_as_an_environment(account: Account, gateway: Gateway) -> None:
    world = Company("composite", office=Office(account, gateway))
    assert world.reset(7).startswith("Task: The nightly rule of research")
    start = world.state_key()
    nonsense = world.step("do it")
    assert (nonsense.valid, nonsense.reward) == (False, 0.0)
    found = world.step(json.dumps({"find": "enable the specified rule"}))
    assert "aws.events.EnableRule" in found.observation
    taken = world.snapshot()
    call = {"call": "aws.events.EnableRule", "arguments": {"Name": "research-nightly"}}
    world.step(json.dumps(call))
    assert world.state_key() != start
    ended = world.step(json.dumps({"answer": "done"}))
    assert (ended.reward, ended.solved, ended.done) == (1.0, True, True)
    world.restore(taken)
    assert "not found" not in world.step(json.dumps(call)).observation
    assert world.step(json.dumps({"answer": "done"})).solved
    world.reset(7)
    assert world.state_key() == start
    assert world.step(json.dumps({"answer": "nothing to do"})).reward == 0.0


def test_calls_that_are_made_are_kept(account: Account) -> None:
    account.reset()
    account.call("sqs", "CreateQueue", {"QueueName": "a"})
    assert account.snapshot() == (Called("sqs", "CreateQueue", {"QueueName": "a"}),)
