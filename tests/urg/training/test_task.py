"""Every task: its shares add up to the whole, fillers change nothing, and random choices do not know the workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSet
from tests.preparing import prepare_without_ray
from urg.config import TrainConfig
from urg.objective import Counts, weighted_sum
from urg.training.task import TASKS, Share, Task, build_task

CPU = torch.device("cpu")
STEP = 5
RANK_ONLY = "urg, rank loss alone"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows of the sample, made without Ray."""
    from data_pipeline.config import PrepareConfig, SampleSize

    return prepare_without_ray(
        PrepareConfig(output=str(tmp_path_factory.mktemp("data")), sample=SampleSize(8, 2, 2, 0))
    )


@pytest.fixture(params=[*TASKS, RANK_ONLY])
def task(request: pytest.FixtureRequest, make_config: Callable[..., TrainConfig]) -> Task:
    """A tiny one without dropout; in eval mode, so that SummaReranker's gates are not noisy."""
    metric = "rougeL" if request.param == "gen_fuser" else "label"
    system, generation = ("urg", False) if request.param == RANK_ONLY else (request.param, True)
    config = make_config(system=system, model__dropout=0.0, eval__metric=metric, loss__generation=generation)
    made = build_task(config, ShardSet.open(config.data.shards))
    made.module.eval()
    return made


def loss(task: Task, shards: Path, parts: list[list[int]]) -> Any:
    """The summed loss over the parts of one global batch of four rows; an empty part is a worker without a row."""
    split = ShardSet.open(shards).split("train")
    counts = task.counts(split, np.arange(4))
    task.module.zero_grad()
    total = torch.zeros(())
    for part in parts:
        rows = np.array(part or [0])
        share = Share([split[int(row)] for row in rows], rows, STEP, fillers=0 if part else 1)
        terms = task.terms(task.module, task.batch(share, CPU), counts)
        assert terms.keys() <= task.weights.keys()
        term = weighted_sum(terms, task.weights)
        term.backward()
        total = total + term.detach()
    norm = torch.stack([p.grad.norm() for p in task.module.parameters() if p.grad is not None]).norm()
    return total.item(), norm.item()


def test_shares_add_up_to_the_whole_whatever_the_workers(task: Task, shards: Path) -> None:
    whole = loss(task, shards, [[0, 1, 2, 3]])
    assert whole[1] > 0
    for parts in ([[0, 1], [2, 3]], [[3], [1], [0, 2], []]):
        assert loss(task, shards, parts) == pytest.approx(whole, rel=1e-4)


def test_real_tokens_are_no_more_than_those_computed(task: Task, shards: Path) -> None:
    split = ShardSet.open(shards).split("train")
    real, computed = task.tokens(task.batch(Share(split[:4], np.arange(4), STEP, 0), CPU))
    assert 0 < real <= computed


def test_what_is_saved_makes_a_card_and_names_its_system(task: Task, tmp_path: Path) -> None:
    weights = {name: p.detach().clone() for name, p in task.module.named_parameters()}
    task.save(tmp_path, weights, step=7)
    assert (tmp_path / "model.safetensors").is_file()
    (settings,) = [*tmp_path.glob("urg.json"), *tmp_path.glob("system.json")]
    assert '"steps": 7' in settings.read_text()
    assert "| label | 0.5000 |" in task.card(7, {"label": 0.5})


def test_the_rank_loss_alone_has_the_gradient_that_it_has_beside_the_others(
    make_config: Callable[..., TrainConfig], shards: Path
) -> None:
    rows, gradients = np.arange(4), []
    for generation in (True, False):
        config = make_config(model__dropout=0.0, loss__generation=generation)
        task, split = build_task(config, ShardSet.open(shards)), ShardSet.open(shards).split("train")
        batch = task.batch(Share(split[:4], rows, STEP, 0), CPU)
        terms = task.terms(task.module, batch, task.counts(split, rows))
        assert set(terms) == ({"rank", "ce", "ce_last", "kl"} if generation else {"rank"})
        terms["rank"].backward()
        gradients.append({name: p.grad for name, p in task.module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-8)


def test_a_model_that_is_not_taught_to_write_answers_with_its_top_candidate_and_says_so(
    make_config: Callable[..., TrainConfig], shards: Path, tmp_path: Path
) -> None:
    from urg.ensemble import Ensemble

    task = build_task(make_config(loss__generation=False), ShardSet.open(shards))
    task.module.eval()
    examples = ShardSet.open(shards).split("train")[:3]
    with torch.inference_mode():
        judged = task.judge(examples, CPU)
    for example, one in zip(examples, judged, strict=True):
        assert one.scores is not None
        assert one.text == example.texts[int(np.argmax(one.scores))]
    task.save(tmp_path, {name: p.detach().clone() for name, p in task.module.named_parameters()}, step=1)
    card = task.card(1, {})
    assert ".rank(instruction" in card
    assert "was not taught to write" in card
    ensemble = Ensemble.from_pretrained(tmp_path)
    assert not ensemble.writes
    assert len(ensemble.rank("Where?", ["here", "there"]).order) == 2
    with pytest.raises(UserError, match="trained to rank alone"):
        ensemble.rank_and_fuse("Where?", ["here", "there"])


@pytest.mark.parametrize("system", ["simcls", "summareranker", "gen_fuser"])  # PairRanker needs some 200 steps first
def test_a_few_rows_are_learnt_by_heart(system: str, make_config: Callable[..., TrainConfig], shards: Path) -> None:
    metric = "rougeL" if system == "gen_fuser" else "label"
    config = make_config(system=system, model__dropout=0.0, eval__metric=metric, eval__max_new_tokens=24)
    task, split = build_task(config, ShardSet.open(shards)), ShardSet.open(shards).split("train")
    rows, examples = np.arange(2), split[:2]
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=5e-3)
    torch.manual_seed(0)
    for step in range(1, 101):
        batch = task.batch(Share(examples, rows, step, 0), CPU)
        optimizer.zero_grad()
        weighted_sum(task.terms(task.module, batch, task.counts(split, rows)), task.weights).backward()
        optimizer.step()
    task.module.eval()
    with torch.inference_mode():
        judged = task.judge(examples, CPU)
    if system == "gen_fuser":
        from data_pipeline.quality.rouge import rouge

        assert min(rouge([one.text for one in judged], [row.output for row in examples])["rougeL"]) > 0.9
        return
    for example, one in zip(examples, judged, strict=True):
        labels = example.scores["rougeL"]
        assert one.scores is not None
        assert labels[np.argmax(one.scores)] >= np.sort(labels)[-2]  # of twelve
        assert one.text == example.texts[int(np.argmax(one.scores))]


# --------------------------------------------------------------------------------------------------------------------
# URG's own


@pytest.fixture
def urg(make_config: Callable[..., TrainConfig]) -> Callable[..., Task]:
    """urg(loss__key=value, …): a tiny URG without dropout, in eval mode."""

    def make(**settings: Any) -> Task:
        config = make_config(model__dropout=0.0, **settings)
        made = build_task(config, ShardSet.open(config.data.shards))
        made.module.eval()
        return made

    return make


def share_of(shards: Path, step: int = STEP) -> Share:
    return Share(ShardSet.open(shards).split("train")[:3], np.arange(3), step, 0)


def test_urg_selects_as_its_loss_says(urg: Callable[..., Task], shards: Path) -> None:
    assert urg().batch(share_of(shards), CPU).guide_BN is None
    gold = urg(loss__selection="gold").batch(share_of(shards), CPU)
    assert torch.equal(gold.guide_BN, gold.batch.quality_BN)
    by_chance = urg(loss__selection="random")
    first, again, later = (by_chance.batch(share_of(shards, step), CPU).guide_BN for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("gamma", [5.0, 0.5])
def test_urg_diagnoses_the_rank_terms_share_of_the_gradient(
    gamma: float, urg: Callable[..., Task], shards: Path
) -> None:
    task = urg(loss__gamma=gamma)
    batch = task.batch(share_of(shards), CPU)
    counts = task.counts(ShardSet.open(shards).split("train"), np.arange(4))
    norms = {}
    for name in ("rank", "ce"):
        task.module.zero_grad()
        task.terms(task.module, batch, counts)[name].backward()
        norms[name] = torch.stack([p.grad.norm() for p in task.module.parameters() if p.grad is not None]).norm()
    task.module.zero_grad()
    found = task.diagnose(batch, counts)
    assert found == {"grad_ratio_rank_to_ce": pytest.approx(float(gamma * norms["rank"] / norms["ce"]), rel=1e-4)}
    assert all(p.grad is None for p in task.module.parameters()), "the step's own gradients are not touched"
    assert urg(loss__gamma=0.0).diagnose(batch, counts) == {}


def test_without_dropout_the_teacher_of_its_own_is_the_one_there_was(urg: Callable[..., Task], shards: Path) -> None:
    """The same terms and gradients, for one pass more over the target tokens."""
    found = []
    for dropout in (True, False):
        task = urg(loss__teacher_dropout=dropout)
        batch, counts = task.batch(share_of(shards), CPU), Counts(3, 30, 30)
        terms = task.terms(task.module, batch, counts)
        weighted_sum(terms, task.weights).backward()
        gradients = {name: p.grad for name, p in task.module.named_parameters()}
        found.append((terms, gradients, task.tokens(batch)))
    (terms, gradients, (real, computed)), (same, others, (more, written)) = found
    for name, term in terms.items():
        torch.testing.assert_close(same[name], term)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-7)
    assert more - real == len(batch.batch.target_P)
    assert written > computed


def test_a_teacher_without_dropout_differs_from_one_with_it(make_config: Callable[..., TrainConfig]) -> None:
    """In the KL alone: all else draws the same masks."""
    found = []
    for dropout in (True, False):
        config = make_config(model__dropout=0.2, loss__teacher_dropout=dropout)
        task = build_task(config, ShardSet.open(config.data.shards))
        batch = task.batch(share_of(Path(config.data.shards)), CPU)
        torch.manual_seed(0)
        found.append(task.terms(task.module, batch, Counts(3, 30, 30)))
    for name in ("rank", "ce", "ce_last"):
        assert torch.equal(found[0][name], found[1][name])
    assert not torch.equal(found[0]["kl"], found[1]["kl"])


@pytest.mark.parametrize(("settings", "fused"), [({}, 3), ({"model__k_gap": 0.0}, 1)])
def test_urg_is_judged_by_its_own_scores_and_text(
    settings: dict[str, Any], fused: int, urg: Callable[..., Task], shards: Path, tmp_path: Path
) -> None:
    from urg.ensemble import Ensemble, Query

    task, examples = urg(eval__max_new_tokens=4, **settings), share_of(shards).examples
    with torch.inference_mode():
        judged = task.judge(examples, CPU)
    task.save(tmp_path, {name: p.detach().clone() for name, p in task.module.named_parameters()}, step=1)
    queries = [Query(row.instruction, row.texts, row.input) for row in examples]
    used = Ensemble.from_pretrained(tmp_path).rank_and_fuse_batch(queries, num_beams=1, max_new_tokens=4)
    for one, other in zip(judged, used, strict=True):
        assert one.scores == pytest.approx(other.ranking.scores, rel=1e-4)
        assert one.text == other.text
        assert len(other.used) == fused
