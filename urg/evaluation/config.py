"""Configuration of `python -m urg.evaluate`, every setting with its meaning, unit and range. Light to import."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from urg.checks import require
from urg.config import TrackingConfig

FOLD = "{fold}"
"""What stands for a part's number in the names of models."""
URGS_PAIRS, ALL_PAIRS = "urg", "all"
"""What may be asked of `statistics.pairs` but pairs by name."""


@dataclass(frozen=True)
class JudgeConfig:
    """How the pairwise verdicts of a judge (`cmp_results`) are read."""

    vicuna: str = "vicuna-13b-1.1"
    """The model that beat_vic compares with, as the data name it."""
    open_assistant: str = "oasst-sft-4-pythia-12b-epoch-3.5"
    """The model that beat_oa compares with, as the data name it."""
    scoring: Literal["margin", "points"] = "margin"
    """What gpt_rank goes by, as sums of points (1 and -1; both good 0.5, both bad -0.5 for both): margin, a candidate's
    points less the others' against it, so that ties cancel (LLM-Blender's published code), or its points alone."""
    unjudged: Literal["zero", "left_out"] = "zero"
    """A candidate of a judged row that the judge compared with none: stands in the order with the sum 0 (LLM-Blender's
    published code, where MixInstruct's twelfth model takes a place), or is left out of it."""


@dataclass(frozen=True)
class StatisticsConfig:
    """Confidence intervals of means, and tests of differences; both pair the systems by row."""

    resamples: int = 2000
    """Resamples of the rows for intervals, 100 or more; 0 for no intervals."""
    confidence: float = 0.95
    """Coverage of the intervals, in (0, 1)."""
    test: Literal["permutation", "bootstrap"] = "permutation"
    """Two-sided paired test: the signs of the rows' differences flipped at random, or the rows resampled."""
    trials: int = 100_000
    """Flips or resamples of the test, which bound its p-values from below by 1 / (trials + 1); 0 for no test."""
    pairs: str = URGS_PAIRS
    """Pairs of systems to test; Holm's correction is over those of one metric. `urg`: urg_rank with each other system
    that picks a candidate and urg with each other system, or where neither answers, as `all`. `all`: every two systems.
    In neither are the oracles of single metrics. Else pairs by name, such as urg:llm_blender,urg_rank:random."""
    metrics: str = "label,hit@1,ndcg,spearman,bertscore,bartscore,bleurt,rougeL,bleu"
    """Metrics whose differences are tested, where they have values; each is corrected by itself."""

    def __post_init__(self) -> None:
        enough = self.resamples == 0 or self.resamples >= 100
        require(enough, "statistics.resamples", self.resamples, "must be 0 (no intervals), or 100 or more.")
        require(self.trials >= 0, "statistics.trials", self.trials, "must be 0 (no test) or more.")
        require(0 < self.confidence < 1, "statistics.confidence", self.confidence, "must be in (0, 1).")
        for pair in self.pairs.split(",") if self.pairs not in (URGS_PAIRS, ALL_PAIRS) else ():
            named = ":" in pair.strip()[1:-1]
            require(named, "statistics.pairs", pair, "write urg, all, or pairs by commas, each as SYSTEM:OTHER.")


@dataclass(frozen=True)
class HumanConfig:
    """The human comparison of two systems (`--experiment human`)."""

    first: str = "llm_blender"
    """One of the two systems: ours, a model among the candidates, imported predictions, or `reference`."""
    second: str = "urg"
    """The other."""
    pairs: int = 200
    """Rows that are drawn for the sheet."""
    ratings: tuple[str, ...] = ()
    """The filled sheets, a CSV a rater; empty: write the sheet instead."""

    def __post_init__(self) -> None:
        require(self.pairs >= 1, "human.pairs", self.pairs, "at least one pair must be rated.")
        require(self.first != self.second, "human.second", self.second, "compare two different systems.")
        require(
            len(self.ratings) != 1, "human.ratings", self.ratings, "agreement needs the sheets of 2 raters or more."
        )


@dataclass(frozen=True)
class EvaluationTracking:
    """Where MLflow keeps evaluations."""

    uri: str | None = None
    """MLflow tracking URI, such as sqlite:///runs/mlflow.db or http://…; `off` for none. Null: that of the run which
    trained the model (under cross-validation the first part's), where its folder is at hand."""
    experiment: str | None = None
    """MLflow experiment; null: that run's, or urg where there is none."""

    def __post_init__(self) -> None:
        TrackingConfig(uri=self.uri)  # no login in it


@dataclass(frozen=True)
class EvaluateConfig:
    """What is evaluated, on what, and where the results go."""

    shards: str = ""
    """A prepared set, or the output folder of `python -m data_pipeline.prepare` (then its newest set). Needed."""
    output: str = ""
    """Folder for what is written; made if absent, files of the same names replaced. Needed."""
    model: str | None = None
    """Folder of a trained URG. Null: single models, floors and oracle only."""
    folders: dict[str, str] = field(default_factory=dict)
    """What other systems need, by system: the folder of a trained model, or a file of predictions, such as
    {pair_ranker: runs/pairs/model}."""
    imported: dict[str, str] = field(default_factory=dict)
    """Predictions that you bring (JSON lines with id and text), by a name of yours: a row of the tables each, such as
    {chatgpt: gpt.jsonl, people: people.jsonl}. `folders.imported` takes one file, under the name imported."""
    systems: str = "all"
    """Systems to evaluate: all, or names by commas (see --list); `models` stands for every single model, `oracles` for
    the ceiling of selection on each metric."""
    list: bool = False
    """Print the systems and metrics there are as JSON, and do nothing else."""
    experiment: Literal["noise", "human", "cases"] | None = None
    """Instead of the comparison: noise (Table 5 of the paper), human (Table 6), cases (Table 8)."""
    split: str = "test"
    """Name of the split."""
    label: str | None = None
    """The score that a pick is judged by, higher is better. Null: the one that the model was trained to rank by."""
    bertscore_model: str | None = None
    """Hub id or folder of BERTScore's encoder; null: no BERTScore. LLM-Blender uses bert-base-multilingual-cased."""
    bartscore_model: str | None = None
    """Hub id or folder of BARTScore's model; null: no BARTScore. LLM-Blender uses facebook/bart-large-cnn."""
    bartscore_weights: str | None = None
    """Other weights for it, a file (.safetensors, or of torch.save); null: its own. LLM-Blender's code takes those
    after ParaBank, bart_score.pth of BARTScore's authors, where it finds that file; levels depend on it."""
    bleurt_model: str | None = None
    """Hub id or folder of BLEURT's model; null: no BLEURT. LLM-Blender uses bleurt-base-128, of which
    Elron/bleurt-base-128 is a port; URG's paper names none."""
    bleurt_tokens: int = 512
    """Tokens of reference and text together, 8 or more, at which BLEURT cuts where its model takes as many. LLM-Blender
    cuts at 128, bleurt-base-128's limit."""
    metric_batch_tokens: int = 2048
    """Tokens of one forward pass of BARTScore's or BLEURT's model, padding counted; BERTScore has its own batches."""
    rows: int | None = None
    """Use the first so many rows only; null for all."""
    folds: int | None = None
    """Cross-validation: the split in so many parts, as data.folds of urg.train cuts it. Each part is answered by the
    models that were not trained on it, so that every row is tested once: {fold} in `model` and `folders` stands for the
    part's number."""
    fold: int | None = None
    """This part alone, 0 to `folds` - 1, whose answers a later run of all parts takes; null: all, one after the
    other."""
    num_beams: int = 4
    """Beams when fusing; 1 is greedy."""
    max_new_tokens: int | None = None
    """Longest fused text, in tokens; null: the model's default."""
    batch_size: int = 16
    """Rows that the model ranks and fuses at once."""
    device: str | None = None
    """Torch device of the systems' and the metrics' models, such as cpu or cuda; null for a GPU where there is one."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the weights and activations of every system's model; URG's ranking step is in float32 always."""
    seed: int = 0
    """Seeds the random system, the resampling, and what experiments draw."""
    workers: int = 0
    """Ray Data actors that answer, and then those that score the texts, a CPU (and a GPU where device is cuda) each; 0:
    this process does both."""
    fresh: bool = False
    """Answer anew what an earlier run with the same data, model and options left in the output folder."""
    cases: int = 9
    """Rows that the report shows with all their candidates; 0 for none."""
    track: bool = True
    """Add the results to MLflow: to the run that trained the model, where its folder is at hand, and as a run of their
    own with one below it for each system. The same evaluation again is the same runs."""
    tracking: EvaluationTracking = field(default_factory=EvaluationTracking)
    """Where MLflow keeps them."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """How a judge's verdicts are read."""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    """Intervals and tests."""
    human: HumanConfig = field(default_factory=HumanConfig)
    """The human comparison."""

    def __post_init__(self) -> None:
        for key in ("rows", "num_beams", "max_new_tokens", "batch_size", "metric_batch_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value}: must be at least 1.")
        needed = [] if self.list else ["output"] if self.human.ratings else ["shards", "output"]
        for key in needed:
            if not getattr(self, key):
                raise ValueError(f"{key}: name the folder by --{key}.")
        _require_fold(self)
        require(self.bleurt_tokens >= 8, "bleurt_tokens", self.bleurt_tokens, "must be 8 or more.")
        unused = self.bartscore_weights is not None and self.bartscore_model is None
        require(not unused, "bartscore_weights", self.bartscore_weights, "needs the model: name --bartscore_model.")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: must be 0 (this process) or more.")
        if self.cases < 0:
            raise ValueError(f"cases={self.cases}: must be 0 (none) or more.")

    @property
    def parts(self) -> tuple[EvaluateConfig, ...]:
        """The configuration of each part that is evaluated, {fold} replaced by its number; itself without `folds`."""
        if self.folds is None:
            return (self,)
        return tuple(self._of_part(fold) for fold in (range(self.folds) if self.fold is None else [self.fold]))

    def _of_part(self, fold: int) -> EvaluateConfig:
        named = {name: folder.replace(FOLD, str(fold)) for name, folder in self.folders.items()}
        model = self.model.replace(FOLD, str(fold)) if self.model else self.model
        return replace(self, fold=fold, model=model, folders=named)


def _require_fold(config: EvaluateConfig) -> None:
    """Raise ValueError where `folds` and `fold` do not fit each other, or the experiment."""
    require(config.folds is None or config.folds >= 2, "folds", config.folds, "must be at least 2, or null.")
    if config.folds is None:
        require(config.fold is None, "fold", config.fold, "needs folds, the number of parts.")
        return
    valid = config.fold is None or 0 <= config.fold < config.folds
    require(valid, "fold", config.fold, f"must be one of the parts 0 to {config.folds - 1}, or null for all.")
    one = config.experiment != "noise" or config.fold is not None
    require(one, "fold", config.fold, "the experiment noise takes one part: name it.")
