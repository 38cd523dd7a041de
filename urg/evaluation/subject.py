"""What is evaluated: the rows of a split, the label they are judged by, the model, and what is to be said of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError
from urg.evaluation.config import FOLD, EvaluateConfig
from urg.evaluation.results import Provenance
from urg.model_folder import count_parameters

if TYPE_CHECKING:
    from data_pipeline.shards import ShardSet, Split, TokenizedExample

FEW_ROWS = 100


@dataclass(frozen=True)
class Subject:
    """The rows and the label. config: with paths made absolute and the device named. ids: of all rows of the split."""

    rows: Sequence[TokenizedExample]
    label: str
    config: EvaluateConfig
    provenance: Provenance
    ids: Sequence[str]


def open_subject(config: EvaluateConfig) -> Subject:
    """Open the data that `config` names, and read what the model says of itself. UserError for what can be mended."""
    from data_pipeline.shards import ShardSet
    from urg.ensemble import resolve_device

    # Actors have the device that was asked for; this process's machine, a cluster's head, may not.
    asked = config.device if config.workers else None
    config = replace(config, device=asked or str(resolve_device(config.device)))
    shards = ShardSet.open(config.shards)
    config = config.parts[0] if config.fold is not None else config
    model = _models_facts(config)
    rows, label = _rows(shards, config), _label(shards, config, model)
    data = _data_facts(shards, config.split, rows, label)
    # Pinned: a later `prepare` under the same root must not change the data of a pool's actors.
    config = replace(config, shards=str(shards.folder), model=model.get("folder"), **_absolute(config))
    provenance = Provenance(data, model, asdict(config), notes(data, model))
    return Subject(rows, label, config, provenance, shards.split(config.split).ids)


def _absolute(config: EvaluateConfig) -> dict[str, Any]:
    """The settings that name models or files: those that are there as absolute paths, hub ids as they are."""

    def absolute(name: str | None) -> str | None:
        there = name and Path(name.replace(FOLD, "0")).expanduser().exists()
        return str(Path(name).expanduser().absolute()) if name and there else name

    metrics = ("bertscore_model", "bartscore_model", "bartscore_weights", "bleurt_model")
    named = ("folders", "imported")
    found = {key: {name: str(absolute(path)) for name, path in getattr(config, key).items()} for key in named}
    return found | {key: absolute(getattr(config, key)) for key in metrics}


def _models_facts(config: EvaluateConfig) -> dict[str, Any]:
    """`model_facts` of the model, or under cross-validation of all of them: the first one's, trained if all are."""
    found = [model_facts(part.model) for part in config.parts]
    if config.model is None or len(found) == 1:
        return found[0]
    named = {"folder": str(Path(config.model).expanduser().absolute())}
    return found[0] | named | {"trained": all(facts["trained"] for facts in found)}


def model_facts(folder: str | None) -> dict[str, Any]:
    """What a model's folder says of it: label, training steps, whether it is trained, parameters. Empty without one."""
    if folder is None:
        return {}
    path = Path(folder).expanduser().absolute()
    if not (path / "urg.json").is_file():
        raise UserError(f"{path} is no URG model (no urg.json): name the model folder of a training run by --model")
    try:
        settings = json.loads((path / "urg.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path / 'urg.json'} is no JSON ({error}); export the model again") from error
    steps = int(settings.get("steps") or 0)
    generated = bool(settings.get("generated_data"))
    facts = {"folder": str(path), "steps": steps} | {key: settings.get(key) for key in ("label", "k", "k_gap")}
    return facts | {"trained": steps > 0, "generated_data": generated, "parameters": count_parameters(path)}


def _rows(shards: ShardSet, config: EvaluateConfig) -> list[TokenizedExample]:
    """The rows to evaluate. UserError where an id stands twice, for predictions are kept by id."""
    split = shards.split(config.split)
    rows = [split[index] for index in places(split, config)]
    if not rows:
        raise UserError(f"split {config.split} of {shards.folder} has no rows; choose another by --split")
    twice = [row_id for row_id, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise UserError(
            f"split {config.split} has {len(twice)} ids more than once, such as {twice[0]}; prepare it again"
        )
    return rows


def places(split: Split, config: EvaluateConfig) -> list[int]:
    """Where in the split the rows stand that `config` names: the first so many, or those of them in its part."""
    from data_pipeline.folds import fold_of

    first = range(min(len(split), config.rows or len(split)))
    if config.folds is None or config.fold is None:
        return list(first)
    return [index for index in first if fold_of(split.ids[index], config.folds) == config.fold]


def _label(shards: ShardSet, config: EvaluateConfig, model: dict[str, Any]) -> str:
    """The label's name. UserError, with the names there are, where none is named or no row has it."""
    label = config.label or model.get("label")
    if not label:
        names = ", ".join(shards.score_names) or "no score at all"
        raise UserError(f"no label is named and the model names none; the data have {names}: choose one by --label")
    shards.split(config.split).has_label(label)
    return str(label)


def _data_facts(shards: ShardSet, split: str, rows: Sequence[TokenizedExample], label: str) -> dict[str, Any]:
    labelled = sum(bool((row.scores[label] == row.scores[label]).any()) for row in rows)
    sizes = [len(row.texts) for row in rows]
    return {
        "shards": str(shards.folder),
        "data_key": shards.manifest.get("key"),
        "split": split,
        "label": label,
        "rows": len(rows),
        "rows_with_label": labelled,
        "rows_with_reference": sum(bool(row.output.strip()) for row in rows),
        "candidates_per_row": {"min": min(sizes), "mean": sum(sizes) / len(sizes), "max": max(sizes)},
        "generated": bool(shards.manifest.get("generated")) or all(row.id.startswith("generated/") for row in rows),
    }


def notes(data: dict[str, Any], model: dict[str, Any]) -> tuple[str, ...]:
    """What a reader must know before believing a figure."""
    found = []
    if data["generated"]:
        found.append("The data are generated and their models simulated: no figure here says anything of real models.")
    if data["rows"] < FEW_ROWS:
        found.append(f"Only {data['rows']} rows: most differences between systems are chance.")
    if model and not model["trained"]:
        found.append("The URG model is untrained (0 steps): its rows show what random weights do.")
    if model and model["label"] not in (None, data["label"]):
        found.append(f"URG was trained to rank by {model['label']}, and is judged here by {data['label']}.")
    if data["rows_with_label"] < data["rows"]:
        unlabelled = data["rows"] - data["rows_with_label"]
        found.append(f"{unlabelled} rows have no {data['label']}: no label, no rank metrics.")
    if 0 < data["rows_with_reference"] < data["rows"]:
        found.append(f"{data['rows'] - data['rows_with_reference']} rows have no reference: no text metrics.")
    return tuple(found)
