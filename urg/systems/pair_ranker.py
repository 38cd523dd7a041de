"""PairRanker: encodes input and two candidates together, and says which one is better. Source: Jiang et al. 2023.

The folder has the layout of `llm-blender/PairRM-hf` (`pretrained_model.*`, `head_layer.*`), whose weights load too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.errors import UserError
from data_pipeline.tokenization import question_text
from urg.devices import moved
from urg.systems.comparison import AGGREGATIONS, Pair, bubble_scores, full_matrices
from urg.systems.encoder import EncoderRanker, RankerSettings, Sequences
from urg.systems.folder import SYSTEM_FILE, named_folder
from urg.systems.needs import holds_pairrm
from urg.systems.prefixed import FIRST, SECOND, SOURCE, Ids
from urg.systems.protocol import FusedBy, Ranked, Scores, Setup
from urg.systems.trained import ModelRanker, Remembered, load_ranker, on_device, shared

if TYPE_CHECKING:
    from numpy.random import Generator
    from transformers import PreTrainedTokenizerBase

    from data_pipeline.shards import TokenizedExample


@dataclass(frozen=True)
class Pairs:
    """Pairs of candidates of a micro-batch, and which side is better."""

    sequences: Sequences
    sign_CT: Tensor
    """fp32 [C, T]: 1 where the left is better by a task's score, -1 where the right is, 0 where neither or unknown."""
    weight_CT: Tensor
    """fp32 [C, T]: so that the sum over a row's pairs is their mean; 0 where the sign is."""


@dataclass(frozen=True)
class RowIds:
    """The token ids of a row's texts, encoded once for all of its pairs."""

    source: Ids
    left: list[Ids]
    """The candidates behind <|candidate1|>."""
    right: list[Ids]
    """The candidates behind <|candidate2|>."""
    source_place: int
    """Where the input's prefix stands."""
    places: list[int]
    """Where the candidates' prefixes stand, on either side."""


class PairRanker(EncoderRanker):
    """Encoder and head."""

    system: ClassVar[str] = "pair_ranker"
    weights: ClassVar[dict[str, float]] = {"pairs": 1.0}

    def __init__(self, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: RankerSettings) -> None:
        super().__init__(encoder, tokenizer, settings)
        self.head_layer = nn.Sequential(
            nn.Dropout(settings.dropout),
            nn.Linear(2 * self.width, self.width),
            nn.Tanh(),
            nn.Dropout(settings.dropout),
            nn.Linear(self.width, len(settings.tasks)),
        )

    @property
    def longest_sequence(self) -> int:
        """Input and two candidates."""
        return self.settings.source_tokens + 2 * self.settings.candidate_tokens

    def forward(self, sequences: Sequences) -> Tensor:
        """fp32 logits [C, T]: that the left candidate is better than the right one."""
        source_CD, left_CD, right_CD = self.states(sequences).unbind(dim=1)
        left_CT, right_CT = (self.head_layer(torch.cat((source_CD, side), dim=-1)) for side in (left_CD, right_CD))
        return (left_CT - right_CT).float()

    def training_batch(self, rows: Sequence[TokenizedExample], draws: Sequence[Generator], fillers: int) -> Pairs:
        """Some pairs of each row at random. A batch without any gets one that weighs nothing."""
        pairs: list[Pair] = []
        signs, weights = [], []
        for b, (row, draw) in enumerate(zip(rows, draws, strict=True)):
            quality_NT = np.stack([row.scores[task] for task in self.settings.tasks], axis=1)
            drawn = draw_pairs(row.texts, quality_NT, self.settings.pairs, draw)
            left, right = np.array(drawn, dtype=np.int64).reshape(-1, 2).T
            told_apart_PT = np.sign(np.nan_to_num(quality_NT[left] - quality_NT[right]))
            weight = float(b < len(rows) - fillers) / max(1, np.abs(told_apart_PT).sum())
            pairs += [(b, i, j) for i, j in drawn]
            signs.append(told_apart_PT)
            weights.append(weight * np.abs(told_apart_PT))
        if not pairs:
            nothing = torch.zeros((1, len(self.settings.tasks)))
            return Pairs(self._sequences(rows, [(0, 0, 0)]), nothing, nothing)
        sign_CT, weight_CT = (torch.from_numpy(np.concatenate(part).astype(np.float32)) for part in (signs, weights))
        return Pairs(self._sequences(rows, pairs), sign_CT, weight_CT)

    def terms(self, output: Tensor, batch: Pairs) -> dict[str, Tensor]:
        """-log σ of the difference, signed by which side is better."""
        return {"pairs": (-F.logsigmoid(output * batch.sign_CT) * batch.weight_CT).sum()}

    def scores(self, rows: Sequence[TokenizedExample]) -> list[Scores]:
        """Scores by the settings' inference and aggregation."""
        if self.settings.inference == "bubble":
            return self.bubble(rows)
        return [AGGREGATIONS[self.settings.aggregation](matrix) for matrix in self.matrices(rows)]

    def matrices(self, rows: Sequence[TokenizedExample]) -> list[np.ndarray]:
        """M [N, N] of each row: N(N-1) passes."""
        return full_matrices([len(row.texts) for row in rows], self._comparing(rows))

    def bubble(self, rows: Sequence[TokenizedExample]) -> list[Scores]:
        """Places after one run of bubble sort: 2(N-1) passes."""
        return bubble_scores([len(row.texts) for row in rows], self._comparing(rows))

    def _comparing(self, rows: Sequence[TokenizedExample]) -> Any:
        """A function from pairs to the mean logit over the tasks; the rows' texts are encoded once."""
        ids = [self._row_ids(row) for row in rows]

        def compare(pairs: Sequence[Pair]) -> np.ndarray:
            sequences = moved(joined(ids, pairs), self.device)
            return self(sequences).mean(dim=1).double().cpu().numpy()  # type: ignore[no-any-return]

        return compare

    def _sequences(self, rows: Sequence[TokenizedExample], pairs: Sequence[Pair]) -> Sequences:
        return joined([self._row_ids(row) for row in rows], pairs)

    def _row_ids(self, row: TokenizedExample) -> RowIds:
        own, texts = self.settings, self.texts
        (source,) = texts.encode(SOURCE, [question_text(row.instruction, row.input)], own.source_tokens)
        room = own.candidate_tokens
        if own.fills_up:
            room = (self.longest_sequence - len(source)) // 2
        left = texts.encode(FIRST, row.texts, room)
        right = [texts.renamed(FIRST, ids, SECOND) for ids in left]
        return RowIds(source, left, right, texts.place(SOURCE, source), [texts.place(FIRST, ids) for ids in left])


def joined(ids: Sequence[RowIds], pairs: Sequence[Pair]) -> Sequences:
    """`[CLS] <|source|> x [SEP] [CLS] <|candidate1|> y_i [SEP] [CLS] <|candidate2|> y_j [SEP]`, marked at the three."""
    joined, marks = [], []
    for row, i, j in pairs:
        own = ids[row]
        after = len(own.source), len(own.source) + len(own.left[i])
        joined.append(np.concatenate([own.source, own.left[i], own.right[j]]))
        marks.append([own.source_place, after[0] + own.places[i], after[1] + own.places[j]])
    return Sequences.of(joined, marks)


def draw_pairs(texts: Sequence[str], quality_NT: np.ndarray, count: int, draw: Generator) -> list[tuple[int, int]]:
    """At most `count` different pairs (left, right) of candidates at random, each on a random side.

    Of equal texts only the first takes part, and a pair teaches something only if some task tells the two apart.
    """
    first = [i for i, text in enumerate(texts) if text not in texts[:i]]
    usable = [(i, j) for i, j in combinations(first, 2) if (np.abs(quality_NT[i] - quality_NT[j]) > 0).any()]
    chosen = [usable[p] for p in draw.permutation(len(usable))[:count]]
    flipped = draw.random(len(chosen)) < 0.5
    return [(j, i) if flip else (i, j) for (i, j), flip in zip(chosen, flipped, strict=True)]


def load_pair_ranker(folder: str | Path) -> PairRanker:
    """A PairRanker that we trained, or a folder in the layout of `llm-blender/PairRM-hf`. Raises UserError."""
    import json

    path = Path(folder).expanduser()
    if (path / SYSTEM_FILE).is_file() or not holds_pairrm(path):
        return load_ranker(PairRanker, path)
    stored = json.loads((path / "config.json").read_text(encoding="utf-8"))
    # The model card's limits. Its head gives one output a task, and the scores have no names there.
    tasks = tuple(f"task{i}" for i in range(int(stored.get("n_tasks", 1))))
    settings = RankerSettings(source_tokens=1224, candidate_tokens=412, fills_up=True, tasks=tasks)
    model = load_ranker(PairRanker, path, settings)
    for prefix, key in ((SOURCE, "source_prefix_id"), (FIRST, "cand1_prefix_id"), (SECOND, "cand2_prefix_id")):
        if stored.get(key) != model.texts.prefix_ids[prefix]:
            raise UserError(
                f"{path}: config.json has {key} {stored.get(key)} and the tokenizer {model.texts.prefix_ids[prefix]} "
                f"for {prefix}: copy or download the folder again."
            )
    return model


@dataclass(frozen=True)
class Pairwise:
    """Ranks by all ordered pairs of a row, aggregated."""

    matrices: Remembered[np.ndarray]
    aggregation: str

    def rank(self, rows: Sequence[TokenizedExample]) -> list[Scores | None]:
        """The aggregated comparisons."""
        return [AGGREGATIONS[self.aggregation](matrix) for matrix in self.matrices.of(rows)]


def pair_ranker(setup: Setup) -> Ranked:
    """PairRanker's top candidate by all pairs and their mean logits."""
    return Ranked("pair_ranker", "ranker", _pairwise(setup, "max_logits"))


def pair_ranker_wins(setup: Setup) -> Ranked:
    """PairRanker's top candidate by all pairs and their wins."""
    return Ranked("pair_ranker_wins", "ranker", _pairwise(setup, "max_wins"))


def pair_ranker_bubble(setup: Setup) -> Ranked:
    """PairRanker's top candidate by one run of bubble sort, which gives a winner and no ranking."""
    scores = Remembered(_model(setup).bubble, "pair_ranker bubbles", setup.progress)
    return Ranked("pair_ranker_bubble", "ranker", ModelRanker(scores), winner_only=True)


def llm_blender(setup: Setup) -> FusedBy:
    """LLM-Blender: PairRanker's best candidates, fused by GenFuser."""
    from urg.systems.gen_fuser import shared_fuser

    return FusedBy("llm_blender", ranker=_pairwise(setup, "max_logits"), fuser=shared_fuser(setup))


def _model(setup: Setup) -> PairRanker:
    def load() -> PairRanker:
        return on_device(load_pair_ranker(named_folder(setup, PairRanker.system)), setup)  # type: ignore[no-any-return]

    return shared(setup, "pair_ranker model", load)


def _pairwise(setup: Setup, aggregation: str) -> Pairwise:
    def remembered() -> Remembered[np.ndarray]:
        return Remembered(_model(setup).matrices, "pair_ranker compares", setup.progress)

    return Pairwise(shared(setup, "pair_ranker matrices", remembered), aggregation)
