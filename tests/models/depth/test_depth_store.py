"""Plans on disk: they load like models, share their base, and refuse another."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.core.errors import ConfigError, InputError, ModelError
from shoal.models.decoder import causal_attend
from shoal.models.depth.arrange import planned
from shoal.models.depth.compress import CompressOptions, compress
from shoal.models.depth.expand import expand
from shoal.models.depth.gates import GateOptions
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.stack import row_losses
from shoal.models.depth.store import ADAPTER, PlanFile, content_of, load_plan, read_plan, save_plan
from shoal.models.depth.text import Corpus, corpus
from shoal.models.loading import Model, load

PLAN = DepthPlan.whole(6).without([3]).merged(1, 1)
OPTIONS = CompressOptions(
    remove=1 / 6, fold=1 / 6, cure_tokens=48 * 8, rank="gates", gates=GateOptions(steps=12, batch=4)
)


@pytest.fixture(scope="module")
def text(small: Model, text_file: Path) -> Corpus:
    return corpus(small.tokenizer, [text_file], length=48)


@pytest.fixture(scope="module")
def cured(
    small: Model, small_folder: Path, text: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("plans") / "cured"
    compress(small, text, OPTIONS, folder, base=str(small_folder))
    return folder


def logits(model: Model, text: str = "the otter waits ") -> torch.Tensor:
    ids = torch.tensor(model.tokenizer.encode(text, special=False))
    decoder = model.decoder
    with torch.inference_mode():
        return decoder.logits(decoder.forward(ids, torch.arange(len(ids)), causal_attend))


def test_a_compressed_model_loads_by_its_folder_and_gives_what_was_measured(
    cured: Path, text: Corpus
) -> None:
    model = load(str(cured), dtype="fp32")
    file = read_plan(cured)
    assert not (cured / ".unfinished").exists()
    assert model.config.layers == len(file.plan.steps) == 5
    assert len(file.plan.stored) == 4
    loss = float(row_losses(model.decoder, text.held_out_NS[:8]).mean())
    stages = {stage.name: stage for stage in file.account.stages}
    assert list(stages) == ["original", "removed", "folded", "cured"]
    assert stages["cured"].perplexity == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-3)
    assert stages["cured"].perplexity < stages["folded"].perplexity
    assert stages["folded"].block_bytes < stages["removed"].block_bytes
    assert stages["cured"].added_bytes > 0
    assert len(file.account.gates) == 6


def test_models_of_several_plans_share_one_base(
    small: Model, small_folder: Path, cured: Path, tmp_path: Path
) -> None:
    short = PlanFile(1, str(small_folder), content_of(small), DepthPlan.whole(6).without([2]))
    save_plan(tmp_path / "short", short)
    one, other = load(str(cured)), load(str(tmp_path / "short"))
    assert one.base is other.base
    name = "layers.0.qkv"
    assert one.decoder.weights[name].data_ptr() == other.decoder.weights[name].data_ptr()
    assert one.fingerprint != other.fingerprint
    assert one.base is not None and one.fingerprint.startswith(one.base.fingerprint)
    del one, other
    gc.collect()
    from shoal.models.depth import store

    assert not list(store._bases.items())


def test_a_plan_is_refused_over_another_base(
    cured: Path, small: Model, small_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(small_folder, other)
    told = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**told, "rope_theta": 20_000.0}))
    with pytest.raises(ModelError, match=r"was made for .* with content .* but other has"):
        load_plan(cured, base=load(str(other)))
    moved = tmp_path / "moved"
    shutil.copytree(cured, moved)
    file = json.loads((moved / "plan.json").read_text())
    (moved / "plan.json").write_text(json.dumps({**file, "base": str(other)}))
    with pytest.raises(ModelError, match="give the base it was made for"):
        load(str(moved))


def test_a_plan_that_names_a_missing_block_is_refused(cured: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(cured, broken)
    text = (broken / "plan.json").read_text()
    file = json.loads(text)
    file["plan"]["steps"][-1] = {"block": 9, "origin": 9}
    (broken / "plan.json").write_text(json.dumps(file))
    with pytest.raises(ConfigError, match="names block 9, which the base has not"):
        load(str(broken))
    (broken / "plan.json").write_text(text[:40])
    with pytest.raises(ModelError, match="is no plan that can be read"):
        load(str(broken))
    (broken / "plan.json").write_text(json.dumps({**json.loads(text), "version": 7}))
    with pytest.raises(ModelError, match="is of version 7"):
        load(str(broken))


def test_what_is_stopped_goes_on_and_ends_the_same(
    small: Model, text: Corpus, cured: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"

    class Stopped(Exception):
        pass

    def stop_at(name: str, when: int) -> None:
        def work(what: str, done: int, total: int) -> None:
            if what == name and done == when:
                raise Stopped

        with pytest.raises(Stopped):
            compress(small, text, OPTIONS, folder, base="x", on_work=work)

    stop_at("Learning gates", 5)
    assert not (folder / "plan.json").exists()
    stop_at("Curing", 3)
    learned: list[str] = []
    compress(small, text, OPTIONS, folder, on_work=lambda what, done, total: learned.append(what))
    assert "Learning gates" not in learned  # kept from the second call
    assert read_plan(folder).plan == read_plan(cured).plan
    same = load_plan(folder, base=small).decoder, load_plan(cured, base=small).decoder
    found, expected = (row_losses(each, text.held_out_NS) for each in same)
    assert torch.equal(found, expected)


def test_other_settings_do_not_take_up_anothers_work(
    small: Model, text: Corpus, cured: Path, tmp_path: Path
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "Measuring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(small, text, OPTIONS, tmp_path / "out", on_work=stop)
    with pytest.raises(ConfigError, match="with other settings, text or model"):
        compress(small, text, replace(OPTIONS, remove=2 / 6), tmp_path / "out")
    with pytest.raises(ConfigError, match="is in use"):
        compress(small, text, OPTIONS, cured)


def test_without_a_cure_the_perplexity_is_named_in_a_warning(
    small: Model, text: Corpus, tmp_path: Path
) -> None:
    file = compress(small, text, replace(OPTIONS, cure_tokens=0), tmp_path / "raw")
    folded = file.account.stages[-1]
    assert folded.name == "folded"
    (note,) = [note for note in file.account.notes if "not cured" in note]
    assert f"its perplexity is {folded.perplexity:.4g}" in note
    assert not (tmp_path / "raw" / ADAPTER).exists()


def test_too_little_text_is_refused(small: Model, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a boat")
    with pytest.raises(InputError, match="gives 0 rows of 48 tokens"):
        corpus(small.tokenizer, [tmp_path / "short.txt"], length=48)


def test_every_tenth_row_is_held_out(text: Corpus, small: Model, text_file: Path) -> None:
    total = len(text.fitted_NS) + len(text.held_out_NS)
    assert len(text.held_out_NS) == total // 10
    held = {tuple(row.tolist()) for row in text.held_out_NS}
    words = small.tokenizer.encode(text_file.read_text(), special=False)
    assert tuple(words[9 * 48 : 10 * 48]) in held
    assert text.calibration(5).shape == (5, 48)


def test_packed_models_are_not_compressed(small_folder: Path, text: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="load it as floats, with dtype bf16 or fp32"):
        compress(load(str(small_folder), dtype="packed"), text, OPTIONS, tmp_path / "out")


def test_an_exported_plan_says_the_same_in_transformers(cured: Path, tmp_path: Path) -> None:
    done = expand(cured, tmp_path / "hub", dtype="fp32")
    assert done.warning is not None and "each folded block was written in full" in done.warning
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    ours = load(str(cured), dtype="fp32")
    ids = torch.tensor([ours.tokenizer.encode("the otter waits ", special=False)])
    with torch.inference_mode():
        expected = theirs(ids).logits[0]
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-4)
    again = load(str(tmp_path / "hub"), dtype="fp32")
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match="is in use"):
        expand(cured, tmp_path / "hub")


def test_removal_alone_is_exported_without_growing(
    small: Model, small_folder: Path, tmp_path: Path
) -> None:
    short = PlanFile(1, str(small_folder), content_of(small), DepthPlan.whole(6).without([2]))
    save_plan(tmp_path / "short", short)
    done = expand(tmp_path / "short", tmp_path / "hub", dtype="fp32")
    assert done.warning is None
    assert done.written_bytes == done.plan_bytes


def test_a_base_lays_out_only_the_blocks_that_a_plan_executes(
    small: Model, small_folder: Path, tmp_path: Path
) -> None:
    plan = DepthPlan.whole(6).without([2]).merged(2, 3)  # 0 1 3=4 5
    save_plan(tmp_path / "short", PlanFile(1, str(small_folder), content_of(small), plan))
    model = load(str(tmp_path / "short"))
    assert model.base is not None
    assert set(model.base.decoder._matrices[0].layers._made) == {0, 1, 3, 5}
    whole = logits(load(str(small_folder)))
    torch.testing.assert_close(logits(model.base), whole, rtol=0, atol=0)


def test_a_folder_with_anything_else_in_it_is_left_alone(
    small: Model, text: Corpus, tmp_path: Path
) -> None:
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="is in use"):
        compress(small, text, OPTIONS, tmp_path)
    with pytest.raises(InputError, match=r"mine\.txt cannot be written to"):
        compress(small, text, OPTIONS, tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_plan_is_not_made_over_a_plan(cured: Path, text: Corpus, tmp_path: Path) -> None:
    model = load(str(cured), dtype="fp32")
    with pytest.raises(ModelError, match="is a plan already: compress small"):
        compress(model, text, OPTIONS, tmp_path / "out")
    with pytest.raises(ConfigError, match="carries an adapter"):
        planned(model, DepthPlan.whole(5))


def test_all_inner_blocks_can_go(small: Model, text: Corpus, tmp_path: Path) -> None:
    file = compress(small, text, CompressOptions(remove=4 / 6), tmp_path / "ends")
    assert file.plan.kept == (0, 5)
