"""A reproduction whose every step is marked as done, with results that the test makes up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuning.reproduce import plan
from tuning.reproduction.config import ReproduceConfig
from tuning.reproduction.experiments import EXPERIMENTS
from tuning.reproduction.recipe import ALL_ROWS, Recipe
from tuning.reproduction.results import Results
from tuning.reproduction.steps import Ending

QUALITY = {"sim-a": 0.5, "sim-b": 0.6, "random": 0.4, "pair_ranker": 0.65, "urg_rank": 0.7, "urg_random_k": 0.62}
QUALITY |= {"llm_blender": 0.72, "urg": 0.8, "oracle": 0.9}
RATIOS = {"rank_vs_pairranker_full": 20.0, "rank_vs_pairranker_bubble": 3.0}
TESTS = {
    "label": [{"first": "urg_rank", "second": "pair_ranker", "rows": 1200, "difference": 0.05, "p_holm": 0.001}],
    "rougeL": [
        {"first": "llm_blender", "second": "urg", "rows": 1200, "difference": -0.08, "p_holm": 0.03},
        {"first": "urg", "second": "oracle", "rows": 1200, "difference": -0.1, "p_holm": 0.002},
        {"first": "sim-b", "second": "urg", "rows": 1200, "difference": -0.2, "p_holm": 0.2},
        {"first": "sim-a", "second": "sim-b", "rows": 1200, "difference": -0.1, "p_holm": 0.002},
    ],
}


Score = float | tuple[float, ...]
"""Of every seed, or of each."""


@pytest.fixture
def settings() -> dict[str, Any]:
    """What a test changes in the reproduction's configuration."""
    return {}


@pytest.fixture
def recipe(tmp_path: Path, settings: dict[str, Any]) -> Recipe:
    """All experiments; of the sample with three seeds, unless the test says more."""
    return plan(ReproduceConfig(**({"storage": str(tmp_path), "only": ",".join(EXPERIMENTS)} | settings)))[0]


@pytest.fixture
def made_up(recipe: Recipe) -> Callable[..., Results]:
    """made_up(quality={system: score}, ablated={variant: {system: score}}, by_k={k: dev score}, noise={system: Δ%, or
    {added: Δ%}}, ratios={name: value}): results in which a score of a seed is what is given + seed / 1000, or the
    seed's of a tuple."""

    def make(
        quality: dict[str, Score] | None = None,
        ablated: dict[str, dict[str, Score]] | None = None,
        by_k: dict[int, Score] | None = None,
        noise: dict[str, Any] | None = None,
        ratios: dict[str, float] | None = None,
    ) -> Results:
        quality = QUALITY | (quality or {})
        for name, step in recipe.steps.items():
            _write(recipe, name, step.command, quality, ablated or {}, by_k or {}, noise or {})
        document = {"ratios": RATIOS if ratios is None else ratios, "missing": {"stack_vs_bare": "not asked for"}}
        own = {"rows": 4, "tokens_per_row": 99.0, "seconds": 2.0, "spread": 0.0, "rows_per_s": 2.0, "parameters": 8e8}
        own |= {"norm": 1.0}
        systems = {"urg": own, "pair_ranker_bubble": own | {"rows_per_s": 0.25}}
        timed = {"encoder": "tiny", "batches": {"8": {"fp32": systems}}}
        _json(recipe.timings("rankers") / "benchmark.json", document | {"config": {"quick": True}, "rankers": timed})
        growth = {
            "analytic_n_exponent": {"urg": 1.0},
            "n_exponent": 1.02,
            "pair_ranker_full_n_exponent": 1.97,
            "length_exponent": 0.9,
            "seconds_by_n": {"4": 1.0, "8": 2.0},
        }
        _json(recipe.timings("complexity") / "benchmark.json", {"complexity": growth})
        sources = {"generated": {"rows": 3000}}
        _json(recipe.root / "stats" / "stats.json", {"sources": sources})
        (recipe.root / "sweep").mkdir(parents=True, exist_ok=True)
        (recipe.root / "sweep" / "report.md").write_text("# Sweep\n\nTwelve trials.\n", encoding="utf-8")
        return Results(recipe, {name: Ending(1.0) for name in recipe.steps})

    return make


def _write(
    recipe: Recipe,
    name: str,
    command: tuple[str, ...],
    quality: dict[str, Score],
    ablated: dict[str, dict[str, Score]],
    by_k: dict[int, Score],
    noise: dict[str, Any],
) -> None:
    """What the command of a step would leave behind, as far as results read it."""
    given = dict(zip(command[1::2], command[2::2], strict=True))
    if command[0] == "urg.train":
        k = int(given.get("--model.k", 3))
        metrics = {_headline(recipe): _of_seed(by_k.get(k, 0.5), int(given["--seed"]))}
        run = Path(given["--storage"]) / given["--name"]
        run.mkdir(parents=True, exist_ok=True)
        line = {"step": 150, "seconds": 1.0, "metrics": metrics}
        (run / "evaluations.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    if command[0] == "urg.evaluate":
        _evaluated(recipe, name, given, quality, ablated, noise)


def _headline(recipe: Recipe) -> str:
    return Results(recipe, {}).headline


def _of_seed(score: Score, seed: int) -> float:
    return score[seed] if isinstance(score, tuple) else score + seed / 1000


def _noise(given: Any, metric: str, seed: int) -> dict[str, dict[str, float]]:
    by_added = given if isinstance(given, dict) else dict.fromkeys(("12", "11,12"), given)
    return {added: {metric: v[seed] if isinstance(v, tuple) else v} for added, v in by_added.items()}


def _evaluated(
    recipe: Recipe,
    name: str,
    given: dict[str, str],
    quality: dict[str, Score],
    ablated: dict[str, dict[str, Score]],
    noise: dict[str, Any],
) -> None:
    output, seed = recipe.output(name), int(given["--seed"])
    if given.get("--experiment") == "noise":
        changes = {s: _noise(noise.get(s, -1.0), _headline(recipe), seed) for s in ("urg", "llm_blender")}
        _json(output / "noise.json", {"change_percent": changes})
        return
    if exported := {"human": "human/sheet.csv", "cases": "cases.md"}.get(given.get("--experiment", "")):
        _json(Path(given["--output"]) / exported, {})
        return
    variant = name.removeprefix("evaluate-").rsplit("-", 1)[0]
    own = quality | ablated.get(variant, {})
    models = (metric for metric in ("bertscore", "bartscore", "bleurt") if f"{metric}_model" in recipe.models())
    metrics = ("label", *models, "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu")
    systems = {system: dict.fromkeys(metrics, _of_seed(score, seed)) for system, score in own.items()}
    kinds: dict[str, Any] = {system: "model" if system.startswith("sim-") else "ranker" for system in own}
    parameters = 2_849_757_184 if recipe.config.preset == "flan-t5-xl" else 783_150_080
    document: dict[str, Any] = {"systems": systems, "kinds": kinds, "model": {"parameters": parameters}}
    assert name != ALL_ROWS or given["--rows"] == "null"
    if name == recipe.all_rows:
        ends = {s: {"rougeL": [own["rougeL"] - 0.01, own["rougeL"] + 0.01]} for s, own in systems.items()}
        document |= {"data": {"rows": 1200}, "intervals": ends, "statistics": "intervals: 95%", "tests": TESTS}
    _json(output / "metrics.json", document)


def write_tests(recipe: Recipe, p_holm: dict[str, float]) -> None:
    """Replace the tests of the step on all rows: of every pair, by metric with this p."""
    path = recipe.output(recipe.all_rows) / "metrics.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    means = document["systems"]
    document["tests"] = {
        metric: [
            {"first": a, "second": b, "rows": 1200, "difference": means[a][metric] - means[b][metric], "p_holm": p}
            for a, b in itertools.combinations(means, 2)
        ]
        for metric, p in p_holm.items()
    }
    _json(path, document)


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
