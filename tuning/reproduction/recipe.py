"""From experiments to steps: which runs are trained, with what, and which commands measure them.

A variant is URG, or a system that it is compared with, trained with some keys changed. Experiments share variants:
Table 2's URG is Table 3's whole model and Figure 3's K=3, and is trained once for each seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.ray_session import on_cluster
from tuning.reproduction.config import Preset, ReproduceConfig
from tuning.reproduction.steps import Step, options
from urg.train import absolute_if_folder

URG = "urg"
BASELINES = ("simcls", "summareranker", "pair_ranker", "gen_fuser")
NO_RANKING = "wo_ranking"
ALL_CANDIDATES = "all_candidates"
ALL_ROWS = "compare-all-rows"
ABLATIONS: dict[str, dict[str, Any]] = {
    NO_RANKING: {"loss.gamma": 0.0, "loss.selection": "random"},
    "wo_rank_loss": {"loss.gamma": 0.0},
    ALL_CANDIDATES: {"model.k": 1000},
    "wo_erm": {"loss.beta": 0.0, "loss.second_ce": False},
    "wo_kl": {"loss.beta": 0.0},
}
"""Table 3 and what stands beside it: no ranking (K at random, in use too), no ranking loss but attention still selects,
nothing filtered (K over N), no robust training, no KL term alone."""
_OURS = ("name", "storage", "seed", "system", "data.shards", "resume", "dry_run", "model.base")
"""What the reproduction sets for each training."""
_PAPERS: dict[str, Any] = {
    "loss.rank_loss": "hinge", "loss.rank_scale": "attention", "loss.gamma": 5.0, "loss.beta": 2.0, "loss.m": 32,
    "loss.tau": 2.0, "loss.selection": "predicted", "loss.second_ce": True, "model.score_layers": "all",
    "model.score_tokens": "all", "model.k_gap": None,
}  # fmt: skip
"""What the paper fixes of URG's recipe, and what a training has that says nothing else."""
PAPERS_RANKING = "hinge on attention, γ=5"
"""The paper's recipe, as `Recipe.ranking` says it."""


@dataclass
class Recipe:
    """The steps of a reproduction, in the order in which they were asked for; each once."""

    config: ReproduceConfig
    preset: Preset
    root: Path
    """The reproduction's folder, absolute."""
    pinned: str | None = None
    """The user's set by its own folder, where it is known."""
    steps: dict[str, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError for overrides that are the reproduction's to set, and bases of no system."""
        from urg.tracking.loggable import flatten

        given = dict(flatten(self.config.overrides)) if self.config.overrides else {}  # `--overrides.eval.every` nests
        if wrong := [key for key in given if key in _OURS]:
            raise UserError(f"overrides: {wrong[0]} is the reproduction's to set (see --bases, --seeds, --shards).")
        if unknown := [name for name in self.config.bases if name not in self.preset.systems]:
            raise UserError(f"bases: there is no system {unknown[0]}; choose from {', '.join(self.preset.systems)}.")
        self.given = given
        self.preset = replace(self.preset, overrides=self.preset.overrides | given)

    @property
    def seeds(self) -> range:
        """Seeds of everything that is trained."""
        return range(self.config.seeds or self.preset.seeds)

    @property
    def at_once(self) -> int:
        """Steps that run side by side."""
        one_machine = self.preset.gpu and not on_cluster()  # each training wants all of its GPUs
        return self.config.at_once or (1 if one_machine else self.preset.at_once)

    @property
    def base_k(self) -> int:
        """K of the preset's own URG; its run is the one of Figure 3 too."""
        return int(self.preset.overrides.get("model.k") or self._trained_with(URG).get("model", {}).get("k", 3))

    def ranking(self, variant: str) -> str:
        """How a variant of URG learns: ranking loss, scale of the scores, weight; and what else is not the paper's."""
        from urg.tracking.loggable import flatten

        chosen = _PAPERS | dict(flatten(self._trained_with(URG))) | self.preset.overrides | self.variant(variant)[1]
        loss, scale, gamma, *others = _PAPERS
        told = [f"{chosen[loss]} on {chosen[scale]}", f"γ={chosen[gamma]:g}"]
        return ", ".join(told + [f"{key} {chosen[key]}" for key in others if chosen[key] != _PAPERS[key]])

    @property
    def papers_variant(self) -> str | None:
        """The variant whose recipe is the paper's: URG itself, or one of the preset's recipes; None for none."""
        names = (URG, *self.preset.recipes)
        return next((name for name in names if self.ranking(name) == PAPERS_RANKING), None)

    def shards(self) -> str:
        """The prepared set."""
        if self.config.shards is not None:
            return self.pinned or str(Path(self.config.shards).expanduser().absolute())
        if self.preset.prepare is None:
            raise UserError(
                f"preset {self.config.preset} needs MixInstruct's shards: make them (python -m data_pipeline.prepare "
                "--input hf:llm-blender/mix-instruct --tokenizer google/flan-t5-large --output data/mix-instruct) and "
                "name the folder by --shards."
            )
        return str(self.root / "data")

    def prepare(self) -> tuple[str, ...]:
        """The step that makes the set, if it is ours to make."""
        shards = self.shards()
        if self.config.shards is not None or self.preset.prepare is None:
            return ()
        return self.add("prepare", "data_pipeline.prepare", self.preset.prepare | {"output": shards})

    def train(self, variant: str, seed: int) -> str:
        """The step that trains a variant."""
        system, changed = self.variant(variant)
        values: dict[str, Any] = {"config": self.trained_by(system), "name": self.run(variant, seed)}
        values |= {"storage": str(self.root / "runs"), "seed": seed, "data.shards": self.shards()}
        values |= {"tracking.experiment": self.config.name} | self.changes(system) | changed
        return self.add(f"train-{self.run(variant, seed)}", "urg.train", values, self.prepare())[0]

    def trained_by(self, system: str) -> str:
        """The preset of `urg.train` that trains a system. Raises UserError where there is none."""
        if system not in self.preset.systems:
            raise UserError(
                f"preset {self.config.preset} has no system {system}, which is asked for: name the preset of urg.train "
                f"that trains it by `systems: {{{system}: …}}`, or choose other experiments by --only."
            )
        return self.preset.systems[system]

    def changes(self, system: str) -> dict[str, Any]:
        """Dotted key → value: what every training of a system changes in its preset."""
        return self.preset.overrides | self.asked_changes(system)

    def asked_changes(self, system: str) -> dict[str, Any]:
        """Those of them that the user asks for, among them the model of BERTScore."""
        changes = dict(self.given)
        if base := self.config.bases.get(system):
            changes["model.base"] = absolute_if_folder(base)
        model = self.config.bertscore_model  # the preset's is in its trainings' own files
        if model and self._trained_with(system).get("eval", {}).get("bertscore_model"):
            changes.setdefault("eval.bertscore_model", absolute_if_folder(model))
        return changes

    def evaluated(self, variant: str) -> list[str]:
        """The names of the steps that measure a variant, a seed each."""
        return [f"evaluate-{self.run(variant, seed)}" for seed in self.seeds]

    def compared(self) -> list[str]:
        """The names of the steps of Table 2, a seed each."""
        return [f"compare-s{seed}" for seed in self.seeds]

    @property
    def all_rows(self) -> str:
        """The name of the step that measures the first seed's systems on every row of the test split."""
        return ALL_ROWS if "rows" in self.preset.evaluate else self.compared()[0]

    def evaluate(self, variant: str, seed: int) -> str:
        """The step that measures URG's pick and text of one variant on the test split."""
        systems = "urg_rank,urg" + (",urg_random_k" if variant == NO_RANKING else "")
        values = {"systems": systems, "statistics.trials": 0}
        name = f"evaluate-{self.run(variant, seed)}"
        return self._measure(name, (variant, seed), values, [self.train(variant, seed)])

    def compare(self, seed: int) -> str:
        """The step that measures every system of Table 2, all trained with one seed."""
        return self._compare(f"compare-s{seed}", seed, {})

    def compare_all_rows(self) -> list[str]:
        """The step that measures the systems of the first seed on every row of the test split, where those of each
        seed are measured on its first rows only; none otherwise."""
        return [self._compare(ALL_ROWS, self.seeds[0], {"rows": None})] if "rows" in self.preset.evaluate else []

    def _compare(self, step: str, seed: int, values: dict[str, Any]) -> str:
        needs = [self.train(variant, seed) for variant in (URG, *BASELINES)]
        return self._measure(step, (URG, seed), self._folders(BASELINES, seed) | values, needs)

    def noise(self, seed: int) -> str:
        """The step of Table 5: bad candidates beside good ones."""
        others = ("pair_ranker", "gen_fuser")
        needs = [self.train(variant, seed) for variant in (URG, *others)]
        values = {"experiment": "noise", "systems": "urg,llm_blender"} | self._folders(others, seed)
        return self._measure(f"noise-s{seed}", (URG, seed), values, needs)

    def export(self, experiment: str, seed: int, values: dict[str, Any], others: tuple[str, ...]) -> str:
        """The step that writes texts to read: human, cases. others: the systems beside URG whose texts it shows.

        It writes beside Table 2, with the same options, and so takes the answers that this has kept.
        """
        compared = f"compare-s{seed}"
        needs = [self.train(variant, seed) for variant in (URG, *others)]
        own = {"output": str(self.output(compared)), "experiment": experiment}
        values = own | self._folders(BASELINES, seed) | values
        return self._measure(f"{experiment}-s{seed}", (URG, seed), values, needs, after=(compared,))

    def benchmark(self, experiment: str) -> str:
        """The step that times one experiment of `urg.benchmark`."""
        values: dict[str, Any] = {"experiment": experiment, "output": str(self.timings(experiment))}
        values |= self.preset.benchmark.get(experiment, {})
        return self.add(f"benchmark-{experiment}", "urg.benchmark", values, alone=True, gpu=self.preset.gpu)[0]

    def timings(self, experiment: str) -> Path:
        """The folder that a step of `urg.benchmark` writes into."""
        return self.root / "benchmark" / experiment

    def _folders(self, systems: tuple[str, ...], seed: int) -> dict[str, Any]:
        return {f"folders.{name}": self._model(name, seed) for name in systems}

    def _measure(
        self, step: str, run: tuple[str, int], values: dict[str, Any], needs: list[str], after: tuple[str, ...] = ()
    ) -> str:
        """A step of `urg.evaluate`. run: the variant and seed of the URG that is measured."""
        own: dict[str, Any] = {"model": self._model(*run), "shards": self.shards(), "output": str(self.output(step))}
        own |= {"seed": run[1], "cases": 0}
        values = own | self.preset.evaluate | self.models() | values
        gpu = self.preset.gpu and not values.get("workers")  # its actors have their own
        return self.add(step, "urg.evaluate", values, tuple(needs), gpu=gpu, after=after)[0]

    def output(self, step: str) -> Path:
        """The folder that a step of `urg.evaluate` writes into."""
        return self.root / "evaluations" / step

    def models(self) -> dict[str, str]:
        """The models of metrics: the user's, else the preset's."""
        names = ("bertscore_model", "bartscore_model", "bleurt_model")
        chosen = {name: getattr(self.config, name) or self.preset.models.get(name) for name in names}
        return {name: str(absolute_if_folder(str(model))) for name, model in chosen.items() if model is not None}

    def variant(self, name: str) -> tuple[str, dict[str, Any]]:
        """(system, changed keys) of a variant."""
        if name in BASELINES:
            return name, {}
        if name.startswith("k") and name[1:].isdigit():
            return URG, {"model.k": int(name[1:])}
        return URG, {URG: {}, **ABLATIONS, **self.preset.recipes, **self.preset.beyond}[name]

    def with_k(self, k: int) -> str:
        """The variant of Figure 3 with this K."""
        return URG if k == self.base_k else f"k{k}"

    @staticmethod
    def run(variant: str, seed: int) -> str:
        """The name of a training run."""
        return f"{variant}-s{seed}"

    def _model(self, variant: str, seed: int) -> str:
        return str(self.root / "runs" / self.run(variant, seed) / "model")

    def _trained_with(self, system: str) -> dict[str, Any]:
        from tuning.values import read_file
        from urg.config import PRESETS

        return read_file(self.trained_by(system), PRESETS)

    def add(
        self, name: str, module: str, values: dict[str, Any], needs: tuple[str, ...] = (), **how: Any
    ) -> tuple[str]:
        """Add a step, or find it there; its name. how: alone, gpu, after of `Step`."""
        self.steps.setdefault(name, Step(name, (module, *options(values)), needs, **how))
        return (name,)
