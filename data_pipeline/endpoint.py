"""Asking a model behind an OpenAI-compatible address (`POST {base_url}/chat/completions`): patient, bounded, resumable.

    async for key, answer in ask(endpoint, ((row.id, endpoint.messages(row.instruction, row.input)) for row in rows)):
        if isinstance(answer, Failure): ...

`ask_each` is the same for code without an event loop. Each question gets exactly one result: the answer's text, or a
`Failure` that says why there is none. At most `concurrency` questions are held at a time, whatever `questions` yields.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from time import time
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from data_pipeline.errors import UserError
from data_pipeline.models import Endpoint, Messages
from data_pipeline.schema import encodable

if TYPE_CHECKING:
    from aiohttp import ClientSession

__all__ = ["ENDPOINT_WIDE", "Endpoint", "Failure", "Messages", "api_key", "ask", "ask_each"]

Key = TypeVar("Key")
_PASSING = (408, 409, 425, 429)  # besides 5xx
_REFUSING = (401, 402, 404)  # key, money or address: the next question would fare no better
# A 403 may be of this question alone (moderation), unless its code says otherwise.
_REFUSING_CODES = ("insufficient_quota", "model_not_found", "unsupported_country_region_territory")
ENDPOINT_WIDE = ("timeout", "connection", "bad_answer", "refused", "busy", "server_error")
"""Reasons of a `Failure` that are the endpoint's, not the question's: later it may be answered."""
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
_LONGEST_RETRY_AFTER_S = 600.0
_MAX_ANSWER_BYTES = 16 << 20
_LOGIN = re.compile(r"//[^/\s]*@")


@dataclass(frozen=True)
class Failure:
    """Why there is no answer. `reason` is a short stable code to count by, `message` a sentence without secrets.

    Reasons: timeout, connection, bad_answer (not the protocol's JSON), busy (429), server_error (5xx), refused (key,
    quota or address), rejected (this question), no_text, content_filter, not_asked (the endpoint was given up).
    """

    reason: str
    message: str


def api_key(endpoint: Endpoint) -> str | None:
    """The endpoint's key from the environment; None where it needs none. Raises `UserError` where it is not there."""
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"The environment variable {endpoint.api_key_env}, the key of {endpoint.name}, is not set; export it, or "
            "set api_key_env to null where no key is needed."
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"The key in {endpoint.api_key_env} has characters that no key has; export it again.")
    return key


def _proxy(base_url: str) -> str | None:
    """The machine's proxy for an address. aiohttp's own way to find it brings a .netrc login that ousts the key."""
    parts = urlsplit(base_url)
    return None if proxy_bypass(str(parts.hostname)) else getproxies().get(parts.scheme)


async def ask(
    endpoint: Endpoint, questions: Iterable[tuple[Key, Messages]]
) -> AsyncGenerator[tuple[Key, str | Failure], None]:
    """(key, answer or `Failure`) for each (key, messages), in the order they end. UserError where the key is missing.

    questions: read no further than there is room for; what it raises ends the asking.
    """
    from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

    key = api_key(endpoint)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    waiting = iter(questions)
    running: set[asyncio.Task[tuple[Key, str | Failure]]] = set()
    async with ClientSession(
        headers=headers,
        timeout=ClientTimeout(total=endpoint.timeout_s),
        connector=TCPConnector(limit=endpoint.concurrency),
        cookie_jar=DummyCookieJar(),
        proxy=_proxy(endpoint.base_url),
    ) as http:
        asker = _Asker(endpoint, http, key)
        try:
            while True:
                for question, messages in islice(waiting, endpoint.concurrency - len(running)):
                    running.add(asyncio.create_task(asker.answer(question, messages)))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def ask_each(endpoint: Endpoint, questions: Iterable[tuple[Key, Messages]]) -> Iterator[tuple[Key, str | Failure]]:
    """`ask` for code without an event loop; requests under way make progress while the next result is waited for."""
    answers = ask(endpoint, questions)

    async def following() -> tuple[Key, str | Failure] | None:
        return await anext(answers, None)

    with asyncio.Runner() as runner:
        while (result := runner.run(following())) is not None:
            yield result


class _Trouble(Exception):
    """An attempt failed. passing: another one may do better, after `wait_s` seconds if the endpoint said so."""

    def __init__(self, reason: str, message: str, *, passing: bool, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.failure, self.passing, self.wait_s = Failure(reason, message), passing, wait_s


class _Asker:
    """The state that the questions to one endpoint share: when the next request may go out, and whether to go on."""

    def __init__(self, endpoint: Endpoint, http: ClientSession, key: str | None) -> None:
        self._endpoint, self._http, self._key = endpoint, http, key
        self._address = endpoint.base_url.rstrip("/") + "/chat/completions"
        self._free_at = 0.0  # on the loop's clock
        self._answered = False
        self._failed_in_row = 0
        self._given_up: Failure | None = None
        self._stop = asyncio.Event()

    async def answer(self, question: Key, messages: Messages) -> tuple[Key, str | Failure]:
        result = await self._try(messages)
        self._learn(result)
        return question, result

    async def _try(self, messages: Messages) -> str | Failure:
        """The answer, after as many attempts as it takes or is allowed."""
        attempt = 0
        while True:
            await self._turn()
            if self._given_up is not None:
                return self._given_up
            try:
                return await self._request(messages)
            except _Trouble as trouble:
                self._free_at = max(self._free_at, asyncio.get_running_loop().time() + trouble.wait_s)
                if not trouble.passing or attempt == self._endpoint.retries:
                    return trouble.failure
            wait_s = min(_FIRST_WAIT_S * 2**attempt, _LONGEST_WAIT_S)
            await self._sleep(wait_s * random.uniform(0.5, 1.0))
            attempt += 1

    async def _turn(self) -> None:
        """Wait until a request may go out, by rate limit and Retry-After, or until the endpoint is given up."""
        clock = asyncio.get_running_loop().time
        while (wait_s := self._free_at - clock()) > 0 and self._given_up is None:
            await self._sleep(wait_s)
        if self._endpoint.requests_per_minute is not None:
            self._free_at = clock() + 60 / self._endpoint.requests_per_minute

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _learn(self, result: str | Failure) -> None:
        """Count failures in a row, and give the endpoint up where it is plainly down or refuses us."""
        if isinstance(result, str):
            self._answered, self._failed_in_row = True, 0
        elif self._given_up is None and result.reason in ENDPOINT_WIDE:
            self._failed_in_row += 1
            refused = result.reason == "refused" and not self._answered
            if refused or self._failed_in_row >= self._endpoint.give_up_after:
                after = "at once" if refused else f"after {self._failed_in_row} failures in a row (give_up_after)"
                message = f"not asked, the endpoint was given up {after}: {result.message}"
                self._given_up = Failure("not_asked", message)
                self._stop.set()

    async def _request(self, messages: Messages) -> str:
        """One attempt: the answer's text. Raises `_Trouble`."""
        from aiohttp import ClientError, ClientResponseError

        endpoint = self._endpoint
        payload = {"model": endpoint.model, "messages": messages, **endpoint.parameters}
        try:
            async with self._http.post(self._address, json=payload, allow_redirects=False) as response:
                body = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    body += chunk
                    if len(body) > _MAX_ANSWER_BYTES:
                        raise _Trouble("bad_answer", f"{endpoint.name} sends an answer without end", passing=False)
                status, retry_after = response.status, response.headers.get("Retry-After")
        except TimeoutError:
            message = f"{endpoint.name} did not answer within {endpoint.timeout_s:g} s"
            raise _Trouble("timeout", message, passing=True) from None
        except ClientError as error:
            # Its own text holds the address that was asked, which is a proxy's where a proxy refuses.
            told = f"HTTP {error.status} {error.message}" if isinstance(error, ClientResponseError) else str(error)
            message = f"no connection to {endpoint.name} at {endpoint.base_url} ({self._clean(told)})"
            raise _Trouble("connection", message, passing=True) from None
        if status != 200:
            raise self._refusal(status, bytes(body), _seconds(retry_after))
        return self._text(bytes(body))

    def _refusal(self, status: int, body: bytes, wait_s: float) -> _Trouble:
        """What an answer other than 200 means."""
        code, said = _error_in(body)
        message = f"{self._endpoint.name} answered HTTP {status}" + (f": {self._clean(said)}" if said else "")
        if status in (401, 403):
            message += f" (key: {self._endpoint.api_key_env or 'none given'})"
        if status in _REFUSING or code in _REFUSING_CODES:
            return _Trouble("refused", message, passing=False)
        if wait_s > _LONGEST_RETRY_AFTER_S:
            return _Trouble("refused", f"{message} (it asks to wait {wait_s:.0f} s)", passing=False)
        if status in _PASSING or status >= 500:
            return _Trouble("busy" if status == 429 else "server_error", message, passing=True, wait_s=wait_s)
        return _Trouble("rejected", message, passing=False)

    def _text(self, body: bytes) -> str:
        """The answer's text in a 200's body. Raises `_Trouble`."""
        name = self._endpoint.name
        try:
            choice = json.loads(body)["choices"][0]
            text, ended = choice["message"].get("content"), choice.get("finish_reason")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            said = self._clean(_error_in(body)[1])
            message = f"{name} answered with something else than a chat completion" + (f": {said}" if said else "")
            raise _Trouble("bad_answer", message, passing=True) from None
        if ended == "content_filter":
            raise _Trouble("content_filter", f"the content filter of {name} withheld the answer", passing=False)
        if not isinstance(text, str):
            raise _Trouble("no_text", f"{name} answered without a text", passing=False)
        return encodable(text)

    def _clean(self, text: str) -> str:
        """`text` from the other side, for a message: one short line, without the key or a URL's login."""
        text = text.replace(self._key, "***") if self._key else text
        text = _LOGIN.sub("//", text)
        line = " ".join(encodable(text).split())
        return line if len(line) <= 200 else line[:200] + " …"


def _error_in(body: bytes) -> tuple[str, str]:
    """(code, message) of the error that a body describes, "" where it does not."""
    try:
        error = json.loads(body)["error"]
        if isinstance(error, str):
            return "", error
        return str(error.get("code") or ""), str(error.get("message") or "")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "", ""


def _seconds(retry_after: str | None) -> float:
    """The wait that a Retry-After header (seconds, or a date) asks for; 0 where it is absent or unreadable."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d*)?", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
