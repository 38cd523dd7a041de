"""Fusing: ours beside GenFuser and a fusion-in-decoder that encodes anew; one T5, a fixed number of
tokens, greedily and by beam search.

ours        from the states that ranking made: what fusing costs once a row is ranked
fid         the K candidates encoded again, each alone; then as ours
gen_fuser   one text of question, K candidates and request through the encoder; then as ours
ours_whole  encode, rank and fuse: all that URG does for a row

All of them encode without padding by the same frozen encoder and write by the same decoder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urg.batching import pack
from urg.benchmarks.clock import in_turn
from urg.benchmarks.ranking import DTYPES
from urg.benchmarks.workload import Row, batch_of, draw_rows
from urg.devices import moved
from urg.model import URG, select

K = 3
MODES = {"greedy": (1, ("ours", "fid", "gen_fuser", "ours_whole")), "beam_4": (4, ("ours", "gen_fuser"))}
"""How tokens are chosen: beams, and the ways to fuse that are timed so."""
_PROMPT_TOKENS = 36
"""Tokens of GenFuser's own words (`Instruction:`, `Candidate 0:`, …, the request) by Flan-T5's tokenizer."""


def measure_fusing(
    make: Callable[[], URG], rows: int, n: int, tokens: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Seconds of writing `tokens` new tokens for each of `rows` rows, by MODES in fp32 and bf16, and the share of them
    that fid writes as ours does."""
    runs = {}
    for name, dtype in DTYPES.items():
        model = make().to(device, dtype).eval()
        ways = fusings(model, draw_rows(rows, n, int(model.t5.config.vocab_size), seed=rows), device)
        for mode, (beams, wanted) in MODES.items():
            options = {"num_beams": beams, "max_new_tokens": tokens, "min_new_tokens": tokens}
            calls = {way: functools.partial(ways[way], **options) for way in wanted}
            runs[f"{mode}_{name}"] = _run(calls, repeats if beams == 1 else min(3, repeats), device)
    return {"rows": rows, "new_tokens": tokens, "runs": runs}


def _run(calls: Mapping[str, Callable[[], Tensor]], repeats: int, device: torch.device) -> dict[str, Any]:
    texts = {way: call() for way, call in calls.items()}
    timings = in_turn(calls, repeats, device, warm_up=0)
    run: dict[str, Any] = {
        "seconds": {way: timing.median for way, timing in timings.items()},
        "spread": {way: timing.spread for way, timing in timings.items()},
    }
    if "fid" in texts:
        run["fid_writes_the_same"] = float((texts["fid"] == texts["ours"])[:, 1:].float().mean())
    return run


@torch.inference_mode()
def fusings(model: URG, rows: list[Row], device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """Each way as a function of options of `generate` that returns token ids [B, T]. model: in eval mode; is frozen."""
    model.freeze()
    batch = moved(batch_of(rows), device)
    hidden_SD = model.encode(batch.tokens_S, batch.layout)
    scores_BN = model.rank(hidden_SD, batch.layout)
    selected_BN, _ = select(scores_BN, batch.layout.mask_BN, K)
    chosen = [[i for i in range(len(row.responses)) if bool(selected_BN[b, i])] for b, row in enumerate(rows)]

    @torch.inference_mode()
    def ours(**options: Any) -> Tensor:
        return model.fuse(hidden_SD, batch.layout, selected_BN, **options)

    @torch.inference_mode()
    def whole(**options: Any) -> Tensor:
        states_SD = model.encode(batch.tokens_S, batch.layout)
        chosen_BN, _ = model.choose(model.rank(states_SD, batch.layout), batch.layout, K)
        return model.fuse(states_SD, batch.layout, chosen_BN, **options)

    @torch.inference_mode()
    def encoded_anew(texts: list[list[np.ndarray]], **options: Any) -> Tensor:
        """texts: of each row, all to be fused."""
        tokens_S, layout = pack(texts)
        layout = moved(layout, device)
        states_SD = model.encode(moved(tokens_S, device), layout)
        return model.fuse(states_SD, layout, layout.mask_BN, **options)

    def fid(**options: Any) -> Tensor:
        ids = [[row.candidates()[i] for i in own] for row, own in zip(rows, chosen, strict=True)]
        return encoded_anew(ids, **options)

    def gen_fuser(**options: Any) -> Tensor:
        return encoded_anew([[one_text(row, own)] for row, own in zip(rows, chosen, strict=True)], **options)

    return {"ours": ours, "fid": fid, "gen_fuser": gen_fuser, "ours_whole": whole}


def one_text(row: Row, chosen: list[int]) -> np.ndarray:
    """GenFuser's input, its own words as arbitrary tokens."""
    words = np.full(_PROMPT_TOKENS, 5, dtype=np.int64)
    return np.concatenate([words, row.question, *(row.responses[i] for i in chosen)])
