"""The card that goes with every exported model: what it is, what it was trained on, and how it did on the dev split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from urg.config import TrainConfig

CARD_FILE = "README.md"


def model_card(config: TrainConfig, manifest: Mapping[str, Any], step: int, dev: Mapping[str, float]) -> str:
    """The model card as Markdown. manifest: the prepared set's; dev: metrics of the dev split at `step`."""
    base, loss = config.model.base or "random weights", config.loss
    use = "rank_and_fuse" if loss.generation else "rank"
    best = f"the best {config.model.k}" + ("" if config.model.k_gap is None else " or fewer, where others fall behind")
    then = f"and writes one answer from {best}" if loss.generation else "and was not taught to write"
    terms = f"γ={loss.gamma} × {loss.rank_loss} on the `{loss.rank_scale}` scale"
    if loss.rank_loss == "listnet":
        terms += f" (target: {loss.quality_scale}, temperature {loss.temperature})"
    terms += f", β={loss.beta}, m={loss.m}, τ={loss.tau}" if loss.generation else ", alone"
    return f"""---
library_name: urg
tags: [{"text2text-generation, " if loss.generation else ""}ensembling, reranking]
---
# {config.name}

A URG model (Unified Ranking and Generation, Lv et al. 2024): it ranks the candidate answers to an instruction by one
decoder step, {then}. Started from {base}; {step} steps of
{config.global_batch} rows.

```python
from urg import Ensemble
Ensemble.from_pretrained("<this folder>").{use}(instruction, candidates)
```

{_data(config, manifest)}
- Loss: {terms}.
- It says nothing of whether an answer is true: it prefers what the label prefers.

{_dev(config, step, dev)}"""


def system_card(config: TrainConfig, manifest: Mapping[str, Any], step: int, dev: Mapping[str, float]) -> str:
    """The card of a system that URG is compared with. Arguments as for `model_card`."""
    base = config.model.base or "random weights"
    fuses = config.system == "gen_fuser"
    chosen = f"- In training it fused {config.model.k} candidates chosen by: {config.fuser.choose}.\n" if fuses else ""
    return f"""---
library_name: urg
tags: [ensembling, {"text2text-generation" if fuses else "reranking"}]
---
# {config.name}

A `{config.system}`, trained as a baseline of URG by the same trainer. Started from {base}; {step} steps of
{config.global_batch} rows. Evaluate it beside the others with `python -m urg.evaluate`.

{_data(config, manifest)}
{chosen}- It says nothing of whether an answer is true: it prefers what the label prefers.

{_dev(config, step, dev)}"""


def _data(config: TrainConfig, manifest: Mapping[str, Any]) -> str:
    split = manifest["splits"][config.data.train_split]
    generated = "generated (simulated models)" if manifest["generated"] else "answers of real models"
    rows = min(split["rows"], config.data.limit or split["rows"])
    part = f" but part {config.data.fold} of {config.data.folds}" if config.data.folds else ""
    part += " and a tenth of the rest" if config.data.folds and not config.data.measures_held_out else ""
    return f"""- Data: {rows} training rows{part}, {generated}, prepared set `{manifest["key"]}`; candidates
  ranked by the score `{config.data.label}`. Its licence and biases are those of the data and of the base model."""


def _dev(config: TrainConfig, step: int, dev: Mapping[str, float]) -> str:
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in dev.items())
    measured = "Dev split"
    if config.data.folds:
        measured = f"Part {config.data.fold}" if config.data.measures_held_out else "That tenth, which chose the model,"
    return f"""{measured} at step {step}:

| metric | value |
|---|---|
{rows}
"""
