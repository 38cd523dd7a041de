"""The metrics of a text against its reference, each distinct pair scored once: here, or by Ray Data actors.

A candidate is also what selecting systems pick, so most texts come several times: `TextMetrics` scores a pair when it
first sees it. A pair whose text or reference is missing has no value (NaN), never 0. The metrics are those of
`data_pipeline.quality.metrics`; a new one with a model: a line there, its name in MODEL_METRICS, a setting NAME_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.quality.metrics import METRICS, Item
from data_pipeline.quality.model_folder import MetricModel, require_model
from data_pipeline.quality.rouge import ROUGE_NAMES as ROUGE
from urg.systems.protocol import Progress, silent

if TYPE_CHECKING:
    from urg.evaluation.config import EvaluateConfig
    from urg.evaluation.value_store import ValueStore

Floats = NDArray[np.float64]
Pair = tuple[str, str]  # text, reference
Values = Mapping[str, Sequence[float]]  # metric → one value a pair
Scorer = Callable[[Sequence[str], Sequence[str]], Values]  # of texts and references

MODEL_METRICS = ("bertscore", "bartscore", "bleurt")
TEXT_METRICS = (*ROUGE, "bleu", *MODEL_METRICS)
NO_REFERENCE = "no row has a reference text (its output is empty)"
NO_MODEL = "no model was named; name a hub id or a local folder by --{metric}_model"
NO_WORDS = "no reference has a Latin letter or a digit, all that rouge_score sees"
PAIRS_PER_CALL = 512  # between two signs of progress; what an actor takes at a time
MEND = (
    "lower --metric_batch_tokens or --workers, or give them more memory: values are kept, and the same command goes on "
    "from there"
)


@dataclass
class PairScorer:
    """A metric of pairs of text and reference. An actor gets a copy, and loads the model when its first pairs come."""

    metric: str
    model: MetricModel
    loaded: Scorer | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """Its name, and what its values depend on beside the pair: see `ValueStore`."""
        model = self.model
        return self.metric, model.name, model.weights, f"{model.max_tokens} tokens" if model.max_tokens else ""

    def load(self) -> Scorer:
        """The metric with its model. UserError where that cannot load."""
        if self.loaded is None:
            self.loaded = _bertscore(self.model) if self.metric == "bertscore" else _labelling(self.metric, self.model)
        return self.loaded

    def require_model(self) -> None:
        """Raise UserError where the model cannot be the metric's, as far as its config shows. It is not loaded."""
        if self.model.name:
            require_model(self.metric, self.model.name, METRICS[self.metric].kind)
        if self.model.weights and not Path(self.model.weights).expanduser().is_file():
            raise UserError(f"there is no file {self.model.weights} of weights; see --{self.metric}_weights")

    def __call__(self, pairs: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The values of pairs. pairs: {"texts": [B], "references": [B]}."""
        return dict(self.load()(pairs["texts"], pairs["references"]))


def _labelling(metric: str, model: MetricModel) -> Scorer:
    """A metric as `data_pipeline.label` has it."""
    score = METRICS[metric].load(model)
    return lambda texts, references: score([Item("", *pair) for pair in zip(texts, references, strict=True)])


def _bertscore(model: MetricModel) -> Scorer:
    """As for labels, but an answer without a token has 0: it is the worst there is, not one without a label."""
    from data_pipeline.quality.bertscore import bertscore, load_scorer

    load_scorer(model.name, device=model.device)
    return lambda texts, references: {"bertscore": bertscore(texts, references, model.name, device=model.device)}


class TextMetrics:
    """Scores (text, reference) pairs and remembers them.

    models: of the MODEL_METRICS that are wanted; the others are `missing`. One that cannot be loaded is a UserError
    now, not after the generation; where actors load it, as far as its config shows.
    progress: called with what is being scored, how many pairs are done, and of how many.
    store: keeps values over the end of the process; None keeps them in memory only.
    workers: Ray Data actors that score, each with a CPU, and a GPU where its model's device is cuda; 0: this process.
    The values are the same (BERTScore's up to float32's last bit, which no two processes share).
    """

    def __init__(
        self,
        models: Mapping[str, MetricModel] | None = None,
        progress: Progress = silent,
        store: ValueStore | None = None,
        workers: int = 0,
    ) -> None:
        models = models or {}
        self.missing = {m: NO_MODEL.format(metric=m) for m in MODEL_METRICS if m not in models}
        wanted = {"rouge": MetricModel(""), "bleu": MetricModel(""), **models}
        self._scorers = [PairScorer(metric, model) for metric, model in wanted.items()]
        self._progress, self._store, self._workers = progress, store, workers
        self._known: dict[Pair, dict[str, float]] = {}
        for scorer in self._scorers:
            if workers:
                scorer.require_model()
            else:
                scorer.load()

    @classmethod
    def of(cls, config: EvaluateConfig, output: Path, progress: Progress) -> TextMetrics:
        """The metrics that an evaluation asks for; their values are kept in its output folder."""
        from urg.evaluation.value_store import ValueStore

        return cls(metric_models(config), progress, ValueStore(output, config.fresh), config.workers)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that can be computed, in table order."""
        return tuple(name for name in TEXT_METRICS if name not in self.missing)

    def values(self, texts: Sequence[str | None], references: Sequence[str]) -> dict[str, Floats]:
        """metric → [R], NaN where the text is None or the reference blank. texts, references: one a row.

        Better once for many texts than often: a pool's actors load their models at each call that has new pairs.
        """
        rows = list(zip(texts, references, strict=True))
        pairs = [(text, reference) if text is not None and reference.strip() else None for text, reference in rows]
        self._score([pair for pair in dict.fromkeys(pairs) if pair is not None and pair not in self._known])
        return {
            name: np.array([np.nan if pair is None else self._known[pair][name] for pair in pairs], dtype=np.float64)
            for name in self.names
        }

    def _score(self, new: list[Pair]) -> None:
        from data_pipeline.ray_session import ray_session

        todo = [(scorer, pairs) for scorer in self._scorers if (pairs := self._recall(scorer, new))]
        with ray_session() if self._workers and todo else nullcontext():
            for scorer, pairs in todo:
                parts = [pairs[start : start + PAIRS_PER_CALL] for start in range(0, len(pairs), PAIRS_PER_CALL)]
                done = 0
                for part, scored in zip(parts, self._scored(scorer, parts), strict=True):
                    self._keep(scorer, part, scored)
                    done += len(part)
                    self._progress(scorer.metric, done, len(pairs))

    def _scored(self, scorer: PairScorer, parts: Sequence[Sequence[Pair]]) -> Iterable[Values]:
        """The values of each part, as they come."""
        tasks = [{"texts": [text for text, _ in part], "references": [ref for _, ref in part]} for part in parts]
        return _by_actors(scorer, tasks, self._workers) if self._workers else map(scorer, tasks)

    def _keep(self, scorer: PairScorer, pairs: Sequence[Pair], scored: Values) -> None:
        if self._store:
            self._store.put(scorer.key, pairs, scored)
        for index, pair in enumerate(pairs):
            self._known.setdefault(pair, {}).update({name: own[index] for name, own in scored.items()})

    def _recall(self, scorer: PairScorer, pairs: list[Pair]) -> list[Pair]:
        """Take the values that the store has of `pairs`; returns the pairs that are still to be scored."""
        if not self._store:
            return pairs
        todo = []
        for pair, values in zip(pairs, self._store.get(scorer.key, pairs), strict=True):
            if values is None:
                todo.append(pair)
            else:
                self._known.setdefault(pair, {}).update(values)
        return todo


def metric_models(config: EvaluateConfig) -> dict[str, MetricModel]:
    """The models that an evaluation names, by metric."""
    own: dict[str, dict[str, Any]] = {
        "bartscore": {"weights": config.bartscore_weights or ""},
        "bleurt": {"max_tokens": config.bleurt_tokens},
    }
    named = {metric: getattr(config, f"{metric}_model") for metric in MODEL_METRICS}
    how: dict[str, Any] = {"device": str(config.device), "batch_tokens": config.metric_batch_tokens}
    return {metric: MetricModel(name, **how, **own.get(metric, {})) for metric, name in named.items() if name}


def _by_actors(scorer: PairScorer, tasks: Sequence[Mapping[str, Any]], workers: int) -> Iterator[Values]:
    """The values of each task by the kind of pool that labels: in order, as they come."""
    from data_pipeline.plan import Actors, actors_alive, on_actors
    from urg.evaluation.pool import require_resources

    gpus = int(bool(scorer.model.name) and scorer.model.device.startswith("cuda"))
    require_resources(workers, gpus)
    with actors_alive(scorer.metric, MEND):
        yield from on_actors(tasks, scorer, Actors(min(workers, len(tasks)), gpus=gpus))


def corpus_bleu(texts: Sequence[str | None], references: Sequence[str]) -> tuple[float, str] | None:
    """Corpus BLEU (0..100) over the rows with text and reference, and sacrebleu's signature; None without any."""
    from data_pipeline.quality.bleu import corpus_bleu as over_pairs

    rows = zip(texts, references, strict=True)
    pairs = [(text, reference) for text, reference in rows if text is not None and reference.strip()]
    return over_pairs(*(list(side) for side in zip(*pairs, strict=True))) if pairs else None
