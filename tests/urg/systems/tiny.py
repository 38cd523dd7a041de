"""Tiny random models of real families with real tokenizers, made in memory, for the tests of systems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data_pipeline.sample import BASE_MODEL
from data_pipeline.shards import TokenizedExample
from data_pipeline.tokenization import load_tokenizer
from urg.model import URG, Settings
from urg.systems.backbone import encoder_of
from urg.systems.encoder import EncoderRanker, RankerSettings
from urg.systems.gen_fuser import FuserSettings, GenFuser

Ranker = TypeVar("Ranker", bound=EncoderRanker)
SOURCE, CANDIDATE = 12, 9  # tokens: short enough that both limits cut some texts of ROWS
WORDS = [*"abcdefgh", "one", "two", "three", "four", "five", "what", "is", "the", "best", "to", "this", "red", "green"]
WORDS += ["blue"]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NO_TOKENS = np.zeros(0, dtype=np.int32)


def row(
    row_id: str,
    texts: Sequence[str],
    output: str = "",
    instruction: str = "what is the best",
    **scores: Sequence[float],
) -> TokenizedExample:
    """An example without tokens: these systems make their own."""
    arrays = {name: np.array(values, dtype=np.float64) for name, values in scores.items()}
    names, empty = tuple("abcdefghijkl"[: len(texts)]), tuple(NO_TOKENS for _ in texts)
    return TokenizedExample(
        row_id, instruction, "to this", output, names, tuple(texts), arrays, None, NO_TOKENS, empty, NO_TOKENS
    )


NAN = float("nan")
ROWS = [
    row("1", ["red green", "blue", "one two three four five", "a b"], "red green blue", quality=[0.2, 0.9, 0.5, 0.9]),
    row("2", ["d e f g h"], "d", quality=[0.3]),
    row("3", ["one", "two [SEP] <|candidate1|> a", "one"], quality=[0.1, NAN, 0.1]),
    row("4", ["", "five " * 40], "five", quality=[0.0, 1.0]),
]


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """Words, lower-cased, with [CLS] and [SEP] around each text."""
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def config(family: str, vocab_size: int, **changes: Any) -> Any:
    """The configuration of a tiny encoder: bert, roberta, deberta-v2 (v3's options) or t5."""
    from transformers import BertConfig, DebertaV2Config, RobertaConfig, T5Config

    if family == "t5":
        shape = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 3}
        return T5Config(vocab_size=vocab_size, feed_forward_proj="gated-gelu", pad_token_id=0, **shape)
    common = {"vocab_size": vocab_size, "pad_token_id": 0, "max_position_embeddings": 128, **SHAPE, **changes}
    if family == "bert":
        return BertConfig(**common)
    if family == "roberta":
        return RobertaConfig(**common)
    v3 = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    v3 |= {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0}
    return DebertaV2Config(**common, **v3)


def roughen(module: torch.nn.Module) -> None:
    """Away from the initial state, where states hardly depend on the text."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)


def make_ranker(kind: type[Ranker], family: str = "bert", **settings: Any) -> Ranker:
    """A ranker with rough weights that reads a few tokens. settings: of RankerSettings, where they differ."""
    tokenizer = bert_tokenizer()
    given: dict[str, Any] = {"source_tokens": SOURCE, "candidate_tokens": CANDIDATE, "tasks": ("quality",)} | settings
    torch.manual_seed(0)
    model = kind(encoder_of(config(family, len(tokenizer))), tokenizer, RankerSettings(**given)).eval()
    roughen(model)
    return model


T5_SHAPE = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 1, "num_heads": 2}


def save_fuser(folder: Path) -> Path:
    """Write the folder of a GenFuser with random weights, of two candidates."""
    tokenizer = load_tokenizer(BASE_MODEL)
    t5 = URG.from_scratch(len(tokenizer), Settings(), **T5_SHAPE).t5
    model = GenFuser(t5, tokenizer, FuserSettings(k=2))
    model.save_pretrained(folder, {name: p.detach() for name, p in model.named_parameters()}, steps=1)
    return folder


def save(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a model's folder."""
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder
