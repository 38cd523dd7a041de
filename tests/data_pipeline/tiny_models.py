"""Tiny random metric models, saved as folders, whose tokenizer knows some words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = "the cat sat on a mat and dogs ran 3 miles to see birds near old stone bridge . 12 45".split()  # noqa: SIM905
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
VOCABULARY = {word: index for index, word in enumerate(SPECIALS + WORDS)}
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"


def save_tokenizer(folder: Path, specials: bool = True, limit: int = 64, **names: Any) -> None:
    """A tokenizer of words; with `specials`, it puts <s> and </s> around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if specials:
        inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **names}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=limit, **names).save_pretrained(folder)


def save_bart(folder: Path, seed: int = 0) -> str:
    """A sequence-to-sequence model."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(seed)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2)
    config = BartConfig(
        vocab_size=len(VOCABULARY), d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
        init_std=0.5, **sizes, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def save_gpt(folder: Path) -> str:
    """A causal language model."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5,
        bos_token_id=0, eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, specials=False)
    return str(folder)


def save_regressor(folder: Path, outputs: int = 1) -> str:
    """A BERT that gives a pair of texts `outputs` numbers."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.5, num_labels=outputs, pad_token_id=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def save_chat_reward(folder: Path, positions: int = 64) -> str:
    """A decoder that gives a conversation one number, at its last token; its tokenizer has a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=positions, initializer_range=0.5, num_labels=1, pad_token_id=None,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder, specials=False, limit=positions, chat_template=TEMPLATE, pad_token=None)
    return str(folder)
