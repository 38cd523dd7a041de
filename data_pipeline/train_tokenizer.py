"""Train a small T5-style tokenizer on text: `python -m data_pipeline.train_tokenizer --input GLOB --output DIR`.

Byte-level BPE: any text survives the round trip, nothing is ever `<unk>`. `<pad>` is 0, `</s>` 1, `<unk>` 2, as T5 has
them, then `<question>` and `<response>`. Digits stand singly, so that numbers can be copied digit by digit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.cli import run_command
from data_pipeline.config import TrainTokenizerConfig
from data_pipeline.errors import RowError, UserError
from data_pipeline.paths import absolute
from data_pipeline.tokenization import SPECIAL_TOKENS, question_text, write_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTROL_TOKENS = ("<pad>", "</s>", "<unk>", *SPECIAL_TOKENS)
MODEL_MAX_LENGTH = 512
_BYTES = 256
# A longer piece is a whole phrase of the corpus: it wastes vocabulary and hides the words from the model.
_LONGEST_PIECE = 16


def main(config: TrainTokenizerConfig) -> None:
    """Train a tokenizer on questions, answers and references, and save it as a Hugging Face folder."""
    from data_pipeline.conversion import stream_lines
    from data_pipeline.sources import list_source

    lines = (line for file in list_source(config.input) for line in stream_lines(file))
    tokenizer = train_tokenizer(row_texts(lines), config.vocab_size)
    save_tokenizer(tokenizer, Path(config.output))
    print(f"tokenizer: {len(tokenizer)} pieces in {absolute(config.output)}")


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` pieces; the same texts give the same tokenizer.

    Raises `UserError` where there is no text or `vocab_size` cannot hold all bytes.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = len(CONTROL_TOKENS) + _BYTES
    if vocab_size < smallest:
        raise UserError(f"vocab_size is {vocab_size}; give at least {smallest}, which the bytes alone need.")
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_LONGEST_PIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_not_empty(texts), trainer)
    eos = ("</s>", CONTROL_TOKENS.index("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[eos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save as a Hugging Face folder, with `tokenizer.json` written compactly (a third of its indented size)."""
    try:
        write_tokenizer(tokenizer, folder)
        rules = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        staged = folder / "tokenizer.json.staged"
        staged.write_text(json.dumps(rules, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
        os.replace(staged, folder / "tokenizer.json")
    except OSError as error:
        raise UserError(
            f"Cannot write the tokenizer to {folder} ({error.strerror}); name a folder that can be written."
        ) from error


def row_texts(lines: Iterable[bytes], accept: Callable[[str], bool] = lambda row_id: True) -> Iterator[str]:
    """Question, candidates and reference of each readable row whose id `accept` takes, in order."""
    from data_pipeline.cleaning import parse_line
    from data_pipeline.schema import parse_row

    for line in lines:
        try:
            example = parse_row(parse_line(line))
        except RowError:
            continue
        if not accept(example.id):
            continue
        yield question_text(example.instruction, example.input)
        yield from (candidate.text for candidate in example.candidates)
        yield example.output


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    """The texts themselves; `UserError` at the end where all were empty."""
    found = False
    for text in texts:
        if text:
            found = True
            yield text
    if not found:
        raise UserError("There is no text to train a tokenizer on; give files with at least one valid row.")


if __name__ == "__main__":
    run_command(main, TrainTokenizerConfig)
