"""What `--list` prints: the systems and metrics there are."""

from __future__ import annotations

from typing import Any

from urg.evaluation.comparison import LOWER_IS_BETTER, METRICS
from urg.evaluation.judge import JUDGE_METRICS
from urg.evaluation.oracles import GROUP
from urg.evaluation.rank_metrics import RANK_METRICS
from urg.evaluation.text_metrics import MODEL_METRICS, TEXT_METRICS
from urg.systems import FOLDERS, SYSTEMS, about


def listing() -> dict[str, Any]:
    """{"systems": [{name, about}], "metrics": [{name, needs, better}]}, in table order."""
    models = {"name": "models", "about": "Every model among the candidates, a system each under its own name."}
    ceilings = {"name": GROUP, "about": "The best candidate by each text metric and by the judge, a ceiling each."}
    named = [
        {"name": name, "about": about(build)} | ({"folder": FOLDERS[name]} if name in FOLDERS else {})
        for name, build in SYSTEMS.items()
    ]
    metrics = [{"name": name, "needs": _needs(name), "better": _better(name)} for name in (*METRICS, "corpus_bleu")]
    return {"systems": [models, *named, ceilings], "metrics": metrics}


def _needs(metric: str) -> str:
    if metric in MODEL_METRICS:
        return f"references, --{metric}_model"
    if metric in (*TEXT_METRICS, "corpus_bleu"):
        return "references"
    if metric in JUDGE_METRICS:
        return "cmp_results"
    return "labels and scores of all candidates" if metric in RANK_METRICS else "labels"


def _better(metric: str) -> str:
    return "lower" if metric in LOWER_IS_BETTER else "higher"
