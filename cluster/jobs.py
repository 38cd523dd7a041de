"""Jobs on a Ray cluster, by names that stay the same: Ray's Jobs API with errors that say what to do.

A job's submission id is its name. Ray does not allow the same id twice, so further attempts are name-2, name-3, … Which
name and which attempt a job is stands in its metadata: `xl-2` is also what somebody may have called another run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where `ray dashboard`, `kubectl port-forward` and a Ray on this machine put the Jobs API."""
AGENT_SECONDS = 60.0
"""How long a cluster may take to have the agent that starts jobs."""
LOST_SECONDS = 300.0
"""How long the cluster may be out of reach before following ends: longer than a head takes to be started anew."""
NAME, ATTEMPT = "urg.name", "urg.attempt"
"""The keys of a job's metadata that say which job it is, and which attempt at it."""
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def address_of(given: str | None) -> str:
    """The address to use: the one given, that of the environment, or the default."""
    return given or next(filter(None, map(os.environ.get, _ADDRESS_VARIABLES)), DEFAULT_ADDRESS)


def connect(address: str) -> JobSubmissionClient:
    """A client of the Jobs API at `address`. Raises UserError where there is none, or the token is refused."""
    from ray.job_submission import JobSubmissionClient

    with _without(_ADDRESS_VARIABLES), clear_errors(address):  # they would go before what was given
        return JobSubmissionClient(address)


@contextlib.contextmanager
def clear_errors(address: str) -> Iterator[None]:
    """Turn what the Jobs API raises into a UserError of one sentence."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        token = os.environ.get("RAY_AUTH_TOKEN_PATH")
        if token and not os.environ.get("RAY_AUTH_TOKEN") and not Path(token).is_file():
            raise UserError(
                f"RAY_AUTH_TOKEN_PATH={token} is no file: name the token of the cluster at {address}; or, where that "
                "was a cluster.local that has ended, unset RAY_ADDRESS, RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN_PATH."
            ) from error
        raise UserError(
            f"the cluster at {address} refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the cluster's own (see cluster/README.md)."
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        raise UserError(
            f"no cluster answers at {address}: start one, open the tunnel to it (`ray dashboard cluster.yaml`, "
            "`kubectl port-forward`), or give another --address."
        ) from error
    except ValueError as error:
        raise UserError(f"the job cannot be submitted to {address}: {_last_line(error)}") from error
    except RuntimeError as error:
        raise UserError(f"the cluster at {address} says: {_last_line(error)}") from error


@dataclass(frozen=True)
class Attempt:
    """One of the jobs of a name. number: from 1 on."""

    name: str
    number: int
    submission_id: str

    def metadata(self) -> dict[str, str]:
        """What the job carries, by which `attempts` finds it."""
        return {NAME: self.name, ATTEMPT: str(self.number)}


def attempts(jobs: Sequence[JobDetails], name: str) -> list[JobDetails]:
    """Those of these jobs that have this name, oldest first."""
    found = [job for job in jobs if (job.metadata or {}).get(NAME) == name and job.submission_id]
    return sorted(found, key=_number)


def next_attempt(jobs: Sequence[JobDetails], name: str) -> Attempt:
    """The attempt after those of this name, under an id that no job has."""
    earlier = attempts(jobs, name)
    number = _number(earlier[-1]) + 1 if earlier else 1
    wanted = name if number == 1 else f"{name}-{number}"
    taken = {job.submission_id for job in jobs}
    ids = itertools.chain([wanted], (f"{wanted}-{count}" for count in itertools.count(2)))
    return Attempt(name, number, next(each for each in ids if each not in taken))


def _number(job: JobDetails) -> int:
    return int((job.metadata or {}).get(ATTEMPT, 1))


def submit(client: JobSubmissionClient, attempt: Attempt, entrypoint: str, environment: dict[str, Any]) -> None:
    """Submit a job; waits for the agent of a cluster that has just come up. Raises RuntimeError as the client does."""
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=attempt.submission_id,
                runtime_env=environment,
                metadata=attempt.metadata(),
            )
            return
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise UserError(
                    f"the cluster has had no agent to start jobs for {AGENT_SECONDS:.0f} s: the head's "
                    "dashboard_agent.log says why (often a port that is taken)."
                ) from error
        time.sleep(1)


def follow(client: JobSubmissionClient, submission_id: str) -> int:
    """Print the job's log as it grows, until its end; returns its exit code. Survives a tunnel that is broken for a
    while; raises UserError where the cluster stays away, or no longer knows the job."""
    import aiohttp

    tail, lost_since = _Tail(), None
    while True:
        try:
            with contextlib.suppress(aiohttp.WSServerHandshakeError):  # there is no such log: the next line says why
                asyncio.run(tail.show(client, submission_id))
            job = client.get_job_info(submission_id)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            lost_since = _still_bearable(lost_since, submission_id, error)
        else:
            lost_since = None
            if job.status.is_terminal():
                if job.status != "SUCCEEDED":
                    # Ray adds the end of the log, which has just been shown.
                    reason = (job.message or "no reason given").partition(", last available logs")[0]
                    print(f"job {submission_id} {job.status.lower()}: {reason}", file=sys.stderr)
                return exit_code(job)
        time.sleep(1)


class _Tail:
    """A log that is printed once, however often it is asked for from its beginning."""

    def __init__(self) -> None:
        self._shown = 0  # characters

    async def show(self, client: JobSubmissionClient, submission_id: str) -> None:
        """Print what was not printed yet, until the job ends or the connection breaks."""
        seen = 0
        async for text in client.tail_job_logs(submission_id):
            seen += len(text)
            if seen > self._shown:
                sys.stdout.write(text[self._shown - seen :])
                sys.stdout.flush()
                self._shown = seen


def _still_bearable(since: float | None, submission_id: str, error: Exception) -> float:
    """Since when the cluster is away. Raises UserError where it is too long, or the job is gone for good."""
    if "does not exist" in str(error):
        raise UserError(
            f"the cluster no longer knows job {submission_id}: its head was restarted; submit again, and the "
            "run resumes."
        ) from error
    now = time.monotonic()
    if since is not None and now - since > LOST_SECONDS:
        raise UserError(
            f"the cluster has not answered for {LOST_SECONDS:.0f} s; job {submission_id} may run on: the same command "
            "follows it again."
        ) from error
    return since or now


def exit_code(job: JobDetails) -> int:
    """What the job's command ended with; 1 where a job that did not succeed has no exit code of its own."""
    if job.status == "SUCCEEDED":
        return 0
    code = job.driver_exit_code or 0
    return code if 0 < code < 256 else 1


def _last_line(error: Exception) -> str:
    """The last sentence of a message: the server's tracebacks end with what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:400]


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """This process's environment without these variables."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
