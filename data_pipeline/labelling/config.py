"""The settings of `python -m data_pipeline.label`, checked on construction, light to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.cleaning import LOG_SCALE_SCORES
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import UserError
from data_pipeline.models import Endpoint
from data_pipeline.paths import absolute
from data_pipeline.quality.metrics import METRICS, metric_fields
from data_pipeline.quality.model_folder import DTYPES, MetricModel

JUDGE = "judge"
UNSPLIT = "rows"  # the name of the files where the source has no splits
JUDGE_TEMPLATE = """\
Two answers to the same request are to be compared.

[Request]
{question}

[Answer A]
{first}

[Answer B]
{second}

Which answer is the better one? Judge whether it does what the request asks, and whether it is right, helpful and \
clear; neither the order of the two nor their length counts. Reply with exactly one of these four lines, nothing else:
A is better
B is better
Same good
Same bad"""


@dataclass(frozen=True)
class LabelConfig:
    """Which rows to label with which metrics, by which models, and where to put them."""

    input: str | dict[str, str]
    """Rows in MixInstruct's schema, from any source that data_pipeline.prepare takes, or {split: source}."""
    output: str
    """Folder for the labelled rows; it must not hold anything else."""
    metrics: str | list[str]
    """Comma-separated: rouge (or rouge1, rouge2, rougeL, rougeLsum), bleu, bertscore, bartscore, bleurt,
    reference_logprob, candidate_logprob, reward, judge. The judge compares pairs, for evaluation and statistics; a
    ranker is trained on one of the others."""
    models: dict[str, str] = field(default_factory=dict)
    """Model of a metric, a folder or a hub id: --models.bartscore FOLDER. bertscore and bartscore have the literature's
    as default, the others that need one must be given one."""
    weights: dict[str, str] = field(default_factory=dict)
    """Other weights for a metric's model, a file: --weights.bartscore bart_score.pth for those after ParaBank."""
    actors: int = 1
    """Processes that hold a metric's model, one metric after the other."""
    cpus_per_actor: float = 1.0
    """Cores of one actor, also its threads; above 0."""
    num_gpus: float = 0.0
    """GPUs of one actor, 0 or more, fractions allowed; 0 = it runs on the CPU."""
    dtype: str = "float32"
    """Precision of metric models: float32, bfloat16 or float16."""
    batch_tokens: int = 2048
    """Tokens of one forward pass, padding counted (bertscore: it has batches of its own); 1 or more."""
    rows_per_shard: int = 256
    """Rows that an actor takes at a time and that one file holds; a killed run repeats at most those in work."""
    overwrite: bool = False
    """Compute scores and verdicts anew that the rows already have."""
    log_scale_scores: list[str] = field(default_factory=lambda: list(LOG_SCALE_SCORES))
    """Scores on a log scale, of which an exact 0.0 means that nobody computed them."""
    judge: Endpoint | None = None
    """The endpoint that compares, for the metric judge: --judge.name j --judge.base_url http://host/v1 --judge.model m
    (the others: --judge.help); its own template is not used."""
    judge_template: str = JUDGE_TEMPLATE
    """What the judge is asked, with {question}, {first} and {second}; it must call them A and B and ask for the four
    verdicts."""
    accept_missing: bool = False
    """Whether to finish although the judge's endpoint failed on some pairs (down, busy, too slow, not in the protocol),
    which stay without a verdict; otherwise the run ends there, and the same command asks for those again."""

    def __post_init__(self) -> None:
        for name, least in {"actors": 1, "batch_tokens": 1, "rows_per_shard": 1, "num_gpus": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; give {least} or more.")
        if self.cpus_per_actor <= 0:
            raise UserError(f"cpus_per_actor is {self.cpus_per_actor}; give a number above 0.")
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise UserError(f"num_gpus is {self.num_gpus}; above 1 give a whole number.")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is {self.dtype}; choose from {', '.join(DTYPES)}.")
        self._check_names()

    def _check_names(self) -> None:
        if not self.fields() and not self.judges:
            raise UserError(f"metrics is {self.metrics!r}; name at least one of {', '.join(METRICS)}, {JUDGE}.")
        takers = [name for name, metric in METRICS.items() if metric.needs_model]
        for option, table in {"models": self.models, "weights": self.weights}.items():
            for name in table:
                if name not in takers:
                    raise UserError(f"{option} has {name}, which takes none; those that do: {', '.join(takers)}.")
        for name in self.weights:
            if name == "bertscore":
                raise UserError("weights has bertscore; name a folder that holds them by models.bertscore instead.")
        for name in self.fields():
            if METRICS[name].needs_model and not self._model_name(name):
                raise UserError(f"{name} needs a model; name a folder or a hub id by --models.{name}.")
        if self.judges and self.judge is None:
            raise UserError("judge needs an endpoint; give --judge.name, --judge.base_url and --judge.model.")
        for place in ("{question}", "{first}", "{second}"):
            if place not in self.judge_template:
                raise UserError(f"judge_template has no {place}; add it.")

    def names(self) -> list[str]:
        """The metrics that are asked for, as they were written."""
        listed = self.metrics.split(",") if isinstance(self.metrics, str) else self.metrics
        return [name.strip() for name in listed if name.strip()]

    @property
    def judges(self) -> bool:
        """Whether a judge is to compare the candidates."""
        return JUDGE in self.names()

    def fields(self) -> dict[str, tuple[str, ...]]:
        """metric → the scores asked of it. Raises `UserError` for an unknown name."""
        return metric_fields([name for name in self.names() if name != JUDGE])

    def metric_models(self) -> dict[str, MetricModel]:
        """metric → its model (of an empty name where it needs none), for the metrics asked for."""
        return {
            name: MetricModel(
                name=self._model_name(name),
                weights=self.weights.get(name, ""),
                device="cuda" if self.num_gpus else "cpu",
                dtype=self.dtype,
                batch_tokens=self.batch_tokens,
            )
            for name in self.fields()
        }

    def _model_name(self, metric: str) -> str:
        return self.models.get(metric, METRICS[metric].default_model)

    @property
    def folder(self) -> Path:
        """The output, absolute."""
        return absolute(self.output)

    @property
    def work(self) -> Path:
        """The folder beside the output where it is made, and where finished work outlives a killed run."""
        return self.folder.parent / f".{self.folder.name}.work"

    def checks(self) -> PrepareConfig:
        """How rows are checked: as they are to be prepared, but no model is renamed, and without splits all are one."""
        return PrepareConfig(
            self.input, fractions={UNSPLIT: 1.0}, aliases={}, log_scale_scores=list(self.log_scale_scores)
        )
