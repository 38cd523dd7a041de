"""Configuration of `python -m tuning.reproduce`: what the user says, and what a preset knows. Light to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class ReproduceConfig:
    """Which experiments of the paper to run, on what, and where."""

    preset: str = "sample"
    """The size: `sample`, in miniature on a laptop; `flan-t5-large`, `flan-t5-xl`: MixInstruct on a cluster; or a YAML
    file, which may say `like: flan-t5-large` and then only what differs."""
    only: str | None = None
    """Experiments by commas, such as table3,fig3; null for all but `beyond`, which looks for better recipes."""
    name: str = "reproduce"
    """The reproduction's name, and its folder's in `storage`."""
    storage: str = "runs"
    """Folder for reproductions. With several nodes it must be shared between them."""
    shards: str | None = None
    """A prepared set. Null: the preset prepares its own (the sample), or says how to make it (MixInstruct)."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted key → value, changes to every training and to the sweep's base, such as `engine.workers: 4`,
    `engine.max_failures: 10` or `tracking.uri: http://mlflow:5000`."""
    bases: dict[str, str] = field(default_factory=dict)
    """System (urg, simcls, summareranker, pair_ranker, gen_fuser) → folder or hub id of the base model of its training,
    where that is not the preset's."""
    seeds: int | None = None
    """Seeds of everything that is trained, 1 or more; null: as many as the preset says. More of them can be added."""
    at_once: int | None = None
    """Steps at once; null: as many as the preset says. On a cluster each waits for its own workers, so give as many as
    it has room for, and fewer than it has GPUs."""
    bertscore_model: str | None = None
    """Hub id or folder of BERTScore's encoder, also of the trainings that measure it; null: the preset's, if it has
    one, and of each training its own."""
    bartscore_model: str | None = None
    """Hub id or folder of BARTScore's model; null: the preset's, if it has one."""
    bleurt_model: str | None = None
    """Hub id or folder of BLEURT's model; null: the preset's, if it has one."""
    dry_run: bool = False
    """Print the steps, and which of them are done; run and write nothing."""

    def __post_init__(self) -> None:
        valid = self.name and self.name == Path(self.name).name and self.name not in (".", "..")
        if not valid:
            raise ValueError(f"name={self.name!r}: must be a plain folder name.")
        for key in ("seeds", "at_once"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value}: must be at least 1.")


@dataclass(frozen=True)
class Preset:
    """What a size of the reproduction is made of: a YAML file in `presets/`, or the user's."""

    systems: dict[str, str]
    """System → the preset of `urg.train` that trains it: `urg`, and what the experiments that are asked for compare."""
    seeds: int
    """Seeds of everything that is trained."""
    ks: list[int]
    """The K of Figure 3."""
    at_once: int = 1
    """Steps at once, where the user does not say. With `gpu` on one machine alone (no RAY_ADDRESS) it is one."""
    gpu: bool = False
    """Whether trainings and measurements take GPUs. On a cluster, `urg.benchmark`, and `urg.evaluate` without workers,
    then run on a node with one, and hold it."""
    name: str = ""
    """The preset of the project that this one is, or is like; empty for a file that is like none."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted key → value, for every training."""
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Other recipes than the preset's own, by name: dotted keys of URG's training."""
    beyond: dict[str, dict[str, Any]] = field(default_factory=dict)
    """More of them, which are trained where the experiment `beyond` is asked for."""
    prepare: dict[str, Any] | None = None
    """Dotted options of `data_pipeline.prepare` for the preset's own set; null: the user names one."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Dotted options of every `urg.evaluate`."""
    benchmark: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Experiment of `urg.benchmark` → its dotted options."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """Changes to the preset of `tuning.sweep` of the same name."""
    models: dict[str, str] = field(default_factory=dict)
    """Metric → hub id or folder of its model: bertscore_model, bartscore_model, bleurt_model."""


def load_preset(name: str) -> Preset:
    """The preset of this name, or of a YAML file. Raises UserError where there is none, or it is none."""
    content = _read(name)
    known = {one.name: one for one in dataclasses.fields(Preset)}
    needed = {key for key, one in known.items() if one.default is one.default_factory is dataclasses.MISSING}
    if wrong := sorted(content.keys() - known.keys()):
        raise UserError(
            f"preset {name}: there is no setting {', '.join(wrong)}; choose from {', '.join(sorted(known))}."
        )
    if missing := sorted(needed - content.keys()):
        raise UserError(f"preset {name}: it lacks {', '.join(missing)}; set them, or begin with `like: flan-t5-large`.")
    if not isinstance(content["systems"], Mapping) or "urg" not in content["systems"]:
        raise UserError(f"preset {name}: its systems lack urg, which every claim is about; set `systems: {{urg: …}}`.")
    return Preset(**content)


def _read(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A preset's settings, on top of those of the one that it is like. above: those that are like it."""
    from tuning.values import read_file

    if name in above:
        raise UserError(f"preset {above[0]}: it is like itself ({' → '.join([*above, name])}); name another by `like`.")
    content = read_file(name, PRESETS)
    own = {"name": name} if (PRESETS / f"{name}.yaml").is_file() else {}
    like = content.pop("like", None)
    return _merged(_read(str(like), (*above, name)), own | content) if like else own | content


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others on top, mappings within mappings too."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
