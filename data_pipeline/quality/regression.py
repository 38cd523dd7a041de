"""Scores of sequence-classification models: BLEURT in its PyTorch ports, and reward models, for labels and reranking.

A folder must load by transformers' AutoModelForSequenceClassification with all its weights. The BLEURT ports made as
BertForSequenceClassification (such as Elron/bleurt-base-512) do. BLEURT-20's port (lucadiliello/BLEURT-20) has an
architecture, BleurtForSequenceClassification, that transformers does not know and whose code is not run from here: it
must be converted first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.quality.batches import in_batches, padded
from data_pipeline.quality.model_folder import MetricModel, load_model, own_limit, token_limit

BLEURT_TOKENS = 512  # of reference and text, where the user names no other number
REWARD_TOKENS = 2048  # of prompt and answer, where neither tokenizer nor model has a limit (see `own_limit`)


class SequenceScorer:
    """A sequence-classification model with its tokenizer. Its score is its one output, or of two the log-odds of the
    second.

    limit, batch_tokens: tokens of a sequence, and of one forward pass with its padding.
    """

    def __init__(self, tokenizer: Any, model: Any, limit: int, batch_tokens: int) -> None:
        self.tokenizer, self._model = tokenizer, model
        self._limit, self._batch_tokens = limit, batch_tokens
        self._padding: int | None = model.config.pad_token_id

    def pairs(self, first: Sequence[str], second: Sequence[str]) -> list[float]:
        """The score of each pair (first, second); of pairs that are too long the longer text is cut, at its end."""
        return self._scores(list(first), list(second), truncation="longest_first") if first else []

    def conversations(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The score of each answer to its prompt, in the tokenizer's chat template. What is too long is cut at its
        beginning: a decoder's score is read at the end."""
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
        return in_batches(lengths, self._batch_tokens, lambda batch: self._forward(encoded, batch))

    def _forward(self, encoded: Any, batch: Sequence[int]) -> list[float]:
        import torch

        device = self._model.device
        rows = [encoded["input_ids"][i] for i in batch]
        ids_BL, mask_BL = padded(rows, self._fill(rows), device)
        more = {}
        if "token_type_ids" in encoded:
            more["token_type_ids"] = padded([encoded["token_type_ids"][i] for i in batch], 0, device)[0]
        with torch.inference_mode():
            logits_BO = self._model(input_ids=ids_BL, attention_mask=mask_BL, **more).logits.double()
        scores_B = logits_BO[:, 0] if logits_BO.shape[1] == 1 else logits_BO[:, 1] - logits_BO[:, 0]
        return scores_B.tolist()  # type: ignore[no-any-return]

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
    """BLEURT: about -2..1, higher is better. Source: Sellam et al. 2020. See above for the folders that load.

    model.max_tokens: where a pair is cut; 128 for what was published with `evaluate`'s default, bleurt-base-128.
    """

    def __init__(self, model: MetricModel) -> None:
        tokenizer, loaded = _load("bleurt", model)
        if loaded.config.num_labels != 1:
            raise UserError(
                f"The bleurt model {model.name} has {loaded.config.num_labels} outputs; name one with a single one."
            )
        limit = token_limit(tokenizer, loaded.config, model.max_tokens or BLEURT_TOKENS)
        self._scorer = SequenceScorer(tokenizer, loaded, limit, model.batch_tokens)

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """The score of each prediction against the reference beside it; the model reads (reference, prediction)."""
        return self._scorer.pairs(references, predictions)


class Reward:
    """A reward model's score of an answer to its prompt; higher is better, on a scale of the model's own.

    It reads as many tokens as the model itself takes. Raises `UserError` for one with more than two outputs.
    """

    def __init__(self, tokenizer: Any, model: Any, batch_tokens: int) -> None:
        if model.config.num_labels not in (1, 2):
            raise UserError(
                f"The reward model {model.config.name_or_path} has {model.config.num_labels} outputs; name one with a "
                "single one, or with two of which the second means better."
            )
        limit = own_limit(tokenizer, model.config) or REWARD_TOKENS
        self._scorer = SequenceScorer(tokenizer, model, limit, batch_tokens)

    @classmethod
    def load(cls, model: MetricModel) -> Reward:
        """The score by the model of a folder or hub id."""
        return cls(*_load("reward", model), model.batch_tokens)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """One score an answer: by the chat template where the tokenizer has one, else the pair (prompt, answer)."""
        template = getattr(self._scorer.tokenizer, "chat_template", None)
        return (self._scorer.conversations if template else self._scorer.pairs)(prompts, answers)


def _load(metric: str, model: MetricModel) -> tuple[Any, Any]:
    """(tokenizer, model)."""
    from transformers import AutoModelForSequenceClassification

    return load_model(metric, AutoModelForSequenceClassification, model)
