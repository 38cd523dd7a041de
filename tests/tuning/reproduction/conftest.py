"""A reproduction whose every step is marked as done, with results that the test makes up."""

from __future__ import annotations

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


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """All experiments of the sample, three seeds."""
    return plan(ReproduceConfig(storage=str(tmp_path), only=",".join(EXPERIMENTS)))[0]


@pytest.fixture
def made_up(recipe: Recipe) -> Callable[..., Results]:
    """made_up(quality={system: score}, ablated={variant: URG's score}, by_k={k: dev score}, noise={system: Δ%},
    ratios={name: value}): results in which a score of a seed is what is given + seed / 1000."""

    def make(
        quality: dict[str, float] | None = None,
        ablated: dict[str, float] | None = None,
        by_k: dict[int, float] | None = None,
        noise: dict[str, float] | None = None,
        ratios: dict[str, float] | None = None,
    ) -> Results:
        quality = QUALITY | (quality or {})
        for name, step in recipe.steps.items():
            _write(recipe, name, step.command, quality, ablated or {}, by_k or {}, noise or {})
        document = {"ratios": RATIOS if ratios is None else ratios, "missing": {"stack_vs_bare": "not asked for"}}
        own = {"rows": 4, "tokens_per_row": 99.0, "seconds": 2.0, "spread": 0.0, "rows_per_s": 2.0, "parameters": 5e8}
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
    quality: dict[str, float],
    ablated: dict[str, float],
    by_k: dict[int, float],
    noise: dict[str, float],
) -> None:
    """What the command of a step would leave behind, as far as results read it."""
    given = dict(zip(command[1::2], command[2::2], strict=True))
    if command[0] == "urg.train":
        k = int(given.get("--model.k", 3))
        metrics = {"rougeL": by_k.get(k, 0.5) + int(given["--seed"]) / 1000}
        run = Path(given["--storage"]) / given["--name"]
        run.mkdir(parents=True, exist_ok=True)
        line = {"step": 150, "seconds": 1.0, "metrics": metrics}
        (run / "evaluations.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    if command[0] == "urg.evaluate":
        _evaluated(recipe, name, given, quality, ablated, noise)


def _evaluated(
    recipe: Recipe,
    name: str,
    given: dict[str, str],
    quality: dict[str, float],
    ablated: dict[str, float],
    noise: dict[str, float],
) -> None:
    output, shift = recipe.output(name), int(given["--seed"]) / 1000
    if given.get("--experiment") == "noise":
        by_system = {s: {"12": {"rougeL": noise.get(s, -1.0)}, "11,12": {"rougeL": noise.get(s, -1.0)}} for s in
                     ("urg", "llm_blender")}  # fmt: skip
        _json(output / "noise.json", {"change_percent": by_system})
        return
    if exported := {"human": "human/sheet.csv", "cases": "cases.md"}.get(given.get("--experiment", "")):
        _json(Path(given["--output"]) / exported, {})
        return
    variant = name.removeprefix("evaluate-").rsplit("-", 1)[0]
    own = quality | ({"urg": ablated[variant], "urg_random_k": ablated[variant]} if variant in ablated else {})
    metrics = ("label", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu")
    systems = {system: dict.fromkeys(metrics, score + shift) for system, score in own.items()}
    kinds: dict[str, Any] = {system: "model" if system.startswith("sim-") else "ranker" for system in own}
    document: dict[str, Any] = {"systems": systems, "kinds": kinds, "model": {"parameters": 783_150_080}}
    if name == ALL_ROWS:
        assert given["--rows"] == "null"
        ends = {system: {"rougeL": [score - 0.01, score + 0.01]} for system, score in own.items()}
        document |= {"data": {"rows": 1200}, "intervals": ends, "statistics": "intervals: 95%", "tests": TESTS}
    _json(output / "metrics.json", document)


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
