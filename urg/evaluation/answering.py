"""Which systems are asked, and their answers: kept ones of an earlier run, or made now, here or by Ray Data actors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from data_pipeline.folds import fold_of
from urg.evaluation import oracles
from urg.evaluation.answer_store import Answered, AnswerStore
from urg.evaluation.config import EvaluateConfig
from urg.systems import SYSTEMS, Setup, System, SystemUnavailable
from urg.systems.folder import require_known
from urg.systems.imported import imported_files
from urg.systems.needs import require_usable
from urg.systems.protocol import Answer, Kind, Progress, silent
from urg.systems.single import single_models

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample
    from urg.ensemble import Ensemble

ALL, MODELS, ORACLES, IMPORTED = "all", "models", oracles.GROUP, "imported"
INSTANT = frozenset({"random", "longest", "oracle"})  # not worth a process of their own
ASKED_AGAIN = frozenset({"judge_rank", "judge_fuse"})  # a call that failed may succeed the next time
ON_REQUEST = frozenset({"urg_random_k"})  # what an ablation asks for; no part of `all`
# Systems whose work is one pass: answered together, so that actors do it once.
TOGETHER = (
    ("urg_rank", "urg"),
    ("simcls", "simcls_gen"),
    ("summareranker", "summareranker_gen"),
    ("pair_ranker", "pair_ranker_wins", "llm_blender"),
)

Load = Callable[[EvaluateConfig], "Ensemble"]


def load_ensemble(config: EvaluateConfig) -> Ensemble:
    """The URG of `config.model`. UserError where the folder holds none."""
    from urg.ensemble import Ensemble

    return Ensemble.from_pretrained(str(config.model), config.device, config.dtype, config.batch_size)


def make_setup(
    config: EvaluateConfig,
    label: str,
    models: Sequence[str],
    names: Sequence[str],
    load: Load,
    progress: Progress,
    ids: Sequence[str],
) -> Setup:
    """What the systems `names` are built from. URG is loaded only where one of its systems is asked.

    ids: of all rows of the split.
    """
    needs_urg = config.model is not None and any(name.startswith("urg") for name in names)
    require_known(config.folders)
    return Setup(
        label=label,
        models=tuple(models),
        seed=config.seed,
        ensemble=load(config) if needs_urg else None,
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
        rank_only="urg" not in names,
        progress=progress,
        folders=dict(config.folders),
        ids=tuple(ids),
        device=config.device,
        dtype=config.dtype,
    )


def asked_systems(asked: str, singles: Sequence[str], imported: Collection[str]) -> tuple[list[str], list[str]]:
    """(single models and imported predictions, other systems) that `asked` names, in table order; the name `imported`
    stands for all of these predictions too. UserError for a name of nothing."""
    if asked.strip() == ALL:
        return [*singles, *imported], [name for name in SYSTEMS if name not in ON_REQUEST]
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if not names:
        raise UserError("--systems names no system; write all, or names by commas (see --list)")
    known = (MODELS, ORACLES, *SYSTEMS, *imported, *singles)
    for name in names:
        if name not in known:
            raise UserError(f"there is no system {name}; choose from {', '.join((ALL, *known))}")
    chosen = [name for name in singles if name in names or MODELS in names]
    chosen += [name for name in imported if name in names or IMPORTED in names]
    return chosen, [name for name in SYSTEMS if name in names]


def asks_oracles(asked: str) -> bool:
    """Whether `asked` names the oracles of the metrics, which are made from what is measured."""
    return asked.strip() == ALL or ORACLES in (name.strip() for name in asked.split(","))


def answer(
    rows: Sequence[TokenizedExample],
    label: str,
    config: EvaluateConfig,
    store: AnswerStore,
    load: Load = load_ensemble,
    progress: Progress = silent,
    ids: Sequence[str] | None = None,
) -> tuple[list[System], dict[str, str]]:
    """Every asked system with its answers to all rows, and the reason for each that could not run.

    A system's answers are in the store when the next one begins; what the systems need is looked at before the first
    one does. ids: of all rows of the split; None: those of `rows`.
    """
    models = sorted({name for row in rows for name in row.models})
    given = {system.name: system for system in single_models(Setup(label, tuple(models)), frozenset(SYSTEMS))}
    chosen, names = asked_systems(config.systems, list(given), config.imported)
    work = _Work(label, models, [row.id for row in rows] if ids is None else ids, load, progress)
    files = {name: file for name, file in config.imported.items() if name in chosen}
    given |= imported_files(files, {ALL, MODELS, ORACLES, *SYSTEMS, *given}, [row.id for row in rows], work.ids)
    for part, places in _parts(rows, config):
        require_usable(part.folders, names, [rows[i].id for i in places], work.ids)
    run = _answer_rows if config.folds is None else _answer_parts
    answered, unavailable = run(rows, names, work, config, store)
    if config.imported:
        unavailable.pop(IMPORTED, None)  # the files have names of their own
    return [*(given[name] for name in chosen), *(answered[n] for n in names if n in answered)], unavailable


@dataclass(frozen=True)
class _Work:
    """What does not differ from one part of the rows to another."""

    label: str
    models: Sequence[str]
    ids: Sequence[str]
    load: Load
    progress: Progress


def _parts(rows: Sequence[TokenizedExample], config: EvaluateConfig) -> list[tuple[EvaluateConfig, list[int]]]:
    """The configuration of each part and where its rows stand; of the whole without cross-validation."""
    if config.folds is None:
        return [(config, list(range(len(rows))))]
    parts = [fold_of(row.id, config.folds) for row in rows]
    return [(part, [i for i, fold in enumerate(parts) if fold == part.fold]) for part in config.parts]


def _answer_parts(
    rows: Sequence[TokenizedExample], names: Sequence[str], work: _Work, config: EvaluateConfig, store: AnswerStore
) -> tuple[dict[str, Answered], dict[str, str]]:
    """Cross-validation: each part by its own models, and the answers in the order of the rows."""
    kinds: dict[str, Kind] = {}
    answers: dict[str, list[Answer | None]] = {name: [None] * len(rows) for name in names}
    unavailable: dict[str, str] = {}
    for part, places in _parts(rows, config):
        own = [rows[i] for i in places]
        answered, reasons = _answer_rows(own, names, work, part, store.of_part(part, own)) if own else ({}, {})
        unavailable |= reasons
        for name, system in answered.items():
            kinds[name] = system.kind
            for place, answer in zip(places, system.answers, strict=True):
                answers[name][place] = answer
    return {n: Answered(n, kinds[n], answers[n]) for n in kinds if n not in unavailable}, unavailable


def _answer_rows(
    rows: Sequence[TokenizedExample], names: Sequence[str], work: _Work, config: EvaluateConfig, store: AnswerStore
) -> tuple[dict[str, Answered], dict[str, str]]:
    """The answers of the systems `names`, from the store where they are there; and why others could not run."""
    from urg.evaluation.pool import answer_in_pool

    kept = {name: found for name in names if (found := store.load(name)) is not None}
    pending = [name for name in names if name not in kept]
    if any(name not in INSTANT for name in kept):
        print(f"kept from an earlier run: {', '.join(name for name in kept if name not in INSTANT)}")
    far = [name for name in pending if name not in INSTANT] if config.workers else []
    here = [name for name in pending if name not in far]
    unavailable: dict[str, str] = {}
    setup = make_setup(config, work.label, work.models, here, work.load, work.progress, work.ids)
    for name in [name for name, found in kept.items() if name in ASKED_AGAIN and None in found.answers]:
        kept[name] = _completed(kept[name], rows, setup)
        store.save(kept[name])
    for name in here:
        try:
            system = SYSTEMS[name](setup)
            kept[name] = Answered(name, system.kind, system.answer(rows))
            store.save(kept[name])
        except SystemUnavailable as reason:
            unavailable[name] = str(reason)
    for family in _families(far):
        answered, reasons = answer_in_pool(
            len(rows), work.ids, work.label, work.models, family, config, work.load, work.progress
        )
        unavailable |= reasons
        for made in answered:
            kept[made.name] = made
            store.save(made)
    return kept, unavailable


def _completed(kept: Answered, rows: Sequence[TokenizedExample], setup: Setup) -> Answered:
    """Kept answers, the rows without one asked about again; those that fail again stay without."""
    holes = [index for index, answer in enumerate(kept.answers) if answer is None]
    try:
        found = SYSTEMS[kept.name](setup).answer([rows[index] for index in holes])
    except UserError as error:  # not one of them got an answer
        print(f"note: {kept.name} still has no answer to {len(holes)} rows: {error}")
        return kept
    answers = dict(enumerate(kept.answers)) | dict(zip(holes, found, strict=True))
    return Answered(kept.name, kept.kind, [answers[index] for index in range(len(rows))])


def _families(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The names in order, those that share their work side by side."""
    found = [tuple(n for n in family if n in names) for family in TOGETHER]
    alone: list[tuple[str, ...]] = [(name,) for name in names if not any(name in family for family in found)]
    return sorted([family for family in found if family] + alone, key=lambda family: names.index(family[0]))
