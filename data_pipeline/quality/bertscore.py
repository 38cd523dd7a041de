"""BERTScore F1 of a text against a reference, by the bert-score package with any encoder: a hub id or a local folder.

No rescaling and no idf weights, as LLM-Blender reports it (bert-base-multilingual-cased). Levels depend on the encoder
and its layer, so figures of two encoders cannot be compared; `describe` names both, for whoever shows a figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError
from data_pipeline.quality.model_folder import load_config, own_limit

if TYPE_CHECKING:
    from bert_score import BERTScorer

PAIRS_PER_CHUNK = 768  # bert-score keeps the embedding of every text of one call: bounds memory at some hundred MB
MAX_TOKENS = 512  # of a text, where neither tokenizer nor model names a limit
FAR = 100_000  # tokens; a limit beyond it counts as none


def bertscore(
    predictions: Sequence[str],
    references: Sequence[str],
    model: str,
    num_layers: int | None = None,
    device: str = "cpu",
    batch_size: int = 64,
    tokenless: float = 0.0,
) -> list[float]:
    """BERTScore F1 of each (prediction, reference) pair, about 0..1, higher is better. Source: Zhang et al. 2020.

    model: hub id or folder of an encoder; loaded once and kept. num_layers: the layer compared; default: the one
    that bert-score tuned for a model of that name, or else the last. A prediction that is blank or of which the
    encoder's tokenizer makes no token scores `tokenless`; a reference of which it makes none gives NaN; texts are cut
    at the encoder's limit. Raises ValueError where lengths differ or a reference is blank (such a pair has no score),
    UserError where the model cannot be loaded.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    blank = [index for index, reference in enumerate(references) if not reference.strip()]
    if blank:
        raise ValueError(f"the reference of pair {blank[0]} is blank, so it has no BERTScore; leave such pairs out")
    scorer = load_scorer(model, num_layers, device)
    # bert-score 0.3.13 crashes on an empty text with transformers 5, and gives 0.0 where there is no token, hence the
    # filter. Equal references are neighbours, so that each is encoded in one chunk only; like lengths are neighbours,
    # so that batches hold little padding.
    empty = _without_tokens([*predictions, *references], scorer)
    pairs = {pair for pair in zip(predictions, references, strict=True) if empty.isdisjoint(pair)}
    ordered = sorted(pairs, key=lambda pair: (len(pair[1]), pair[1], len(pair[0]), pair[0]))
    scores: dict[tuple[str, str], float] = {}
    for start in range(0, len(ordered), PAIRS_PER_CHUNK):
        chunk = ordered[start : start + PAIRS_PER_CHUNK]
        texts, targets = (list(side) for side in zip(*chunk, strict=True))
        f1 = scorer.score(texts, targets, batch_size=batch_size)[2]
        scores.update(zip(chunk, f1.tolist(), strict=True))
    scores.update({pair: float("nan") for pair in zip(predictions, references, strict=True) if pair[1] in empty})
    return [scores.get(pair, tokenless) for pair in zip(predictions, references, strict=True)]


def _without_tokens(texts: Iterable[str], scorer: BERTScorer) -> set[str]:
    """Those of `texts` that are blank, or that the encoder's tokenizer makes nothing of, such as a zero-width space."""
    distinct = sorted(set(texts))
    if not distinct:
        return set()
    stripped = [text.strip() for text in distinct]
    ids = scorer._tokenizer(stripped, add_special_tokens=False, verbose=False)["input_ids"]
    return {text for text, bare, own in zip(distinct, stripped, ids, strict=True) if not (bare and own)}


def describe(model: str, num_layers: int | None = None) -> str:
    """What a BERTScore is computed with, for showing beside it: encoder, layer, version of bert-score. Of the encoder
    only the config is read."""
    import bert_score

    depth = load_config(f"the BERTScore encoder {model}", model).num_hidden_layers
    layer = _layer(model, num_layers, depth)
    return f"{Path(model).name} L{layer}, no idf, not rescaled, bert-score {bert_score.__version__}"


def load_scorer(model: str, num_layers: int | None = None, device: str = "cpu") -> BERTScorer:
    """The scorer with its encoder on `device`; kept: a process loads it once. UserError where it cannot load."""
    return _load(model, num_layers, device)  # positional: the cache takes f(x) and f(a=x) for two calls


@lru_cache(maxsize=1)
def _load(model: str, num_layers: int | None, device: str) -> BERTScorer:
    from bert_score import BERTScorer

    is_folder = Path(model).expanduser().is_dir()
    source = str(Path(model).expanduser().resolve()) if is_folder else model
    if not is_folder and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise UserError(f"there is no encoder folder {model} for BERTScore; name a folder with config.json or a hub id")
    try:
        config = load_config(f"the BERTScore encoder {model}", source)
        layers = _layer(model, num_layers, config.num_hidden_layers)
        name = source if "t5" in config.model_type else _NoT5(source)
        scorer = BERTScorer(name, num_layers=layers, device=device)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the BERTScore encoder {model} cannot be loaded ({reason}); "
            "name a local folder with config.json, weights and tokenizer, or a hub id that this machine can reach"
        ) from error
    scorer._tokenizer.model_max_length = _token_limit(scorer._tokenizer, config)
    return scorer


class _NoT5(str):
    """The name of a model that is no T5, for bert-score, which takes any name or *path* that contains "t5" for one."""

    def __contains__(self, part: object) -> bool:
        return part != "t5" and super().__contains__(part)  # type: ignore[operator]


def _layer(model: str, asked: int | None, depth: int) -> int:
    """The layer to compare at: as asked, else bert-score's for a model of that name, else the last."""
    from bert_score.utils import model2layers

    layer = asked if asked is not None else model2layers.get(model, model2layers.get(Path(model).name, depth))
    if not 1 <= layer <= depth:
        raise UserError(f"BERTScore layer {layer} is not in the encoder {model}, which has layers 1 to {depth}")
    return int(layer)


def _token_limit(tokenizer: Any, config: Any) -> int:
    """Tokens that a text may have. A tokenizer without a limit says 10^30, on which bert-score raises OverflowError."""
    limit = own_limit(tokenizer, config)
    return limit if limit and limit <= FAR else MAX_TOKENS
