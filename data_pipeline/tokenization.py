"""The prompt template and the tokens of one candidate.

Each candidate is one sequence, `<question> x </s> <response> y </s>`; x is the instruction, a newline and the input.
T5 has no `<s>`: its `</s>` separates. Where a tokenizer has a token that opens a text, as its model was trained to
see, it stands first: BART's `<s>`, BERT's `[CLS]`, Gemma's `<bos>`. BERT's `[SEP]` separates as `</s>` does. Tokens are
stored apart (question, each response, target) and put together by `Template.candidate_ids`, so that a question is
stored once and not once a candidate. `encoding.py` makes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = ("<question>", "<response>")


@dataclass(frozen=True)
class Template:
    """The ids that stand around question and response."""

    question_id: int
    response_id: int
    eos_id: int
    pad_id: int
    opening_id: int | None = None
    """What stands before `<question>`; null for T5, and in sets that were prepared before there was any."""

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> Template:
        """The template's ids in `tokenizer` (one from `load_tokenizer`). Raises `UserError` where one is missing."""
        ids: dict[str, Any] = {f"{token[1:-1]}_id": tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
        ids |= {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
        for name, value in ids.items():
            if value is None or (name != "pad_id" and value == tokenizer.unk_token_id):
                raise UserError(f"The tokenizer has no {name}; use a model's tokenizer, loaded with load_tokenizer.")
        return cls(**ids, opening_id=_opening_id(tokenizer))

    def candidate_ids(self, question_ids: np.ndarray, response_ids: np.ndarray) -> np.ndarray:
        """`<question> x </s> <response> y </s>`, the opening token before it where there is one: int32 [Lq + Lr + 4]
        or one more."""
        first = [] if self.opening_id is None else [self.opening_id]
        opening, middle, end = [*first, self.question_id], [self.eos_id, self.response_id], [self.eos_id]
        return np.concatenate([opening, question_ids, middle, response_ids, end]).astype(np.int32)

    def question_length(self, question_tokens: int) -> int:
        """How many of `candidate_ids` stand before `<response>`."""
        return question_tokens + (2 if self.opening_id is None else 3)

    def candidate_length(self, question_tokens: int, response_tokens: int) -> int:
        """The length of `candidate_ids` without making them."""
        return self.question_length(question_tokens) + response_tokens + 2


def question_text(instruction: str, input: str = "") -> str:
    """x of the template: instruction, newline, input; without the newline where either is empty."""
    return "\n".join(part for part in (instruction, input) if part)


def _opening_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that opens a text for this tokenizer's model; None for T5, whose texts just begin."""
    opening = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    return None if opening is None else int(opening)


def load_tokenizer(name_or_folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or a hub id, with `SPECIAL_TOKENS` added where it lacks them; a separator (BERT's
    `[SEP]`) ends a text where no other token does.

    Raises `UserError` for a missing folder, a folder without a tokenizer, an unknown name and an unreachable hub.
    """
    folder = Path(name_or_folder).expanduser()
    tokenizer = _load_folder(folder) if folder.is_dir() else _load_from_hub(str(name_or_folder))
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer {name_or_folder} has no pad or no end-of-sequence token; use that of an encoder-decoder."
        )
    missing = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]
    if missing:  # appended, so that Flan-T5's land on spare rows of its embedding
        tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer


def decode_texts(ids_BT: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each row of written ids, without special tokens, and without the space that a first word may bring
    along."""
    texts: list[str] = tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _load_folder(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder."""
    from transformers import AutoTokenizer

    # Without this the hub would be asked what kind of model a folder without any tokenizer file might be.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "spiece.model")):
        raise UserError(
            f"The folder {folder} holds no tokenizer (tokenizer.json or tokenizer_config.json); name one that does."
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises whatever its parsers do: the folder is the user's to mend
        raise UserError(f"The tokenizer in {folder} cannot be loaded ({first_line(error)}); save it again.") from error


def _load_from_hub(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id: from the local cache where it is there, else downloaded."""
    from transformers import AutoTokenizer

    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(f"There is no tokenizer folder {name}; give an existing folder or a Hugging Face id.")
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        require_hub(f"the tokenizer {name}")
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"The hub has no usable tokenizer {name} ({first_line(error)}); check the name.") from error


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save as a Hugging Face folder. Raises OSError where it cannot be written, as on a full disk."""
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # the Rust tokenizer has no class for what the operating system says
        said = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) or not said:
            raise
        raise OSError(int(said[1]), os.strerror(int(said[1])), str(folder)) from error


def require_hub(what: str) -> None:
    """Raises `UserError`, in seconds, where the hub cannot be reached; its own client retries for a minute."""
    problem = hub_problem()
    if problem:
        raise UserError(
            f"Cannot load {what}: it is no local folder, and the Hugging Face hub cannot be reached ({problem}); "
            "give a local folder, or connect once to fill the cache."
        )


def hub_problem() -> str | None:
    """What keeps the hub from being asked; None where it answers."""
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _connection_problem(constants.ENDPOINT)


def _connection_problem(url: str) -> str | None:
    """What keeps `url` from answering; None where it answers, with whatever status."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        return first_line(error.reason) if isinstance(error.reason, OSError) else str(error.reason)
    except (OSError, ValueError) as error:
        return first_line(error)
    return None


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides the tokens: the backend's rules, or the vocabulary and class of a slow tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    else:
        rules = {"class": type(tokenizer).__name__, "vocab": sorted(tokenizer.get_vocab().items())}
    rules["specials"] = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
