"""The other rankers on the same rows (Tables 4 and 7): the code that evaluates them, frozen as ours is.

Their encoder has DeBERTa-v3's shape and random weights: sequences longest first in chunks that are small enough to pad
little, attention by SDPA, weights laid out for the machine. Some of them are timed on the encoder of our own model too,
packed by the very code that encodes for us: there the methods are compared, and nothing else.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from urg.benchmarks.clock import Timing, in_turn
from urg.benchmarks.config import SAME_ENCODER
from urg.benchmarks.ranking import DTYPES, packed_ranker
from urg.benchmarks.workload import Row, draw_rows
from urg.devices import moved
from urg.model import URG
from urg.systems.backbone import encoder_of
from urg.systems.comparison import bubble_scores, full_matrices
from urg.systems.encoder import EncoderRanker, RankerSettings, Sequences
from urg.systems.pair_ranker import PairRanker, RowIds, joined
from urg.systems.simcls import SimCLS
from urg.systems.summareranker import SummaReranker

ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "t5-small": {"hidden_size": 512, "intermediate_size": 1280, "num_hidden_layers": 8, "num_attention_heads": 8},
    "deberta-v3-base": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "deberta-v3-large": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}
"""DeBERTa-v3's sizes (He et al. 2021), one whose layers have as many parameters as T5 v1.1 small's encoder, and one for
tests."""
DEBERTA_V3: dict[str, Any] = {
    "vocab_size": 128_100,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_position_embeddings": 512,
}
"""What its config.json says beside the sizes."""
OTHERS = ("simcls", "summareranker", "pair_ranker_bubble", "pair_ranker_full")
ON_OUR_ENCODER = ("simcls", "pair_ranker_bubble", "pair_ranker_full")
"""Those that are timed on the encoder of our model too."""
_CLS, _SEP, _SOURCE, _LEFT, _RIGHT = 2, 3, 4, 5, 6
_WORDS = 16  # ids from here on are text


@dataclass(frozen=True)
class _Timed:
    """What is timed of a system."""

    call: Callable[[], object]
    rows: int
    """Rows of a call."""
    worth: float
    """Rows of the batch's mean number of tokens that they come to."""
    tokens: int
    """Tokens that a call encodes."""
    parameters: int


def measure_rankers(
    model: URG, encoder: str, batch: int, n: int, repeats: int, device: torch.device
) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows/s of every ranker, in turn with ours, in fp32 and bf16. model: ours; it stays as it is.

    All of them rank the same rows, but for PairRanker with all pairs on a CPU: there it is one row, that of the number
    of tokens nearest to the mean, and its rows/s are those of the batch by the tokens of all of its pairs.

    Returns by dtype and system: rows timed, tokens a row, seconds, spread, rows_per_s, parameters, norm (parameters in
    billions × rows/s).
    """
    rows = draw_rows(batch, n, 32_000, seed=batch)
    told = {}
    for name, dtype in DTYPES.items():
        timed = _prepared(copy.deepcopy(model).to(dtype), encoder, rows, device)
        timings = in_turn({system: own.call for system, own in timed.items()}, repeats, device, warm_up=0)
        told[name] = {system: _told(own, timings[system]) for system, own in timed.items()}
    return told


def _prepared(model: URG, encoder: str, rows: list[Row], device: torch.device) -> dict[str, _Timed]:
    """Every system, warm."""
    ours, dtype = packed_ranker(model), model.network.dtype
    ours(rows, device)
    tokens = sum(len(ids) for row in rows for ids in row.candidates())
    parameters = sum(p.numel() for p in model.parameters())
    made = {"urg": _Timed(lambda: ours(rows, device), len(rows), len(rows), tokens, parameters)}
    for systems, config, suffix in (
        (OTHERS, encoder_config(encoder), ""),
        (ON_OUR_ENCODER, model.t5.config, SAME_ENCODER),
    ):
        for system, other in frozen_rankers(systems, config, device, dtype).items():
            some, worth = _timed_rows(system, rows, device)
            call = functools.partial(RANKINGS[system], other, some)
            parameters = sum(p.numel() for p in other.parameters())
            made[system + suffix] = _Timed(call, len(some), worth, _encoded_tokens(other, call), parameters)
    return made


def _timed_rows(system: str, rows: list[Row], device: torch.device) -> tuple[list[Row], float]:
    """The rows to time, and how many rows of the mean number of tokens they come to."""
    if system != "pair_ranker_full" or device.type == "cuda":
        return rows, len(rows)
    tokens = [sum(pair_lengths(row)) for row in rows]
    mean = sum(tokens) / len(tokens)
    nearest = min(range(len(rows)), key=lambda b: abs(tokens[b] - mean))
    return [rows[nearest]], tokens[nearest] / mean


def pair_lengths(row: Row) -> list[int]:
    """Tokens of each of the N(N-1) sequences that PairRanker makes of a row's pairs."""
    ids, others = _row_ids(row), range(len(row.responses))
    return [len(ids.source) + len(ids.left[i]) + len(ids.right[j]) for i in others for j in others if i != j]


def _encoded_tokens(model: EncoderRanker, call: Callable[[], object]) -> int:
    """How many tokens the model is given in a call."""
    seen: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: seen.append(sum(inputs[0].lengths)))
    call()
    hook.remove()
    return sum(seen)


def _told(own: _Timed, timing: Timing) -> dict[str, Any]:
    speed = own.worth / timing.median
    return {
        "rows": own.rows,
        "tokens_per_row": own.tokens / own.worth,
        "seconds": timing.median,
        "spread": timing.spread,
        "rows_per_s": speed,
        "parameters": own.parameters,
        "norm": own.parameters / 1e9 * speed,
    }


def frozen_rankers(
    systems: Sequence[str], encoder: Any, device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, EncoderRanker]:
    """Rankers on `device` for inference alone. encoder: the configuration of the one that they share."""
    torch.manual_seed(0)
    shared = encoder_of(copy.deepcopy(encoder))  # the library writes into it
    made = {kind: _ranker(kind, shared).to(device, dtype) for kind in dict.fromkeys(map(_kind, systems))}
    frozen_encoder = None
    for ranker in made.values():
        ranker.frozen_encoder = frozen_encoder
        frozen_encoder = ranker.freeze().frozen_encoder
    return {system: made[_kind(system)] for system in systems}


def make_ranker(system: str, encoder: str, seed: int = 0) -> EncoderRanker:
    """A ranker with random weights in one of ENCODERS' shapes."""
    torch.manual_seed(seed)
    return _ranker(_kind(system), encoder_of(encoder_config(encoder)))


def encoder_config(shape: str) -> Any:
    """The configuration of a DeBERTa-v3 in one of ENCODERS' shapes."""
    from transformers import DebertaV2Config

    return DebertaV2Config(**DEBERTA_V3, **ENCODERS[shape])


def _kind(system: str) -> type[EncoderRanker]:
    kinds: dict[str, type[EncoderRanker]] = {"simcls": SimCLS, "summareranker": SummaReranker}
    return kinds.get(system, PairRanker)


def _ranker(kind: type[EncoderRanker], encoder: torch.nn.Module) -> EncoderRanker:
    settings = RankerSettings(source_tokens=132, candidate_tokens=132, tasks=("label",))
    return kind(encoder, _tokenizer(), settings).eval()


def _tokenizer() -> Any:
    """A tokenizer without words: the rows are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = models.WordLevel({name: i for i, name in enumerate(names.values())}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **names)


def _text(prefix: int, ids: np.ndarray) -> np.ndarray:
    """`[CLS] <prefix> x [SEP]`."""
    return np.concatenate([[_CLS, prefix], np.maximum(ids, _WORDS), [_SEP]])


@torch.inference_mode()
def _simcls(model: SimCLS, rows: Sequence[Row]) -> list[torch.Tensor]:
    """Cosines: each question and each candidate are encoded once."""
    ids = [ids for row in rows for ids in (_text(_SOURCE, row.question), *(_text(_LEFT, r) for r in row.responses))]
    vectors_CD = model(moved(Sequences.of(ids, [[0]] * len(ids)), model.device))
    return [part[1:] @ part[0] for part in vectors_CD.split([1 + len(row.responses) for row in rows])]


@torch.inference_mode()
def _summareranker(model: SummaReranker, rows: Sequence[Row]) -> torch.Tensor:
    """Logits: each candidate is encoded with its question."""
    ids = [np.concatenate([_text(_SOURCE, row.question), _text(_LEFT, r)[1:]]) for row in rows for r in row.responses]
    return model(moved(Sequences.of(ids, [[0]] * len(ids)), model.device))[0]


def _row_ids(row: Row) -> RowIds:
    source, left, right = (
        _text(_SOURCE, row.question),
        *([_text(side, ids) for ids in row.responses] for side in (_LEFT, _RIGHT)),
    )
    return RowIds(source, left, right, 1, [1] * len(left))


@torch.inference_mode()
def _compared(rank: Callable[..., Any], model: PairRanker, rows: Sequence[Row]) -> Any:
    """Pairs: each is encoded with the question. rank: all of them, or bubble sort's."""
    ids = [_row_ids(row) for row in rows]

    def compare(pairs: Sequence[Any]) -> np.ndarray:
        logits: np.ndarray = model(moved(joined(ids, pairs), model.device)).mean(dim=1).double().cpu().numpy()
        return logits

    return rank([len(row.responses) for row in rows], compare)


RANKINGS: Mapping[str, Callable[[Any, list[Row]], object]] = {
    "simcls": _simcls,
    "summareranker": _summareranker,
    "pair_ranker_bubble": lambda model, rows: _compared(bubble_scores, model, rows),
    "pair_ranker_full": lambda model, rows: _compared(full_matrices, model, rows),
}
