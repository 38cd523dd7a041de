"""BLEU by sacrebleu: of sentences, and of a corpus with the signature that says how it was computed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from data_pipeline.quality.rouge import require_references


def sentence_bleu(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Sentence BLEU in 0..100 of each prediction against the reference beside it.

    sacrebleu's defaults (13a tokens, exponential smoothing) with effective order, so that an answer of three words can
    reach 100. An empty prediction scores 0. Raises ValueError where the lengths differ or a reference is empty.
    Source: Papineni et al. 2002; Post 2018.
    """
    require_references(predictions, references)
    return [_score(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """BLEU in 0..100 of all the predictions as one corpus, and sacrebleu's signature.

    Raises ValueError where there is no prediction, the lengths differ, or a reference is empty.
    """
    require_references(predictions, references)
    if not predictions:
        raise ValueError("No predictions: a corpus BLEU needs at least one.")
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    score = metric.corpus_score(list(predictions), [list(references)]).score
    return min(float(score), 100.0), str(metric.get_signature())


# Candidates of one query often coincide, and they come one after another.
@lru_cache(maxsize=256)
def _score(prediction: str, reference: str) -> float:
    # A perfect match comes out as 100.00000000000004.
    return min(float(_sentence_metric().sentence_score(prediction, [reference]).score), 100.0)


@lru_cache(maxsize=1)
def _sentence_metric() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)
