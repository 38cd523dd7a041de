"""Every setting of a training run: frozen dataclasses, checked on construction, light to import.

A dotted key means the same on the command line (`--loss.gamma 5`), in YAML and in a sweep. They stand here and
in loss_config.py and system_config.py, and not beside the code that they configure, so that `--help` and `--dry-run`
need not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from urg.checks import is_gap, require
from urg.loss_config import LossConfig
from urg.system_config import FuserConfig, RankerConfig, SystemName

PRESETS = Path(__file__).parent / "configs"
TEXT_METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "bertscore")
RANK_METRICS = ("label", "hit@1", "mrr", "ndcg", "spearman", "kendall", "pearson")
DEV_METRICS = (*TEXT_METRICS, *RANK_METRICS)


@dataclass(frozen=True)
class ScratchConfig:
    """The shape of a T5 (v1.1: gated GELU) that is built with random weights."""

    d_model: int = 128
    """Model width D."""
    d_kv: int = 32
    """Width of one attention head."""
    d_ff: int = 256
    """Width of the feed-forward layers."""
    num_layers: int = 2
    """Encoder layers, and as many decoder layers."""
    num_heads: int = 4
    """Attention heads."""
    tie_word_embeddings: bool = True
    """Share the output layer with the embedding, as T5 v1.0 does; v1.1 and Flan-T5 do not."""


@dataclass(frozen=True)
class ModelConfig:
    """Where the model comes from and how it ranks and selects."""

    base: str | None = None
    """A folder or hub id to start from: for URG of the T5 family (t5, Flan-T5, mT5, ByT5), a BART, a T5Gemma, an
    EncoderDecoderModel, or an encoder such as BERT, RoBERTa, MiniLM that one is made of; for a ranker any encoder, or
    that of an encoder-decoder. Prepare URG's shards with its tokenizer. Null: random weights of the shape `scratch`."""
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    """Shape of the model where `base` is null."""
    k: int = 3
    """K, the number of candidates that are fused."""
    k_gap: float | None = None
    """Fuse fewer than K where the others fall behind: those whose score is at least exp(-k_gap) of the top one's, which
    is always one of them; 0.7 takes those that get half of its attention a token or more. Null: K always. Counts where
    candidates are selected by their score: in use, in evaluation, and in training's predicted selection."""
    score_layers: Literal["all", "last"] = "all"
    """The decoder layers whose attention ranks; `all` is the paper's."""
    score_tokens: Literal["all", "response"] = "all"
    """A candidate's tokens on which that attention counts: all, as in the paper, or those of its response, for all
    candidates have the question."""
    dropout: float = 0.1
    """Dropout rate in training, 0 to 1 (exclusive)."""
    chunk_tokens: int = 16384
    """Padded tokens that the encoder takes in one chunk; bounds memory, changes no result. ZeRO-3 takes all at once."""

    def __post_init__(self) -> None:
        require(self.k >= 1, "model.k", self.k, "at least one candidate must be fused.")
        require(is_gap(self.k_gap), "model.k_gap", self.k_gap, "must be 0 or positive, or null for K always.")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be in [0, 1).")
        require(self.chunk_tokens >= 1, "model.chunk_tokens", self.chunk_tokens, "must be positive.")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and decay."""

    lr: float = 8e-5
    """Peak learning rate."""
    min_lr_ratio: float = 0.0
    """Floor of the learning rate, as a share of the peak."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's two decay rates."""
    eps: float = 1e-8
    """AdamW's ε."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """Largest norm of the global gradient; 0 switches clipping off."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "must be positive.")
        require(self.clip >= 0, "optim.clip", self.clip, "must be 0 (off) or positive.")
        require(0 <= self.min_lr_ratio <= 1, "optim.min_lr_ratio", self.min_lr_ratio, "is a share of lr, 0 to 1.")
        require(0 <= self.warmup <= 1, "optim.warmup", self.warmup, "is a share of the steps, 0 to 1.")


@dataclass(frozen=True)
class DataConfig:
    """What to train on."""

    shards: str = "data/sample"
    """A prepared set, or the output folder of `python -m data_pipeline.prepare` (then its newest set)."""
    label: str = "bartscore"
    """The score that candidates are ranked by. Higher is better."""
    train_split: str = "train"
    """Name of the split to train on."""
    dev_split: str = "dev"
    """Name of the split for model selection."""
    limit: int | None = None
    """Use the first so many training rows only."""
    folds: int | None = None
    """Cross-validation: cut the training split into so many parts by a hash of the id. Null: use `dev_split`."""
    fold: int | None = None
    """The part, 0 to `folds` - 1, that is held out for `urg.evaluate --folds` to test on; the others are trained on."""
    fold_dev: Literal["training", "held_out"] = "training"
    """Under cross-validation, what takes the place of the dev split. `training`: a tenth of the other parts by a hash
    of the id, which is then not trained on; it chooses the best model, and nothing reads the part that is held out.
    `held_out`: that part, as `tuning.sweep --folds` measures it; it chooses nothing, the run's last model is kept."""

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, "data.limit", self.limit, "must be at least 1, or null for all.")
        require(self.folds is None or self.folds >= 2, "data.folds", self.folds, "must be at least 2, or null.")
        if self.folds is None:
            require(self.fold is None, "data.fold", self.fold, "needs data.folds, the number of parts.")
        else:
            valid = self.fold is not None and 0 <= self.fold < self.folds
            require(valid, "data.fold", self.fold, f"must be one of the parts 0 to {self.folds - 1}.")

    @property
    def measures_held_out(self) -> bool:
        """Whether the run's evaluations measure the part that is held out, so that they must not choose a model."""
        return self.folds is not None and self.fold_dev == "held_out"


@dataclass(frozen=True)
class BatchConfig:
    """How many rows make a step."""

    micro: int = 4
    """Rows a worker takes at once, on average: a step's micro-batches are made equal in tokens, not in rows."""
    accumulation: int = 1
    """Micro-batches a worker takes for one step. The global batch is micro × accumulation × workers."""
    tokens: int | None = None
    """Most encoder tokens that a worker takes at once, all candidates together; null for no limit. A step with long
    rows then takes more micro-batches, for the same gradient; a single row that is longer is taken alone."""

    def __post_init__(self) -> None:
        require(self.micro >= 1, "batch.micro", self.micro, "must be at least 1.")
        require(self.tokens is None or self.tokens >= 1, "batch.tokens", self.tokens, "must be at least 1, or null.")
        require(self.accumulation >= 1, "batch.accumulation", self.accumulation, "must be at least 1.")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on the dev split while training, and how the best checkpoint is chosen."""

    every: int = 1000
    """Steps between evaluations; each one also writes a checkpoint (see `checkpoint_every`). The last step has one."""
    rows: int | None = None
    """Rows of the dev split to use; null for all."""
    batch: int = 16
    """Rows a worker ranks and fuses at once."""
    metric: str = "bertscore"
    """The dev metric that chooses the best checkpoint, higher is better: bertscore, rouge1, rouge2, rougeL, rougeLsum,
    bleu (of the fused text), label, hit@1, ndcg, spearman, kendall (of the ranking; with `loss.generation false` one of
    these). Never the loss: it changes with γ, β, τ."""
    bertscore_model: str | None = None
    """Hub id or folder of BERTScore's encoder. LLM-Blender uses bert-base-multilingual-cased."""
    num_beams: int = 1
    """Beams when fusing the dev split."""
    max_new_tokens: int = 128
    """Longest fused text, in tokens."""

    def __post_init__(self) -> None:
        require(self.metric in DEV_METRICS, "eval.metric", self.metric, f"choose one of {', '.join(DEV_METRICS)}.")
        for key in ("every", "batch", "num_beams", "max_new_tokens"):
            require(getattr(self, key) >= 1, f"eval.{key}", getattr(self, key), "must be at least 1.")
        require(self.rows is None or self.rows >= 1, "eval.rows", self.rows, "must be at least 1, or null for all.")


@dataclass(frozen=True)
class EngineConfig:
    """Workers, precision and DeepSpeed."""

    workers: int = 1
    """Ray Train workers: one a GPU, or one a CPU slot. A run may go on with another number, if the global batch stays
    the same: with the same rows a step and the same optimizer state, but other dropout masks."""
    min_workers: int | None = None
    """Fewest workers to train with where the cluster has room for no more than these; each then takes more
    micro-batches, and the global batch stays the same. Null: wait for all `workers`. Needs `checkpoint_every`."""
    resize_every_s: float = 60.0
    """Seconds between two looks whether the cluster has room for more workers, where there are fewer than `workers`."""
    use_gpu: bool = False
    """Give each worker a GPU and use NCCL; otherwise CPU and gloo."""
    cpus_per_worker: int = 1
    """CPU slots of a worker, and its torch threads where there is no GPU."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of weights and activations; the optimizer keeps fp32 masters. fp16 overflows in T5 and is not
    offered."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    offload_optimizer: bool = False
    """Keep optimizer state in CPU memory (ZeRO-Offload)."""
    max_failures: int = 3
    """How often a run restarts by itself from its last checkpoint after a worker is lost; -1 for always."""
    timeout_s: int = 1800
    """Seconds after which a worker in which nothing moves, as in a collective that never returns, is ended; all
    workers then start anew from the last checkpoint. Longer than writing a checkpoint takes."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, "engine.workers", self.workers, "at least one worker must train.")
        fewest = self.min_workers
        fits = fewest is None or 1 <= fewest <= self.workers
        require(fits, "engine.min_workers", fewest, f"must be from 1 to engine.workers, which is {self.workers}.")
        require(self.timeout_s > 0, "engine.timeout_s", self.timeout_s, "must be positive.")
        require(self.resize_every_s > 0, "engine.resize_every_s", self.resize_every_s, "must be positive.")
        require(self.cpus_per_worker >= 1, "engine.cpus_per_worker", self.cpus_per_worker, "must be at least 1.")


@dataclass(frozen=True)
class TrackingConfig:
    """Where MLflow keeps runs."""

    uri: str | None = None
    """MLflow tracking URI; null for sqlite in the storage folder, `off` for none. A server's login is given by the
    environment variables MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PostgreSQL's password by PGPASSWORD."""
    experiment: str = "urg"
    """MLflow experiment."""
    log_every: int = 10
    """Steps between logged points."""

    def __post_init__(self) -> None:
        require(self.log_every >= 1, "tracking.log_every", self.log_every, "must be at least 1.")
        if self.uri and "://" in self.uri:
            from urg.tracking.loggable import has_login

            mend = "has a login in it, which config.yaml, MLflow and logs would show: leave it out, and set "
            mend += "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or for PostgreSQL PGPASSWORD."
            require(not has_login(self.uri), "tracking.uri", f"{self.uri.split('://')[0]}://…", mend)


@dataclass(frozen=True)
class TrainConfig:
    """A training run of URG, or of one of the systems that it is compared with."""

    name: str = "urg"
    """The run's name, and its folder's in `storage`."""
    system: SystemName = "urg"
    """What is trained: URG, one of the rankers (pair_ranker, simcls, summareranker) or the fuser (gen_fuser). `loss` is
    URG's alone, `ranker` and `fuser` are the others'."""
    storage: str = "runs"
    """Folder for runs. With several nodes it must be shared between them."""
    steps: int | None = None
    """Optimizer steps; null to use `epochs`."""
    epochs: float = 10.0
    """Passes over the training split, where `steps` is null."""
    seed: int = 0
    """Seeds initial weights, order and dropout."""
    resume: str = "auto"
    """`auto` continues the run of this name where it stopped, `never` refuses to touch one, a path continues from that
    checkpoint."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; null: one at each evaluation only. Each evaluation writes one in any case."""
    keep_checkpoints: int = 2
    """Checkpoints kept, the newest ones. The best model by `eval.metric` is kept beside them, in the run's `model`;
    under `data.fold_dev held_out` the last one."""
    dry_run: bool = False
    """Print the resolved configuration, resources, steps, parameters and memory a worker, and touch nothing."""
    data: DataConfig = field(default_factory=DataConfig)
    """What to train on."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which model."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss."""
    ranker: RankerConfig = field(default_factory=RankerConfig)
    """The rankers with an encoder."""
    fuser: FuserConfig = field(default_factory=FuserConfig)
    """GenFuser."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Batch sizes."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation and model selection."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Workers and DeepSpeed."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        valid = self.name and self.name == Path(self.name).name and self.name not in (".", "..")
        require(bool(valid), "name", self.name, "must be a plain folder name.")
        require(self.seed >= 0, "seed", self.seed, "must be 0 or more.")
        require(self.steps is None or self.steps >= 1, "steps", self.steps, "must be at least 1.")
        require(self.epochs > 0, "epochs", self.epochs, "must be positive.")
        require(
            self.eval.metric != "bertscore" or self.eval.bertscore_model is not None,
            "eval.metric",
            self.eval.metric,
            "needs eval.bertscore_model, a hub id or a folder; or choose another metric, such as rougeL.",
        )
        require(
            self.loss.rank_scale not in ("mass", "log_mass") or self.model.score_tokens == "all",
            "loss.rank_scale",
            self.loss.rank_scale,
            "is the attention on all tokens of a candidate: choose another, or model.score_tokens all.",
        )
        require(
            self.system == "urg" or self.model.k_gap is None,
            "model.k_gap",
            self.model.k_gap,
            f"is a gap between URG's scores: {self.system} has none; set null.",
        )
        require(
            self.system != "gen_fuser" or self.eval.metric in TEXT_METRICS,
            "eval.metric",
            self.eval.metric,
            f"gen_fuser does not rank; choose one of {', '.join(TEXT_METRICS)}.",
        )
        require(
            self.engine.zero_stage != 3 or self.ranker.inference == "full",
            "ranker.inference",
            self.ranker.inference,
            "under engine.zero_stage 3 all workers must make as many passes; use full.",
        )
        require(
            self.checkpoint_every is None or self.checkpoint_every >= 1,
            "checkpoint_every",
            self.checkpoint_every,
            "must be at least 1, or null for one at each evaluation.",
        )
        require(
            self.engine.min_workers is None or self.checkpoint_every is not None,
            "engine.min_workers",
            self.engine.min_workers,
            "needs checkpoint_every: a worker that comes or goes costs the steps since the last checkpoint.",
        )
        require(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "must be at least 1.")

    @property
    def global_batch(self) -> int:
        """Rows of one optimizer step over all workers."""
        return self.batch.micro * self.batch.accumulation * self.engine.workers

    def accumulation(self, workers: int) -> int:
        """Micro-batches that each of `workers` takes for one optimizer step."""
        return -(-self.global_batch // (self.batch.micro * workers))


@dataclass(frozen=True)
class EnsembleConfig:
    """What to rank and fuse, with which model."""

    model: str
    """Folder of a trained URG."""
    input: Path
    """JSON lines: instruction and/or input, and candidates (strings, or objects with a `text`)."""
    output: Path
    """JSON lines, one for each line of the input, in order; a bad row's has `error` instead of results."""
    k: int | None = None
    """Candidates fused; null for the model's K, within the model's own `k_gap`."""
    k_gap: float | None = None
    """Of these only the ones whose score is at least exp(-k_gap) of the top one's, as `model.k_gap` of training; null:
    all of them, and with the model's K the model's own."""
    num_beams: int = 4
    """Beams; 1 is greedy."""
    max_new_tokens: int | None = None
    """Longest answer in tokens; null for the model's."""
    batch_size: int = 16
    """Queries taken at once."""
    device: str | None = None
    """`cpu` or `cuda`; null for a GPU where there is one."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of weights and activations; ranking is in fp32 always."""
    rank_only: bool = False
    """Only rank, write no text."""
    verify: bool = True
    """Compare the weights with the model's checksums before use, about a second a GB."""

    def __post_init__(self) -> None:
        for key in ("k", "num_beams", "max_new_tokens", "batch_size"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, value, "must be at least 1.")
        require(is_gap(self.k_gap), "k_gap", self.k_gap, "must be 0 or positive.")
        known = self.device is None or self.device.split(":")[0] in ("cpu", "cuda", "mps", "xpu")
        require(known, "device", self.device, "choose cpu, or cuda where there is a GPU.")
