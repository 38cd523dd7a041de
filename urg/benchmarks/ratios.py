"""The ratios that follow from the experiments. One is missing, with the reason, where its experiment was not run, and
where what was timed does not give what it is compared with.
"""

from __future__ import annotations

from typing import Any

from urg.benchmarks.config import SAME_ENCODER

NOT_RUN = "its experiment was not run"
"""Why a ratio is missing that nobody asked for."""
TOLERANCE = 1e-5
"""Largest relative difference of scores, and of all gradients together, in fp32."""

RANKED = [
    (f"rank_vs_{system.replace('pair_ranker', 'pairranker')}{same}{suffix}", dtype, system + same)
    for dtype, suffix in (("fp32", ""), ("bf16", "_bf16"))
    for same in ("", SAME_ENCODER)
    for system in ("simcls", "pair_ranker_bubble", "pair_ranker_full")
]
"""(ratio, dtype, system) of every ratio against another ranker."""
FUSED = {
    "greedy_fp32": "fuse_vs_genfuser",
    "greedy_bf16": "fuse_vs_genfuser_bf16",
    "beam_4_fp32": "fuse_vs_genfuser_beam4",
    "beam_4_bf16": "fuse_vs_genfuser_beam4_bf16",
}
"""Run of fusing → its ratio."""
RATIOS = (
    "rank_vs_naive",
    "rank_bf16_vs_naive_fp32",
    *(ratio for ratio, _, _ in RANKED),
    "peak_share_fp32",
    "peak_share_bf16",
    "rank_step_share",
    "rank_step_share_bf16",
    *FUSED.values(),
    "train_vs_naive3",
    "train_vs_naive1",
    "train_memory_vs_naive3",
    "stack_vs_bare",
    "n_exponent",
    "pairranker_n_exponent",
    "weak_scaling",
    "scaling_of_machine",
    "safety_overhead",
    "outage_step",
    "recovery_seconds",
)


def ratios(parts: dict[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """(ratios, why the others are missing) of the experiments that were run."""
    values = {key: value for name, part in parts.items() for key, value in _values(name, part).items()}
    missing = {name: NOT_RUN for name in RATIOS if name not in values}
    for name, part in parts.items():
        for key, reason in _UNEQUAL[name](part).items() if name in _UNEQUAL else ():
            missing[key] = f"not equal: {reason}"
            values.pop(key)
    return values, missing


def _unequal_rankings(part: dict[str, Any]) -> dict[str, str]:
    """Ours in fp32 has the obvious code's scores; in bf16 it is no farther from them than the obvious code in bf16."""
    limits = {"fp32": TOLERANCE, "bf16": part["same_ranking"]["obvious_bf16"]["largest_relative_difference"]}
    found: dict[str, str] = {}
    for dtype, limit in limits.items():
        difference = part["same_ranking"][f"ours_{dtype}"]["largest_relative_difference"]
        if not difference <= limit:
            reason = f"scores in {dtype} differ by up to {difference:.1e}, more than {limit:.1e}"
            names = [name for name in _values("rank", part) if (dtype == "bf16") == ("bf16" in name)]
            found |= dict.fromkeys(names, reason)
    return found


def _unequal_gradients(part: dict[str, Any]) -> dict[str, str]:
    compared = {"train_vs_naive3": "obvious_3", "train_memory_vs_naive3": "obvious_3", "train_vs_naive1": "obvious_1"}
    found = {name: part["gradient_difference"][variant] for name, variant in compared.items()}
    return {
        name: f"gradients differ by {difference:.1e}, more than {TOLERANCE:.1e}"
        for name, difference in found.items()
        if not difference <= TOLERANCE
    }


def _unequal_texts(part: dict[str, Any]) -> dict[str, str]:
    """Encoding anew changes no token in fp32; in bf16 a rounding may, and random weights are near ties."""
    same = part["runs"]["greedy_fp32"]["fid_writes_the_same"]
    reason = f"fid writes {same:.1%} of its tokens as ours does"
    return {} if same == 1 else dict.fromkeys(FUSED.values(), reason)


_UNEQUAL = {"rank": _unequal_rankings, "train": _unequal_gradients, "fuse": _unequal_texts}


def _values(experiment: str, part: dict[str, Any]) -> dict[str, float]:
    """The ratios of an experiment: above 1, ours is faster; of memory and shares, see their names."""
    if experiment == "rank":
        systems = part["runs"][0]["systems"]
        return {
            "rank_vs_naive": systems["obvious_fp32"]["seconds"] / systems["ours_fp32"]["seconds"],
            "rank_bf16_vs_naive_fp32": systems["obvious_fp32"]["seconds"] / systems["ours_bf16"]["seconds"],
            "peak_share_fp32": systems["ours_fp32"]["peak_share"],
            "peak_share_bf16": systems["ours_bf16"]["peak_share"],
            "rank_step_share": part["rank_step"]["fp32"]["share"],
            "rank_step_share_bf16": part["rank_step"]["bf16"]["share"],
        }
    if experiment == "train":
        seconds, memory = part["seconds"], part["bytes"]
        return {
            "train_vs_naive3": seconds["obvious_3"] / seconds["ours"],
            "train_vs_naive1": seconds["obvious_1"] / seconds["ours"],
            "train_memory_vs_naive3": memory["ours"]["peak"] / memory["obvious_3"]["peak"],
        }
    if experiment == "rankers":
        first = next(iter(part["batches"].values()))
        return {
            ratio: first[dtype]["urg"]["rows_per_s"] / first[dtype][system]["rows_per_s"]
            for ratio, dtype, system in RANKED
        }
    if experiment == "fuse":
        runs = {FUSED[name]: run["seconds"] for name, run in part["runs"].items()}
        return {ratio: own["gen_fuser"] / own["ours"] for ratio, own in runs.items()}
    if experiment == "stack":
        return {"stack_vs_bare": part["bare_seconds"] / part["stack_seconds"]}
    if experiment == "faults":
        return {
            "weak_scaling": part["weak_scaling"],
            "scaling_of_machine": part["scaling_of_machine"],
            "safety_overhead": part["overhead"],
            "outage_step": part["outage"]["after_seconds"] / part["outage"]["before_seconds"],
            "recovery_seconds": part["recovery"]["next_step"],
        }
    if experiment == "complexity":
        return {"n_exponent": part["n_exponent"], "pairranker_n_exponent": part["pair_ranker_full_n_exponent"]}
    return {}
