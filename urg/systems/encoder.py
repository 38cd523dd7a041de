"""What PairRanker, SimCLS and SummaReranker share: an encoder, and the states of its packed sequences.

Letters: C sequences, S their tokens packed end to end, P marked places of a sequence, D width, T tasks (labels that are
learnt). Sequences are encoded as URG encodes candidates: by a T5 on a CPU without any padding, by others longest first
in chunks of a token budget, so that little padding is computed. Attention is SDPA where the encoder has it, and in
inference for DeBERTa, which has it not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from data_pipeline.errors import UserError
from data_pipeline.quality.model_folder import positions
from urg.devices import moved
from urg.encoder import computed_tokens, encode_packed
from urg.frozen_encoder import CHUNK_TOKENS, FrozenEncoder, freeze_linears
from urg.layout import plan_chunks
from urg.model_folder import seal
from urg.systems.deberta import use_sdpa
from urg.systems.folder import SYSTEM_FILE, write_system
from urg.systems.prefixed import Ids, PrefixedTexts

if TYPE_CHECKING:
    from numpy.random import Generator
    from transformers import PreTrainedTokenizerBase

    from data_pipeline.shards import TokenizedExample
    from urg.systems.protocol import Scores

ROWS_PER_CALL = 16
PADDED_TOKENS = 1024
"""Most tokens, padding counted, of sequences that are padded and encoded at once in inference on a CPU: fewer sequences
are of more equal lengths. (Of eight rows of MixInstruct's lengths 3,072 tokens pad 36 %, 1,024 pad 16 %.)"""
Ranker = TypeVar("Ranker", bound="EncoderRanker")


@dataclass(frozen=True)
class RankerSettings:
    """What a ranker's folder says beyond its weights: stored in system.json."""

    source_tokens: int = 128
    """Tokens kept of instruction and input, special tokens counted."""
    candidate_tokens: int = 128
    """Tokens kept of one candidate, special tokens counted; see `fills_up`."""
    fills_up: bool = False
    """PairRanker: what a short input leaves is the candidates'; else each keeps to its own limit."""
    tasks: tuple[str, ...] = ()
    """The scores that were learnt, an output of the head each."""
    pooling: str = "first"
    """`first` or `mean`: what stands for a text as a whole."""
    dropout: float = 0.05
    """Dropout rate of the head in training."""
    inference: str = "full"
    """PairRanker: `full` or `bubble`."""
    aggregation: str = "max_logits"
    """PairRanker: `max_logits` or `max_wins`."""
    pairs: int = 5
    """PairRanker: pairs a row and step in training."""
    generated_data: bool = False
    """Whether it was trained on generated data."""
    steps: int = 0
    """Optimizer steps that it was trained for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))  # JSON has lists


@dataclass(frozen=True)
class Sequences:
    """Sequences of tokens, packed."""

    ids_S: Tensor
    """int64 [S]."""
    lengths: tuple[int, ...]
    """Tokens of each of the C sequences."""
    marks_CP: Tensor
    """int64 [C, P]: the places in each sequence whose states are wanted."""

    @classmethod
    def of(cls, ids: Sequence[Ids], marks: Sequence[Sequence[int]]) -> Sequences:
        """Pack sequences. marks: as many places for each."""
        packed = torch.from_numpy(np.concatenate(ids).astype(np.int64))
        return cls(packed, tuple(len(row) for row in ids), torch.tensor(marks, dtype=torch.int64))


class RankerBatch(Protocol):
    """Sequences to encode, and what a ranker's losses need beside their states."""

    @property
    def sequences(self) -> Sequences:
        """What goes through the module."""
        ...


class EncoderRanker(nn.Module):
    """An encoder with a head. Subclasses say what the sequences are, what the head does, and how it learns."""

    system: ClassVar[str]
    """Its name in SYSTEMS and in system.json."""
    weights: ClassVar[dict[str, float]]
    """The weight of each loss term."""
    pretrained_model: Any

    def __init__(self, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: RankerSettings) -> None:
        super().__init__()
        self.pretrained_model = encoder
        self.texts = PrefixedTexts(tokenizer)
        self.settings = settings
        self.chunk_tokens = 16384
        self.frozen_encoder: Callable[[Tensor, list[int]], Tensor] | None = None
        grow_embedding(encoder, len(tokenizer))
        longest, limit = self.longest_sequence, position_limit(encoder)
        if longest > limit:
            raise UserError(
                f"{self.system} reads sequences of up to {longest} tokens and its encoder takes {limit}: lower "
                "ranker.source_tokens or ranker.candidate_tokens, or name another encoder by model.base."
            )

    @property
    def width(self) -> int:
        """D, the width of the encoder's states."""
        return int(self.pretrained_model.config.hidden_size)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that the settings allow."""
        return self.settings.source_tokens + self.settings.candidate_tokens

    def freeze(self: Ranker) -> Ranker:
        """For inference alone from here on, as `URG.freeze`: no dropout, SDPA, and on a CPU weights that are laid out
        for the machine and chunks that stay in its caches.

        Changes to the weights after this call are not seen. A ranker that shares the encoder of a frozen one is given
        its `frozen_encoder` before.
        """
        self.eval().requires_grad_(False)
        use_sdpa(self)
        if self.device.type == "cpu":
            is_packed = self._is_packed(self.device)
            self.chunk_tokens = min(self.chunk_tokens, CHUNK_TOKENS if is_packed else PADDED_TOKENS)
            if is_packed and self.frozen_encoder is None:
                self.frozen_encoder = FrozenEncoder(self.pretrained_model, self.chunk_tokens)
            freeze_linears(self)
        return self

    def states(self, sequences: Sequences) -> Tensor:
        """The encoder's states at the marked places [C, P, D]; with pooling `mean`, the mean state [C, 1, D]."""
        starts = torch.tensor([0, *sequences.lengths]).cumsum(0)
        if self._is_packed(sequences.ids_S.device):
            return self._packed_states(sequences, starts)
        limit, chunks, order = position_limit(self.pretrained_model), [], []
        for padded, members in plan_chunks(list(sequences.lengths), self.chunk_tokens):
            length_C1 = torch.tensor([[sequences.lengths[i]] for i in members])
            position_L = torch.arange(min(padded, limit))
            mask_CL = position_L < length_C1
            place_CL = (starts[torch.tensor(members)][:, None] + position_L).masked_fill(~mask_CL, 0)
            chunks.append(self._chunk(sequences, place_CL, mask_CL, members))
            order += members
        return torch.cat(chunks)[moved(torch.tensor(order).argsort(), sequences.ids_S.device)]

    def _packed_states(self, sequences: Sequences, starts: Tensor) -> Tensor:
        lengths = list(sequences.lengths)
        if self.frozen_encoder is None:
            states_SD = encode_packed(self.pretrained_model, sequences.ids_S, lengths, self.chunk_tokens)
        else:
            states_SD = self.frozen_encoder(sequences.ids_S, lengths).to(self.pretrained_model.dtype)
        if self.settings.pooling == "mean":
            parts = states_SD.float().split(lengths)
            return torch.stack([part.mean(0, keepdim=True) for part in parts]).to(states_SD.dtype)
        return states_SD[starts[:-1, None] + sequences.marks_CP]

    def _chunk(self, sequences: Sequences, place_CL: Tensor, mask_CL: Tensor, members: list[int]) -> Tensor:
        device = sequences.ids_S.device
        padded, mask_CL, place_CL = not bool(mask_CL.all()), moved(mask_CL, device), moved(place_CL, device)
        # The pad id, and not just a mask: RoBERTa counts positions by it.
        ids_CL = sequences.ids_S[place_CL].masked_fill(~mask_CL, self.texts.pad_id)
        mask = mask_CL.long() if padded else None
        states_CLD = self.pretrained_model(input_ids=ids_CL, attention_mask=mask).last_hidden_state
        if self.settings.pooling == "mean":
            real_CL1 = mask_CL.unsqueeze(2)
            mean_C1D = (states_CLD.float() * real_CL1).sum(1, keepdim=True) / real_CL1.sum(1, keepdim=True)
            return mean_C1D.to(states_CLD.dtype)
        marks_CP = sequences.marks_CP[moved(torch.tensor(members), device)]
        return states_CLD[torch.arange(len(members), device=device)[:, None], marks_CP]

    def training_batch(self, rows: Sequence[TokenizedExample], draws: Sequence[Generator], fillers: int) -> RankerBatch:
        """What a micro-batch trains on. draws: a generator a row. The last `fillers` rows weigh nothing."""
        raise NotImplementedError

    def terms(self, output: Any, batch: Any) -> dict[str, Tensor]:
        """Sums over the batch's rows of each loss term; `output` is what `forward(batch.sequences)` gave."""
        raise NotImplementedError

    def scores(self, rows: Sequence[TokenizedExample]) -> list[Scores]:
        """The score [N] of each row's candidates."""
        raise NotImplementedError

    def tokens(self, sequences: Sequences) -> tuple[int, int]:
        """(real tokens, tokens computed with padding)."""
        lengths, packed = list(sequences.lengths), self._is_packed(sequences.ids_S.device)
        return sum(lengths), computed_tokens(lengths, self.chunk_tokens, packed)

    def _is_packed(self, device: torch.device) -> bool:
        """Whether sequences are encoded without padding: T5's encoder on a CPU, by the code that URG has for it."""
        return device.type == "cpu" and self.pretrained_model.config.model_type in ("t5", "mt5")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write weights (safetensors), the encoder's config.json, the tokenizer, system.json and SHA256SUMS."""
        from safetensors.torch import save_file

        weights = self.state_dict() if state_dict is None else state_dict
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, Path(folder) / "model.safetensors")
        self.pretrained_model.config.save_pretrained(str(folder))
        self.texts.tokenizer.save_pretrained(str(folder))
        write_system(Path(folder), self.system, asdict(self.settings))
        seal(Path(folder), like=SYSTEM_FILE)


def grow_embedding(encoder: Any, tokens: int) -> None:
    """Add embedding rows where the tokenizer has more tokens than the encoder; spare rows are used first."""
    if tokens > encoder.get_input_embeddings().num_embeddings:
        encoder.resize_token_embeddings(tokens, mean_resizing=False)


def position_limit(encoder: Any) -> int:
    """The longest sequence that the encoder has positions for; `sys.maxsize` where positions are relative."""
    return positions(encoder.config) or sys.maxsize
