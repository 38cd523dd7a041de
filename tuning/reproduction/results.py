"""What the steps left behind, read for tables and verdicts: means over seeds with their spread, or nothing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from tuning.reproduction.recipe import URG, Recipe
from tuning.reproduction.steps import Ending
from urg.evaluation.sheet import NONE
from urg.evaluation.text_metrics import MODEL_METRICS
from urg.training.evaluations import read_evaluations

TEXT_METRICS = ("bertscore", "bartscore", "bleurt", "rouge1", "rouge2", "rougeL", "bleu", "rougeLsum")
"""Table 2's columns, and ROUGE-L."""


@dataclass(frozen=True)
class Figure:
    """A figure of several seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds (n − 1); 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def __sub__(self, other: Figure) -> Figure:
        """Seed by seed."""
        return Figure(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def text(self, digits: int = 4) -> str:
        """Mean ± spread."""
        own = f"{self.mean:.{digits}f}"
        return f"{own} ± {self.spread:.{digits}f}" if len(self.values) > 1 else own


def shown(figure: Figure | None, metric: str = "") -> str:
    """A figure in a cell; BLEU is 0..100, so it needs fewer digits."""
    return NONE if figure is None else figure.text(2 if metric == "bleu" else 4)


class Results:
    """Reads a reproduction's folder. A step that is not done has no results, whatever it has left half written."""

    def __init__(self, recipe: Recipe, endings: Mapping[str, Ending]) -> None:
        self.recipe, self.endings = recipe, endings

    def done(self, step: str) -> bool:
        """Whether a step is done."""
        return step in self.endings and self.endings[step].failure is None

    def why_not(self, steps: Sequence[str]) -> str | None:
        """Why the first of these steps that is not done is not; None where all are."""
        for step in steps:
            if not self.done(step):
                return f"{step}: {self.endings[step].failure if step in self.endings else 'not run'}"
        return None

    def document(self, step: str, file: str = "metrics.json") -> dict[str, Any] | None:
        """What a step of `urg.evaluate` wrote; None where it is not done."""
        return _json(self.recipe.output(step) / file) if self.done(step) else None

    def over_seeds(self, read: Callable[[int], float | None]) -> Figure | None:
        """A figure for every seed; None where one of them lacks it."""
        values = [read(seed) for seed in self.recipe.seeds]
        return Figure(tuple(v for v in values if v is not None)) if all(v is not None for v in values) else None

    def compared(self, system: str, metric: str) -> Figure | None:
        """A system of Table 2."""
        return self.over_seeds(lambda seed: _metric(self.document(f"compare-s{seed}"), system, metric))

    def variant(self, variant: str, metric: str, system: str = URG) -> Figure | None:
        """URG, its pick (`urg_rank`), … of a variant on the test split."""
        return self.over_seeds(
            lambda seed: _metric(self.document(f"evaluate-{self.recipe.run(variant, seed)}"), system, metric)
        )

    def dev(self, variant: str, metric: str) -> Figure | None:
        """The best evaluation of a variant on the dev split, as model selection sees it."""
        return self.over_seeds(lambda seed: self._dev(variant, seed, metric))

    def _dev(self, variant: str, seed: int, metric: str) -> float | None:
        run = self.recipe.run(variant, seed)
        if not self.done(f"train-{run}"):
            return None
        found = [one.metrics.get(metric) for one in read_evaluations(self.recipe.root / "runs" / run)]
        return max((value for value in found if value is not None), default=None)

    def change(self, system: str, added: str, metric: str) -> Figure | None:
        """Table 5: Δ% of a fuser when candidates are added."""

        def read(seed: int) -> float | None:
            document = self.document(f"noise-s{seed}", "noise.json") or {"change_percent": {}}
            return _float(document["change_percent"].get(system, {}).get(added, {}).get(metric))

        return self.over_seeds(read)

    def benchmark(self, experiment: str) -> dict[str, Any] | None:
        """What `urg.benchmark` measured in one experiment; None where it is not done."""
        path = self.recipe.timings(experiment) / "benchmark.json"
        return _json(path) if self.done(f"benchmark-{experiment}") else None

    def without_model(self, metrics: Sequence[str]) -> list[str]:
        """Those of these metrics that need a model and were given none."""
        return [
            metric for metric in metrics if metric in MODEL_METRICS and f"{metric}_model" not in self.recipe.models()
        ]

    @cached_property
    def parameters(self) -> int | None:
        """How many parameters the first seed's URG has; None where it was not evaluated."""
        steps = (self.recipe.compared()[0], self.recipe.evaluated(URG)[0])
        documents = (self.document(step) for step in steps)
        count = next((document for document in documents if document), {}).get("model", {}).get("parameters")
        return None if count is None else int(count)

    @cached_property
    def headline(self) -> str:
        """The text metric that verdicts go by: BERTScore, the paper's, where it was measured, else ROUGE-L."""
        return "bertscore" if "bertscore_model" in self.recipe.models() else "rougeL"

    @cached_property
    def dev_metric(self) -> str:
        """The text metric of Figure 3: the headline where the trainings of URG recorded it, else what they did."""
        runs = [self.recipe.run(URG, seed) for seed in self.recipe.seeds]
        recorded = [set(one.metrics) for run in runs for one in read_evaluations(self.recipe.root / "runs" / run)]
        names = (self.headline, *TEXT_METRICS)
        return next((name for name in names if recorded and all(name in own for own in recorded)), self.headline)

    @cached_property
    def generated(self) -> bool:
        """Whether the data are generated: what the prepared set says of its rows."""
        from data_pipeline.shards import ShardSet

        try:
            return bool(ShardSet.open(self.recipe.shards(), verify=False).manifest.get("generated"))
        except UserError:  # there is none yet, or no longer: the sample's figures remain what they are
            return self.recipe.preset.name == "sample" and self.recipe.config.shards is None


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _metric(document: dict[str, Any] | None, system: str, metric: str) -> float | None:
    return None if document is None else _float(document["systems"].get(system, {}).get(metric))


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
