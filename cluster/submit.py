"""Run a command of the project as a job of a Ray cluster: `python -m cluster.submit train -- --config flan-t5-xl`.

Sends the checkout, starts the job, shows its log, and ends with its exit code. The job has a stable name: the same
command again follows the job while it runs, and starts a further attempt, which resumes the run, when it has ended.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import UserError, exit_code_of

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

MODULES = {
    "prepare": "data_pipeline.prepare",
    "train": "urg.train",
    "evaluate": "urg.evaluate",
    "sweep": "tuning.sweep",
    "reproduce": "tuning.reproduce",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Submit the job that the command line describes, or follow it where it runs; returns the exit code."""
    options, arguments = parse(argv)
    from cluster.runtime_environment import require_no_secret, runtime_environment

    module = MODULES[options.command]
    require_no_secret(arguments)
    environment = runtime_environment(Path(options.working_dir), options.env, options.secret, module)
    name = options.name or default_name(options.command, arguments)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--name {name}: letters, digits, dots, dashes and underscores only, please.")
    from cluster import jobs

    logging.disable(logging.WARNING)  # Ray's own, about each upload
    address = jobs.address_of(options.address)
    client = jobs.connect(address)
    with jobs.clear_errors(address):
        submission_id = start(client, name, entrypoint(module, arguments, bool(options.secret)), environment)
    commands = f"  follow it:  ray job logs --address {address} --follow {submission_id}\n"
    commands += f"  stop it:    ray job stop --address {address} {submission_id}"
    if options.no_wait:
        print(commands)
        return 0
    try:
        with jobs.clear_errors(address):
            return jobs.follow(client, submission_id)
    except KeyboardInterrupt:
        print(f"\njob {submission_id} runs on\n{commands}", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """(our options, the arguments of the command after `--`). Exits with code 2 where they are wrong."""
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="cluster.submit",
        usage="python -m cluster.submit COMMAND [options] -- [arguments of the command]",
        description=(__doc__ or "").split("\n\n")[1].replace("\n", " "),
    )
    parser.add_argument("command", choices=MODULES, help=", ".join(f"{key}: {MODULES[key]}" for key in MODULES))
    parser.add_argument(
        "--address", help="the Jobs API's URL (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or http://127.0.0.1:8265)"
    )
    parser.add_argument("--name", help="the job's name (default: the command and the run's --name, or a digest)")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help="a variable for the job")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME[=/PATH]",
        help="a variable that is set on the cluster's nodes, or read from a file there; its value is not sent",
    )
    parser.add_argument("--working-dir", default=".", metavar="DIR", help="the checkout to send (default: here)")
    parser.add_argument("--no-wait", action="store_true", help="end once the job is submitted")
    return parser.parse_args(given[:cut]), given[cut + 1 :]


def default_name(command: str, arguments: Sequence[str]) -> str:
    """`train-NAME` by the `--name` of a run, otherwise by a digest: the same command, the same name."""
    text = " ".join(arguments)
    found = re.search(r"(?:^|\s)--name[=\s]([A-Za-z0-9._-]+)", text)
    return f"{command}-{found[1] if found else hashlib.sha256(text.encode()).hexdigest()[:8]}"


def entrypoint(module: str, arguments: Sequence[str], has_secrets: bool) -> str:
    """The shell command of the job."""
    command = ["python", "-m", module, *arguments]
    return shlex.join(["python", "-m", "cluster.secret_references", *command] if has_secrets else command)


def start(client: JobSubmissionClient, name: str, command: str, environment: dict[str, object]) -> str:
    """The submission id of the job: of the one that runs, or of a new attempt."""
    from cluster import jobs

    known = client.list_jobs()
    earlier = jobs.attempts(known, name)
    if earlier and not earlier[-1].status.is_terminal():
        running = earlier[-1]
        if running.entrypoint != command:
            raise UserError(
                f"job {running.submission_id} is {running.status.lower()} with another command ({running.entrypoint}): "
                "choose another --name, or stop it first."
            )
        print(f"job {running.submission_id} is {running.status.lower()} already; following it", flush=True)
        return str(running.submission_id)
    attempt = jobs.next_attempt(known, name)
    jobs.submit(client, attempt, command, environment)
    before = f" (before it: {earlier[-1].submission_id}, {earlier[-1].status.lower()})" if earlier else ""
    print(f"submitted job {attempt.submission_id}{before}: {command}", flush=True)
    return attempt.submission_id


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
