"""The table of metrics that can label a candidate. A new metric: a function or class, a line in METRICS, a test.

A metric is given texts that are not blank (and references that are not, if it needs them) and gives a value a text;
NaN = it has none. Higher is better for each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.errors import UserError
from data_pipeline.quality.model_folder import MetricModel
from data_pipeline.quality.rouge import ROUGE_NAMES


@dataclass(frozen=True)
class Item:
    """One candidate to score: the question, the candidate's text, and the reference ("" where there is none)."""

    prompt: str
    text: str
    reference: str


Scores = Mapping[str, Sequence[float]]  # field → one value an item
Scorer = Callable[[Sequence[Item]], Scores]


@dataclass(frozen=True)
class Metric:
    """One metric. fields: the scores it gives. load: makes the scorer, once in each process. kind: the class of
    transformers that loads its model, "" where it has none."""

    fields: tuple[str, ...]
    load: Callable[[MetricModel], Scorer]
    kind: str = ""
    default_model: str = ""
    needs_reference: bool = True

    @property
    def needs_model(self) -> bool:
        """Whether there is a model to name."""
        return bool(self.kind)


def _texts(items: Sequence[Item]) -> list[str]:
    return [item.text for item in items]


def _references(items: Sequence[Item]) -> list[str]:
    return [item.reference for item in items]


def _rouge(_: MetricModel) -> Scorer:
    from data_pipeline.quality.rouge import rouge

    return lambda items: rouge(_texts(items), _references(items))


def _bleu(_: MetricModel) -> Scorer:
    from data_pipeline.quality.bleu import sentence_bleu

    return lambda items: {"bleu": sentence_bleu(_texts(items), _references(items))}


def _bertscore(model: MetricModel) -> Scorer:
    from data_pipeline.quality.bertscore import bertscore, load_scorer

    encoder = load_scorer(model.name, None, model.device)
    encoder._model.to(dtype=_torch_dtype(model.dtype))
    own = functools.partial(bertscore, model=model.name, device=model.device, tokenless=float("nan"))
    return lambda items: {"bertscore": own(_texts(items), _references(items))}


def _bartscore(model: MetricModel) -> Scorer:
    from data_pipeline.quality.bartscore import BartScore

    score = BartScore(model)
    return lambda items: {"bartscore": score(_texts(items), _references(items))}


def _bleurt(model: MetricModel) -> Scorer:
    from data_pipeline.quality.regression import Bleurt

    score = Bleurt(model)
    return lambda items: {"bleurt": score(_texts(items), _references(items))}


def _reference_logprob(model: MetricModel) -> Scorer:
    from data_pipeline.quality.loglikelihood import LogLikelihood, reference_context

    score = LogLikelihood(model)

    def scores(items: Sequence[Item]) -> Scores:
        means, sums = score([reference_context(item.prompt, item.text) for item in items], _references(items))
        return {"reference_logprob": means, "reference_logprob_sum": sums}

    return scores


def _candidate_logprob(model: MetricModel) -> Scorer:
    from data_pipeline.quality.loglikelihood import LogLikelihood, candidate_context

    score = LogLikelihood(model)

    def scores(items: Sequence[Item]) -> Scores:
        means, sums = score([candidate_context(item.prompt) for item in items], _texts(items))
        return {"candidate_logprob": means, "candidate_logprob_sum": sums}

    return scores


def _reward(model: MetricModel) -> Scorer:
    from data_pipeline.quality.regression import Reward

    score = Reward.load(model)
    return lambda items: {"reward": score([item.prompt for item in items], _texts(items))}


def _torch_dtype(name: str) -> object:
    import torch

    return getattr(torch, name)


METRICS: dict[str, Metric] = {
    "rouge": Metric(ROUGE_NAMES, _rouge),
    "bleu": Metric(("bleu",), _bleu),
    "bertscore": Metric(("bertscore",), _bertscore, "AutoModel", "bert-base-multilingual-cased"),
    "bartscore": Metric(("bartscore",), _bartscore, "AutoModelForSeq2SeqLM", "facebook/bart-large-cnn"),
    "bleurt": Metric(("bleurt",), _bleurt, "AutoModelForSequenceClassification"),
    "reference_logprob": Metric(
        ("reference_logprob", "reference_logprob_sum"), _reference_logprob, "AutoModelForCausalLM"
    ),
    "candidate_logprob": Metric(
        ("candidate_logprob", "candidate_logprob_sum"),
        _candidate_logprob,
        "AutoModelForCausalLM",
        needs_reference=False,
    ),
    "reward": Metric(("reward",), _reward, "AutoModelForSequenceClassification", needs_reference=False),
}


def metric_fields(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """metric → those of its fields that `names` ask for: a metric's name asks for all its fields, a field's for itself.

    Raises `UserError` for a name that is neither.
    """
    asked = dict.fromkeys(names)
    found = {
        name: metric.fields if name in asked else tuple(field for field in metric.fields if field in asked)
        for name, metric in METRICS.items()
    }
    known = {*METRICS, *(field for metric in METRICS.values() for field in metric.fields)}
    for name in asked:
        if name not in known:
            raise UserError(f"There is no metric {name}; choose from {', '.join(sorted(known))}, judge.")
    return {name: fields for name, fields in found.items() if fields}
