"""The texts of the experiment `noise`: each fuser's text of each variant of a row, by this process or by the pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import UserError
from urg.evaluation.answer_store import Answered, AnswerStore
from urg.evaluation.answering import Load, asked_systems, make_setup
from urg.evaluation.config import EvaluateConfig
from urg.evaluation.pool import Answerer, lines_of_pool
from urg.systems import FUSING, NEEDS, SYSTEMS
from urg.systems.needs import require_usable
from urg.systems.protocol import Answer, Fuser, Progress, Setup, SystemUnavailable

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample

BASE = 2
VARIANTS = {"base": 0, "12": 1, "11,12": 2}  # as the paper names them → how many of the worst are added

Texts = dict[str, dict[str, list[str | None]]]
"""Fuser → variant → its text of each usable row."""


@dataclass(frozen=True)
class NoisyTexts:
    """rows: all that are evaluated. ids: of all rows of their split. store: of the usable rows, which keeps texts over
    the end of the process."""

    rows: Sequence[TokenizedExample]
    ids: Sequence[str]
    label: str
    config: EvaluateConfig
    load: Load
    progress: Progress
    store: AnswerStore

    def written(self) -> tuple[Texts, dict[str, str]]:
        """The texts of each asked system that writes, GenFuser's once; and why other systems cannot run. What they need
        is looked at before the first text."""
        models = sorted({name for row in self.rows for name in row.models})
        names = writers(asked_systems(self.config.systems, models, self.config.imported)[1])
        require_usable(self.config.folders, names, [row.id for row in self.rows], self.ids)
        kept = {name: self._kept(name) for name in names}
        pending = [name for name in names if len(kept[name]) < len(VARIANTS)]
        made, missing = Texts(), dict[str, str]()
        if pending:
            made, missing = (self._far if self.config.workers else self._here)(models, pending, kept)
        whole = {name: kept[name] for name in names if name not in pending} | made
        texts = {name: whole[name] for name in names if name in whole}
        if not texts:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items()) or "no fuser was asked for"
            raise UserError(f"none of the systems writes texts ({reasons}); name a model by --model")
        return texts, missing

    def _kept(self, name: str) -> dict[str, list[str | None]]:
        """What an earlier run has left of a system."""
        kept = {variant: self.store.load(self._key(name, variant)) for variant in VARIANTS}
        return {v: [a.text if a else None for a in own.answers] for v, own in kept.items() if own is not None}

    def _keep(self, name: str, variant: str, texts: list[str | None]) -> list[str | None]:
        answers = [None if text is None else Answer(text) for text in texts]
        self.store.save(Answered(self._key(name, variant), "fuser", answers))
        return texts

    def _key(self, name: str, variant: str) -> str:
        return f"noise:{self.label}:{name}:{variant}"

    def _here(self, models: Sequence[str], pending: Sequence[str], kept: Texts) -> tuple[Texts, dict[str, str]]:
        """By this process; each variant is in the store when the next one begins."""
        setup = make_setup(self.config, self.label, models, pending, self.load, self.progress, self.ids)
        fusers, missing = _fusers(setup, pending)
        rows, texts = [row for row in self.rows if usable(row, self.label)], Texts()
        for name, fuser in fusers.items():
            texts[name] = own = dict(kept[name])
            for variant in VARIANTS:
                if variant not in own:
                    fused = fuse_all(name, fuser, with_noise(rows, self.label, variant), self.config)
                    own[variant] = self._keep(name, variant, list(fused))
        return texts, missing

    def _far(self, models: Sequence[str], pending: Sequence[str], kept: Texts) -> tuple[Texts, dict[str, str]]:
        """By the pool of actors, each variant anew."""
        made = (self.label, tuple(models), tuple(pending), self.config, self.load, tuple(self.ids))
        what = f"noise: {', '.join(pending)}"
        lines = lines_of_pool(_NoiseAnswerer, made, len(self.rows), self.config, self.progress, what)
        places = [i for i, row in enumerate(self.rows) if usable(row, self.label)]
        texts = Texts()
        for name in pending:
            if f"{name}:base" in lines:
                own = {variant: [lines[f"{name}:{variant}"][i]["text"] for i in places] for variant in VARIANTS}
                texts[name] = {variant: self._keep(name, variant, found) for variant, found in own.items()}
        return texts, {name: own[0]["unavailable"] for name, own in lines.items() if name in pending}


class _NoiseAnswerer(Answerer):
    """An actor: the text of each fuser of every variant of a row."""

    def prepare(self, setup: Setup, names: Sequence[str]) -> None:
        """Load the fusers."""
        self._fusers, self._missing = _fusers(setup, names)

    def lines(self, rows: Sequence[TokenizedExample]) -> dict[str, list[dict[str, Any]]]:
        """A column for each fuser and variant: no text of a row that is not usable. And one for each missing system."""
        places = [i for i, row in enumerate(rows) if usable(row, self._label)]
        chosen = [rows[i] for i in places]
        found: dict[str, list[dict[str, Any]]] = {}
        found |= {name: [{"unavailable": reason}] * len(rows) for name, reason in self._missing.items()}
        for name, fuser in self._fusers.items():
            for variant in VARIANTS:
                own: list[dict[str, Any]] = [{"text": None}] * len(rows)
                noisy = with_noise(chosen, self._label, variant)
                fused = fuse_all(name, fuser, noisy, self._config) if noisy else []
                for place, text in zip(places, fused, strict=True):
                    own[place] = {"text": text}
                found[f"{name}:{variant}"] = own
        return found


def writers(names: Sequence[str]) -> list[str]:
    """Those that write texts as far as is known before they are built: one that is not in NEEDS may. Of those that
    differ only in who ranks for GenFuser, which has no part in this, one: LLM-Blender if it is there, the paper's."""
    writing = [name for name in names if name not in NEEDS or set(FUSING) <= set(NEEDS[name].settings)]
    alike = [name for name in writing if _by_gen_fuser(name)]
    chosen = "llm_blender" if "llm_blender" in alike else next(iter(alike), None)
    return [name for name in writing if name == chosen or name not in alike]


def _by_gen_fuser(name: str) -> bool:
    return name in NEEDS and "gen_fuser" in NEEDS[name].folders


def _fusers(setup: Setup, names: Sequence[str]) -> tuple[dict[str, Fuser], dict[str, str]]:
    """The fuser of each system that has one, and why others cannot run. No ranker is loaded for GenFuser."""
    from urg.systems.gen_fuser import shared_fuser

    found: dict[str, Fuser] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            fuser = shared_fuser(setup) if _by_gen_fuser(name) else getattr(SYSTEMS[name](setup), "fuser", None)
        except SystemUnavailable as reason:
            missing[name] = str(reason)
            continue
        if fuser is not None:
            found[name] = fuser
    return found, missing


def with_noise(rows: Sequence[TokenizedExample], label: str, variant: str) -> list[TokenizedExample]:
    """Each usable row with its best candidates and the worst ones that the variant adds."""
    added, gold = VARIANTS[variant], [_gold(row, label) or [] for row in rows]
    return [_only(row, [*own[:BASE], *own[len(own) - added :]]) for row, own in zip(rows, gold, strict=True)]


def usable(row: TokenizedExample, label: str) -> bool:
    """Whether a row has enough labelled candidates, and a reference."""
    return _gold(row, label) is not None and bool(row.output.strip())


def _gold(row: TokenizedExample, label: str) -> list[int] | None:
    """The labelled candidates, best first (ties by index); None where there are too few."""
    labels = np.asarray(row.scores.get(label, np.full(len(row.texts), np.nan)), dtype=np.float64)
    order = [int(i) for i in np.argsort(-labels, kind="stable") if not np.isnan(labels[i])]
    return order if len(order) >= BASE + 2 else None


def _only(row: TokenizedExample, chosen: Sequence[int]) -> TokenizedExample:
    """The row with the candidates `chosen`, in that order."""
    picked: dict[str, Any] = {
        key: tuple(getattr(row, key)[i] for i in chosen) for key in ("models", "texts", "response_ids")
    }
    scores = {name: np.asarray(values)[list(chosen)] for name, values in row.scores.items()}
    return replace(row, **picked, scores=scores)


def fuse_all(name: str, fuser: Fuser, rows: Sequence[TokenizedExample], config: EvaluateConfig) -> list[str]:
    """The text that a fuser writes from all candidates of each row; all rows have as many. They come best first."""
    count = len(rows[0].texts)
    ensemble = getattr(fuser, "ensemble", None)  # URG ranks and fuses in one pass, of any number
    if ensemble is not None:
        from urg.ensemble import Query

        queries = [Query(row.instruction, tuple(row.texts), row.input) for row in rows]
        options = {"num_beams": config.num_beams, "max_new_tokens": config.max_new_tokens}
        return [fused.text for fused in ensemble.rank_and_fuse_batch(queries, k=count, **options)]
    falling = np.arange(count, 0, -1, dtype=np.float64)
    with _fusing(name, fuser, count):
        return [fusion.text for fusion in fuser.fuse(rows, [falling] * len(rows))]


@contextmanager
def _fusing(name: str, fuser: Fuser, count: int) -> Iterator[None]:
    """Let a fuser of the K best take `count`, for as long as the block lasts."""
    model: Any = getattr(fuser, "model", None)
    settings = getattr(model, "settings", None)
    if not hasattr(settings, "k"):
        raise UserError(f"{name} does not say how many candidates it fuses, so its noise cannot be measured")
    model.settings = replace(settings, k=count)  # type: ignore[type-var]
    try:
        yield
    finally:
        model.settings = settings
