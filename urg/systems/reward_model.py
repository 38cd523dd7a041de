"""A reward model as a reranker: any sequence-classification folder, without training here.

An encoder reads question and answer as a pair; a model with a chat template reads them as a user's and an assistant's
turn. The score is its one logit, or with two labels the log-odds of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.tokenization import question_text
from urg.devices import moved
from urg.layout import plan_chunks
from urg.systems.backbone import load_model, load_plain_tokenizer
from urg.systems.encoder import position_limit
from urg.systems.folder import named_folder
from urg.systems.protocol import Ranked, Scores, Setup
from urg.systems.trained import ModelRanker, Remembered, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data_pipeline.shards import TokenizedExample

MAX_TOKENS = 2048  # of question and answer, where the model itself names no limit
CHUNK_TOKENS = 16384


class RewardScorer:
    """A sequence-classification model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, chunk_tokens: int = CHUNK_TOKENS) -> None:
        if model.config.num_labels not in (1, 2):
            raise UserError(
                f"the reward model has {model.config.num_labels} labels: name one with a single score, or with two "
                "labels of which the second means better."
            )
        self.model, self.tokenizer, self.chunk_tokens = model.eval(), tokenizer, chunk_tokens
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        model.config.pad_token_id = tokenizer.pad_token_id  # a decoder finds its last real token by it
        self.limit = min(position_limit(model), MAX_TOKENS)

    def scores(self, rows: Sequence[TokenizedExample]) -> list[Scores]:
        """The reward [N] of each row's candidates."""
        encoded = [self._encode(row, text) for row in rows for text in row.texts]
        rewards = torch.zeros(len(encoded), dtype=torch.float64)
        for _, members in plan_chunks([len(one["input_ids"]) for one in encoded], self.chunk_tokens):
            rewards[members] = self._chunk([encoded[m] for m in members])
        return [part.numpy() for part in rewards.split([len(row.texts) for row in rows])]

    def _encode(self, row: TokenizedExample, text: str) -> dict[str, list[int]]:
        question = question_text(row.instruction, row.input)
        options: dict[str, Any] = {"truncation": True, "max_length": self.limit, "verbose": False}
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            shown = self.tokenizer.apply_chat_template(turns, tokenize=False)
            return dict(self.tokenizer(shown, add_special_tokens=False, **options))
        return dict(self.tokenizer(question, text, **options))

    def _chunk(self, encoded: Sequence[dict[str, list[int]]]) -> torch.Tensor:
        device = next(self.model.parameters()).device
        padded = self.tokenizer.pad(list(encoded), return_tensors="pt")
        logits = self.model(**{name: moved(ids_CL, device) for name, ids_CL in padded.items()}).logits.double().cpu()
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def reward_model(setup: Setup) -> Ranked:
    """The candidate with the highest reward."""
    folder = named_folder(setup, "reward_model")
    model = load_model("AutoModelForSequenceClassification", folder, "a sequence-classification model")
    scorer = RewardScorer(on_device(model, setup), load_plain_tokenizer(folder))
    return Ranked("reward_model", "ranker", ModelRanker(Remembered(scorer.scores, "reward_model", setup.progress)))
