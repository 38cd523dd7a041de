"""The metrics of a text against its reference, each distinct pair scored once.

A candidate is also what selecting systems pick, so most texts come several times: `TextMetrics` scores a pair when it
first sees it. A pair whose text or reference is missing has no value (NaN), never 0. A new metric with a model: a
function, a line in MODEL_METRICS, an argument of `TextMetrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pathlib import Path

    from urg.evaluation.config import EvaluateConfig
    from urg.evaluation.value_store import ValueStore

Floats = NDArray[np.float64]
Values = dict[str, list[float]]  # metric → one value a pair
Scorer = Callable[[Sequence[str], Sequence[str]], Values]  # of texts and references

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
NO_REFERENCE = "no row has a reference text (its output is empty)"
NO_MODEL = "no model was named; name a hub id or a local folder by --{metric}_model"
NO_WORDS = "no reference has a Latin letter or a digit, all that rouge_score sees"
PAIRS_PER_CALL = 512  # between two signs of progress


def _rouge(texts: Sequence[str], references: Sequence[str]) -> Values:
    from data_pipeline.quality.rouge import rouge

    return rouge(texts, references)


def _bleu(texts: Sequence[str], references: Sequence[str]) -> Values:
    from data_pipeline.quality.bleu import sentence_bleu

    return {"bleu": sentence_bleu(texts, references)}


def _bartscore(model: str, device: str) -> Scorer:
    from data_pipeline.quality.bartscore import BartScore
    from data_pipeline.quality.model_folder import MetricModel

    score = BartScore(MetricModel(model, device=device))
    return lambda texts, references: {"bartscore": score(texts, references)}


def _bleurt(model: str, device: str) -> Scorer:
    from data_pipeline.quality.model_folder import MetricModel
    from data_pipeline.quality.regression import Bleurt

    score = Bleurt(MetricModel(model, device=device))
    return lambda texts, references: {"bleurt": score(texts, references)}


def _bertscore(model: str, device: str) -> Scorer:
    from data_pipeline.quality.bertscore import bertscore, load_scorer

    load_scorer(model, device=device)
    return lambda texts, references: {"bertscore": bertscore(texts, references, model, device=device)}


# metric → what loads its scorer, at once: a wrong name fails now, not after the generation
MODEL_METRICS: dict[str, Callable[[str, str], Scorer]] = {
    "bertscore": _bertscore,
    "bartscore": _bartscore,
    "bleurt": _bleurt,
}
TEXT_METRICS = (*ROUGE, "bleu", *MODEL_METRICS)


def device_here(device: str | None, workers: int) -> str:
    """The device of what this process computes: the one that was asked for, or, where that is of actors (which may be
    on other machines), the best there is. device, workers: of `EvaluateConfig`."""
    from urg.ensemble import resolve_device

    return str(resolve_device(None if workers else device))


class TextMetrics:
    """Scores (text, reference) pairs and remembers them.

    …_model: hub id or folder of a metric's model, loaded at once (UserError); None: that metric is `missing`.
    store: keeps values over the end of the process; None keeps them in memory only.
    progress: called with what is being scored, how many pairs are done, and of how many.
    """

    def __init__(
        self,
        bertscore_model: str | None = None,
        device: str = "cpu",
        progress: Callable[[str, int, int], None] = lambda what, done, of: None,
        bartscore_model: str | None = None,
        bleurt_model: str | None = None,
        store: ValueStore | None = None,
    ) -> None:
        models = {"bertscore": bertscore_model, "bartscore": bartscore_model, "bleurt": bleurt_model}
        self.missing = {metric: NO_MODEL.format(metric=metric) for metric, model in models.items() if not model}
        self._scorers: dict[str, Scorer] = {"ROUGE": _rouge, "BLEU": _bleu}
        self._scorers |= {f"{m}:{model}": MODEL_METRICS[m](model, device) for m, model in models.items() if model}
        self._store = store
        self._progress = progress
        self._known: dict[tuple[str, str], dict[str, float]] = {}

    @classmethod
    def of(cls, config: EvaluateConfig, output: Path, progress: Callable[[str, int, int], None]) -> TextMetrics:
        """The metrics that an evaluation asks for; their values are kept in its output folder."""
        from urg.evaluation.value_store import ValueStore

        device, store = device_here(config.device, config.workers), ValueStore(output, config.fresh)
        own = (config.bertscore_model, device, progress, config.bartscore_model, config.bleurt_model)
        return cls(*own, store)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that can be computed, in table order."""
        return tuple(name for name in TEXT_METRICS if name not in self.missing)

    def values(self, texts: Sequence[str | None], references: Sequence[str]) -> dict[str, Floats]:
        """metric → [R], NaN where the text is None or the reference blank. texts, references: one a row."""
        rows = list(zip(texts, references, strict=True))
        pairs = [(text, reference) if text is not None and reference.strip() else None for text, reference in rows]
        self._score([pair for pair in dict.fromkeys(pairs) if pair is not None and pair not in self._known])
        return {
            name: np.array([np.nan if pair is None else self._known[pair][name] for pair in pairs], dtype=np.float64)
            for name in self.names
        }

    def _score(self, new: list[tuple[str, str]]) -> None:
        for scorer, score in self._scorers.items():
            what, todo = scorer.partition(":")[0], self._recall(scorer, new)
            for start in range(0, len(todo), PAIRS_PER_CALL):
                part = todo[start : start + PAIRS_PER_CALL]
                texts, references = zip(*part, strict=True)
                scored = score(texts, references)
                if self._store:
                    self._store.put(scorer, part, scored)
                for index, pair in enumerate(part):
                    self._known.setdefault(pair, {}).update({name: own[index] for name, own in scored.items()})
                self._progress(what, start + len(part), len(todo))

    def _recall(self, scorer: str, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Take the values that the store has of `pairs`; returns the pairs that are still to be scored."""
        if not self._store:
            return pairs
        todo = []
        for pair, values in zip(pairs, self._store.get(scorer, pairs), strict=True):
            if values is None:
                todo.append(pair)
            else:
                self._known.setdefault(pair, {}).update(values)
        return todo


def corpus_bleu(texts: Sequence[str | None], references: Sequence[str]) -> tuple[float, str] | None:
    """Corpus BLEU (0..100) over the rows with text and reference, and sacrebleu's signature; None without any."""
    from data_pipeline.quality.bleu import corpus_bleu as over_pairs

    rows = zip(texts, references, strict=True)
    pairs = [(text, reference) for text, reference in rows if text is not None and reference.strip()]
    return over_pairs(*(list(side) for side in zip(*pairs, strict=True))) if pairs else None
