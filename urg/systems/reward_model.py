"""A reward model as a reranker: any sequence-classification folder, without training here.

Its score is the one that `data_pipeline.label` gives as the label `reward`: an encoder reads question and answer as a
pair, a model with a chat template reads them as a user's and an assistant's turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.quality.regression import Reward
from data_pipeline.tokenization import question_text
from urg.systems.backbone import load_model, load_plain_tokenizer
from urg.systems.folder import named_folder
from urg.systems.protocol import Ranked, Scores, Setup
from urg.systems.trained import ModelRanker, Remembered, on_device

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample

CHUNK_TOKENS = 16384


def rewards(reward: Reward, rows: Sequence[TokenizedExample]) -> list[Scores]:
    """The reward [N] of each row's candidates."""
    questions = [question_text(row.instruction, row.input) for row in rows for _ in row.texts]
    scores = np.array(reward(questions, [text for row in rows for text in row.texts]), dtype=np.float64)
    return np.split(scores, np.cumsum([len(row.texts) for row in rows])[:-1])


def reward_model(setup: Setup) -> Ranked:
    """The candidate with the highest reward."""
    folder = named_folder(setup, "reward_model")
    model = load_model("AutoModelForSequenceClassification", folder, "a sequence-classification model")
    reward = Reward(load_plain_tokenizer(folder), on_device(model.eval(), setup), CHUNK_TOKENS)
    scores = Remembered(partial(rewards, reward), "reward_model", setup.progress)
    return Ranked("reward_model", "ranker", ModelRanker(scores))
