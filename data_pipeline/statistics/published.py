"""The real MixInstruct against its published card: do the means of the test split come out?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CARD = Path(__file__).parents[1] / "published" / "mixinstruct.yaml"
HUB_NAME = "hf:llm-blender/mix-instruct"
ORACLE = "oracle"
# The card's text lists one model less than its tables.
_MISSING_MODELS = 1
# The card gives four decimals.
_ROUNDING = 0.5e-4


def is_mixinstruct(name: object, statistics: Mapping[str, Any]) -> bool:
    """Whether a set is MixInstruct: by the name it was read under, or because it has the card's models."""
    if isinstance(name, str) and (name == HUB_NAME or name.startswith(f"{HUB_NAME}@")):
        return True
    models = {model for split in statistics["splits"].values() for model in split["models"]}
    published = set(_card()["models"])
    return len(published - models) <= _MISSING_MODELS


def compare_with_card(statistics: Mapping[str, Any], tolerance: float) -> dict[str, Any]:
    """Every mean of the card beside ours, and which differ.

    tolerance: how far one of our means may be from the card's, as a share of it, rounding aside. Ours count exact zeros
    of log-scale scores in, as the card's do (its oracle BARTScore of 0.0 shows it).
    A figure that we have not is listed under `absent`, never as a difference of 0; so are those of a label whose zeros
    preparing took out (statistics["repairs"]), since they can no longer be counted in.
    """
    card = _card()
    split = statistics["splits"].get(card["split"])
    told = {"source": card["source"], "split": card["split"], "published_rows": card["rows"], "tolerance": tolerance}
    if split is None:
        return told | {"rows": 0, "compared": [], "differing": [], "absent": [f"the {card['split']} split"]}
    lost = {label for label, count in statistics.get("repairs", {}).get("zero_scores", {}).items() if count}
    compared, absent = [], []
    for name, values in [*card["models"].items(), (ORACLE, card["oracle"])]:
        for label, published in zip(card["labels"], values, strict=True):
            ours = None if label in lost else _ours(split["labels"].get(label, {}), name)
            if ours is None:
                absent.append(f"{label} of {name}")
                continue
            differs = abs(ours - published) > tolerance * abs(published) + _ROUNDING
            entry = {"model": name, "label": label, "published": published, "ours": ours, "differs": differs}
            compared.append(entry)
    differing = [entry for entry in compared if entry["differs"]]
    return told | {"rows": split["rows"], "compared": compared, "differing": differing, "absent": absent}


def verdict(comparison: Mapping[str, Any]) -> str:
    """The comparison in a sentence."""
    compared, differing, absent = comparison["compared"], comparison["differing"], comparison["absent"]
    rows = f"{comparison['rows']:,} rows here, {comparison['published_rows']:,} published"
    if not compared:
        return f"None of the published figures can be compared ({rows}; absent: {', '.join(absent[:3])}, …)."
    agree = f"{len(compared) - len(differing)} of {len(compared)} published means agree within "
    lacking = f"; {len(absent)} could not be compared" if absent else ""
    return f"{agree}{comparison['tolerance']:.2%} ({rows}){lacking}."


def _ours(label: Mapping[str, Any], name: str) -> float | None:
    if name != ORACLE:
        return label.get("models", {}).get(name, {}).get("mean_with_zeros")  # type: ignore[no-any-return]
    # An exact zero would be the best of its row, as it is on the card, where we leave it out.
    return None if label.get("zeros_taken_as_missing") else label.get("oracle_mean")


def _card() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(CARD.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
