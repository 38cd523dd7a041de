"""A judge compares the answers to one request in pairs, each pair in both orders, as `cmp_results` of MixInstruct.

Both orders agree: that is the verdict. One order names a winner and the other a tie: the tie. The two name different
winners (the judge prefers a place, not an answer), or different ties: "Same good". A reply without one of the four
verdicts on a line of its own, or with several, is asked for once more; after that, or where the endpoint fails, the
pair is left out.

Every reply goes into a journal at once, under a hash of what was asked: nothing that was answered is asked again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from data_pipeline.cleaning import listed
from data_pipeline.endpoint import ENDPOINT_WIDE, Endpoint, Failure, Messages, ask_each
from data_pipeline.errors import UserError
from data_pipeline.journal import Journal
from data_pipeline.models import fill
from data_pipeline.schema import Example
from data_pipeline.tokenization import question_text

A_BETTER, B_BETTER, SAME_GOOD, SAME_BAD = "A is better", "B is better", "Same good", "Same bad"
VERDICTS = (A_BETTER, B_BETTER, SAME_GOOD, SAME_BAD)
COMPUTED, KEPT, NONSENSE = "computed", "kept", "nonsense"
_REMINDER = f"Reply with exactly one of these four lines and nothing else: {'; '.join(VERDICTS)}."
_LINE = re.compile(rf"\W*(?:verdict\b\W*)?({'|'.join(VERDICTS)})\W*", re.IGNORECASE)
_MIRRORED = {A_BETTER: B_BETTER, B_BETTER: A_BETTER}


def parse_verdict(reply: str) -> str | None:
    """The one verdict that stands on a line of its own; None where there is none, or several different ones.

    Within a sentence it may be denied or weighed ("It is not true that A is better") and is none. Marks around it,
    and "Verdict:" before it, are left aside.
    """
    found = {match[1].capitalize() for line in reply.splitlines() if (match := _LINE.fullmatch(line))}
    return found.pop() if len(found) == 1 else None


def combine(forward: str, backward: str) -> str:
    """The verdict on (A, B) from that on A, B in this order and that with the order reversed, as it was given."""
    backward = _MIRRORED.get(backward, backward)
    if forward == backward:
        return forward
    ties = [verdict for verdict in (forward, backward) if verdict not in _MIRRORED]
    return ties[0] if len(ties) == 1 else SAME_GOOD


@dataclass(frozen=True)
class Pair:
    """Two candidates of one row, in the row's order. name: "model_A,model_B". forward, backward: what is asked."""

    name: str
    forward: Messages
    backward: Messages

    @property
    def orders(self) -> list[Messages]:
        """What is asked: both orders, or the one where the two answers are the same."""
        return [self.forward] if self.forward == self.backward else [self.forward, self.backward]


class Judge:
    """The endpoint with its template, and the journal of what it has replied: in memory there are just the places."""

    def __init__(self, endpoint: Endpoint, template: str, journal: Journal) -> None:
        self._endpoint, self._template, self._journal = endpoint, template, journal
        self._places = {key: place for key, place in journal.entries() if key}
        self._failed: dict[bytes, Failure] = {}
        self._under_way: set[bytes] = set()

    def pairs(self, example: Example, overwrite: bool) -> tuple[list[Pair], Counter[str]]:
        """The pairs of a row to be compared; the others, counted: kept, or why they cannot be.

        Reasons: empty_text; same_model (two answers of one name, which a verdict could not tell apart); comma_in_name.
        """
        pairs, counts = [], Counter[str]()
        held = {frozenset(name.split(",")) for name in example.cmp_results or {}}
        question = question_text(example.instruction, example.input)
        for a, b in combinations(example.candidates, 2):
            if frozenset((a.model, b.model)) in held and not overwrite:
                counts[KEPT] += 1
            elif "," in a.model + b.model:
                counts["comma_in_name"] += 1
            elif a.model == b.model:
                counts["same_model"] += 1
            elif not a.text.strip() or not b.text.strip():
                counts["empty_text"] += 1
            else:
                forward, backward = (self._messages(question, *texts) for texts in ((a.text, b.text), (b.text, a.text)))
                pairs.append(Pair(f"{a.model},{b.model}", forward, backward))
        return pairs, counts

    def _messages(self, question: str, first: str, second: str) -> Messages:
        system = [{"role": "system", "content": self._endpoint.system}] if self._endpoint.system else []
        asked = fill(self._template, {"question": question, "first": first, "second": second})
        return [*system, {"role": "user", "content": asked}]

    def ask(self, pairs: Callable[[], Iterable[Pair]], progress: Callable[[int], None]) -> None:
        """Ask what the journal does not hold, and once more what it holds nonsense for.

        progress: called with 1 for each reply. pairs: gives them anew at each call. Raises `UserError` where the
        endpoint is given up on the way, or has never replied to anything.
        """
        self._round(pairs(), progress)
        self._round(self._doubtful(pairs()), progress)
        if self._failed and not self._places:
            raise self._unreachable(next(iter(self._failed.values())))

    def open_questions(self, pairs: Iterable[Pair]) -> Iterator[tuple[bytes, Messages]]:
        """Key and messages of every question that has no reply, has not failed, and is not under way."""
        for pair in pairs:
            for messages in pair.orders:
                key = self._key(messages)
                if not (key in self._places or key in self._failed or key in self._under_way):
                    yield key, messages

    def _doubtful(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """The second attempts at what was answered with nonsense, as pairs of themselves."""
        for pair in pairs:
            for messages in pair.orders:
                reply = self._reply(self._key(messages))
                if reply is not None and parse_verdict(reply) is None:
                    again = _again(messages, reply)
                    yield Pair(pair.name, again, again)

    def _round(self, pairs: Iterable[Pair], progress: Callable[[int], None]) -> None:
        """Ask the open questions of `pairs`, and write each reply into the journal."""
        given_up: list[Failure] = []

        def questions() -> Iterator[tuple[bytes, Messages]]:
            for key, messages in self.open_questions(pairs):
                if given_up:  # what is under way may still be answered, but nothing new is asked
                    return
                self._under_way.add(key)
                yield key, messages

        for key, answer in ask_each(self._endpoint, questions()):
            self._under_way.discard(key)
            if isinstance(answer, str):
                self._places[key] = self._journal.add(key, answer)
                progress(1)
            else:
                self._failed[key] = answer
                given_up += [answer] * (answer.reason == "not_asked")
        if given_up:
            raise self._unreachable(given_up[0])

    def _unreachable(self, failure: Failure) -> UserError:
        return UserError(
            f"The judge {self._endpoint.name} does not answer ({failure.message}); "
            "every reply so far is kept: see to the endpoint and run the same command again."
        )

    def require_replies(self, counts: Mapping[str, int]) -> None:
        """Raise `UserError` where pairs have no verdict for the endpoint's sake: it may give one later.

        counts: what became of the pairs, as `judged` counts them.
        """
        missing = {reason: counts[reason] for reason in ENDPOINT_WIDE if counts.get(reason)}
        if missing:
            example = next(failure.message for failure in self._failed.values() if failure.reason in missing)
            raise UserError(
                f"The judge {self._endpoint.name} has not replied on {sum(missing.values())} of "
                f"{sum(counts.values())} pairs ({listed(missing)}; {example}); every reply so far is kept: run the "
                "same command again, or add --accept_missing to go without those pairs."
            )

    def verdict(self, pair: Pair) -> tuple[str | None, str]:
        """(verdict, computed), or (None, why there is none: nonsense, or the reason of a `Failure`)."""
        found = [self._found(messages) for messages in (pair.forward, pair.backward)]
        if all(result in VERDICTS for result in found):
            return combine(*found), COMPUTED
        return None, next(result for result in found if result not in VERDICTS)

    def _found(self, messages: Messages) -> str:
        """What the judge says on one order, by its second reply after a first of nonsense; or why it says nothing."""
        for _ in range(2):
            key = self._key(messages)
            reply = self._reply(key)
            if reply is None:
                return self._failed[key].reason
            verdict = parse_verdict(reply)
            if verdict:
                return verdict
            messages = _again(messages, reply)
        return NONSENSE

    def _reply(self, key: bytes) -> str | None:
        place = self._places.get(key)
        return None if place is None else self._journal.text(place)

    def _key(self, messages: Messages) -> bytes:
        """What stands for one question to this judge: 16 bytes."""
        endpoint = self._endpoint
        asked = [endpoint.base_url, endpoint.model, endpoint.parameters, messages]
        return hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=16).digest()


def _again(messages: Messages, reply: str) -> Messages:
    """The question once more, after a reply that was no verdict."""
    return [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": _REMINDER}]


def judged(judge: Judge, examples: Sequence[Example], overwrite: bool) -> tuple[list[dict[str, str]], Counter[str]]:
    """The new verdicts of each row, by pair, from what the judge has replied; and what became of each pair."""
    verdicts: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    for example in examples:
        pairs, others = judge.pairs(example, overwrite)
        counts += others
        found: dict[str, str] = {}
        for pair in pairs:
            verdict, reason = judge.verdict(pair)
            counts[reason] += 1
            if verdict:
                found[pair.name] = verdict
        verdicts.append(found)
    return verdicts, counts
