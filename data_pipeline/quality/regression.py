"""Scores of sequence-classification models with one output: BLEURT in its PyTorch ports, and reward models.

A folder must load by transformers' AutoModelForSequenceClassification with all its weights and num_labels 1. The
BLEURT ports made as BertForSequenceClassification (such as Elron/bleurt-base-512) do. BLEURT-20's port
(lucadiliello/BLEURT-20) has an architecture, BleurtForSequenceClassification, that transformers does not know and whose
code is not run from here: it must be converted first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.quality.batches import in_batches, padded
from data_pipeline.quality.model_folder import MetricModel, load_model, token_limit

BLEURT_TOKENS = 512
REWARD_TOKENS = 2048


class PairScorer:
    """A sequence-classification model with one output. `UserError` where it cannot load or has another number."""

    def __init__(self, metric: str, model: MetricModel, max_tokens: int) -> None:
        from transformers import AutoModelForSequenceClassification

        self.tokenizer, self._model = load_model(metric, AutoModelForSequenceClassification, model)
        config = self._model.config
        if config.num_labels != 1:
            raise UserError(
                f"The {metric} model {model.name} has {config.num_labels} outputs; name one with a single one."
            )
        self._settings = model
        self._limit = token_limit(self.tokenizer, config, max_tokens)
        self._padding: int | None = config.pad_token_id

    def pairs(self, first: Sequence[str], second: Sequence[str]) -> list[float]:
        """The output for each pair (first, second); of pairs that are too long the longer text is cut."""
        return self._scores(list(first), list(second), truncation="longest_first") if first else []

    def conversations(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The output for each answer to its prompt, in the tokenizer's chat template; cut at the beginning."""
        turns = ("user", "assistant")
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": role, "content": text} for role, text in zip(turns, pair, strict=True)], tokenize=False
            )
            for pair in zip(prompts, answers, strict=True)
        ]
        self.tokenizer.truncation_side = "left"
        return self._scores(texts, add_special_tokens=False, truncation=True) if texts else []

    def _scores(self, *texts: list[str], **options: Any) -> list[float]:
        encoded = self.tokenizer(*texts, max_length=self._limit, **options)
        lengths = [len(row) for row in encoded["input_ids"]]
        return in_batches(lengths, self._settings.batch_tokens, lambda batch: self._forward(encoded, batch))

    def _forward(self, encoded: Any, batch: Sequence[int]) -> list[float]:
        import torch

        device = self._settings.device
        rows = [encoded["input_ids"][i] for i in batch]
        ids_BL, mask_BL = padded(rows, self._fill(rows), device)
        more = {}
        if "token_type_ids" in encoded:
            more["token_type_ids"] = padded([encoded["token_type_ids"][i] for i in batch], 0, device)[0]
        with torch.inference_mode():
            logits_B1 = self._model(input_ids=ids_BL, attention_mask=mask_BL, **more).logits
        return logits_B1[:, 0].float().tolist()  # type: ignore[no-any-return]

    def _fill(self, rows: Sequence[Sequence[int]]) -> int:
        """What pads a batch: the model's own padding token, else one that is not in it.

        Decoders read the score at the last token that is no padding: padding by eos would make them skip a real one.
        """
        if self._padding is not None:
            return self._padding
        used = {token for row in rows for token in row}
        fill = next((token for token in range(self._model.config.vocab_size) if token not in used), 0)
        self._model.config.pad_token_id = fill
        return fill


class Bleurt:
    """BLEURT: about -2..1, higher is better. Source: Sellam et al. 2020. See above for the folders that load."""

    def __init__(self, model: MetricModel) -> None:
        self._scorer = PairScorer("bleurt", model, BLEURT_TOKENS)

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """The score of each prediction against the reference beside it; the model reads (reference, prediction)."""
        return self._scorer.pairs(references, predictions)


class Reward:
    """A reward model's score of an answer to its prompt; higher is better, on a scale of the model's own."""

    def __init__(self, model: MetricModel) -> None:
        self._scorer = PairScorer("reward", model, REWARD_TOKENS)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """One score an answer: by the chat template where the tokenizer has one, else the pair (prompt, answer)."""
        template = getattr(self._scorer.tokenizer, "chat_template", None)
        return (self._scorer.conversations if template else self._scorer.pairs)(prompts, answers)
