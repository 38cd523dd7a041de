"""What SECURITY.md promises and a look at the sources can hold it to."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.preparing import prepare_without_ray

ROOT = Path(__file__).parents[1]
PACKAGES = ("urg", "tuning", "data_pipeline", "cluster")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CONFIGURATIONS = sorted(
    path
    for pattern in ("cluster.yaml", "cluster/**/*.yaml", "cluster/**/Dockerfile", "Makefile", ".ci/*")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
COMPOSED = [
    service
    for text in (path.read_text() for path in CONFIGURATIONS)
    if re.search(r"^services:", text, re.M)
    for service in yaml.safe_load(text)["services"].values()
]
"""The services of all compose files."""
FORBIDDEN = {
    "unpickles": r"torch\.load\((?![^)]*weights_only=True)|\bpickle\.loads?\(|weights_only\s*=\s*False|joblib\.load",
    "lets a shell read a command": r"shell\s*=\s*True|os\.system\(|os\.popen\(",
    "does not check a certificate": r"(?<!ShardSet)\.\w+\([^)]*\b(?:verify|ssl)\s*=\s*False|_create_unverified_context",
    "evaluates text": r"(?<![\w.])(?:eval|exec)\(",
    "listens to everybody": r"""["']0\.0\.0\.0["']|--host[= ]0\.0\.0\.0""",
    "loads YAML that makes objects": r"yaml\.(?:unsafe_load|full_load|load)\(",
}
# DeepSpeed's own loading unpickles; urg/training/checkpoints.py says where that is allowed.
BROKEN = [
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "pickle.load(file)",
    "subprocess.run(command, shell=True)",
    "requests.get(url, verify=False)",
    "x = eval(text)",
    'run(host="0.0.0.0")',
    "yaml.load(text)",
]
FINE = [
    "torch.load(path, weights_only=True)",
    "model.eval()",
    "yaml.safe_load(text)",
    "re.compile(x)",
    "127.0.0.1",
    "ShardSet.open(x, verify=False)",
]


def found_in(text: str) -> list[str]:
    return [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text)]


@pytest.mark.parametrize("line", BROKEN)
def test_the_patterns_find_what_they_are_for(line: str) -> None:
    assert found_in(line)


@pytest.mark.parametrize("line", FINE)
def test_the_patterns_let_pass_what_is_fine(line: str) -> None:
    assert found_in(line) == []


def test_no_source_does_what_is_forbidden() -> None:
    assert len(SOURCES) > 50
    found = {path.relative_to(ROOT).as_posix(): found_in(path.read_text()) for path in SOURCES}
    assert {name: what for name, what in found.items() if what} == {}


def test_a_listener_for_everybody_is_in_a_container_behind_loopback() -> None:
    """`0.0.0.0` may stand where a container listens, and then its port is published on loopback or kept by a policy."""
    found = {path.relative_to(ROOT).as_posix() for path in CONFIGURATIONS if "0.0.0.0" in path.read_text()}
    assert found <= {"cluster/mlflow/Dockerfile", "cluster/mlflow/compose.yaml"}
    ports = [port for service in COMPOSED for port in service.get("ports", [])]
    assert len(ports) == 2
    # Loopback, or an address that must be given: with `:?` compose starts nothing without it.
    assert [port for port in ports if not re.match(r"127\.0\.0\.1:|\$\{\w+:\?", port)] == []


def test_images_and_locked_packages_have_fixed_versions() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    assert len(lines) > 100
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+-]+", line)] == []
    images = [service["image"] for service in COMPOSED if "image" in service]
    assert len(images) > 4
    assert [image for image in images if ":" not in image or image.endswith(":latest")] == []


def in_the_image(name: str) -> bool:
    """Whether Docker sends a file of the checkout to the build: the last pattern for it, or its folder, decides."""
    sent = True
    for line in (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = re.escape(line.lstrip("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if line and line[0] != "#" and re.fullmatch(f"{pattern}(?:/.*)?", name):
            sent = line.startswith("!")
    return sent


def test_no_secret_and_no_data_get_into_the_image() -> None:
    # The passwords are made there by cluster/README.md.
    secrets = ["database_password", "store_password", ".env", ".env.local", "server.pem", "a/b.key", "id_rsa"]
    assert [name for name in secrets if in_the_image(f"cluster/mlflow/{name}") or in_the_image(name)] == []
    assert [name for name in ("data/x", "runs/x/model", ".git/config", "tests/x.py") if in_the_image(name)] == []
    copied = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    needed = [path.relative_to(ROOT).as_posix() for path in copied if path.suffix in (".py", ".yaml", ".json", ".txt")]
    assert len(needed) > 100
    assert [name for name in [*needed, "pyproject.toml", "requirements.lock"] if not in_the_image(name)] == []


def test_the_heads_role_on_aws_names_what_it_may() -> None:
    policy = json.loads((ROOT / "cluster" / "aws-head-policy.json").read_text())
    allowed: dict[str, list[object]] = {}  # by action, the condition of each statement that allows it
    for each in policy["Statement"]:
        for action in [each["Action"]] if isinstance(each["Action"], str) else each["Action"]:
            allowed.setdefault(action, []).append(each.get("Condition"))
    assert [action for action in allowed if action.endswith("*") and not action.startswith("ec2:Describe")] == []
    (passed,) = (each["Resource"] for each in policy["Statement"] if each["Action"] == "iam:PassRole")
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    worker = config["available_node_types"]["gpu"]["node_config"]["IamInstanceProfile"]["Name"]
    assert passed == f"arn:aws:iam::*:role/{worker}"
    own = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": config["cluster_name"]}}
    assert allowed["ec2:TerminateInstances"] == [own]
    # The tag decides what may be ended: who could give it to any machine could end any.
    assert allowed["ec2:CreateTags"] == [{"StringEquals": {"ec2:CreateAction": "RunInstances"}}, own]


def test_nothing_that_looks_like_a_secret_is_tracked() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, timeout=240)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.split("\0") if name]
    assert [name for name in names if re.search(r"\.(pem|key|p12)$|(^|/)\.env|id_rsa|_password$", name)] == []
    keys = re.compile(
        r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}"
    )
    texts = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    assert [name for name, text in texts.items() if keys.search(text.decode("utf-8", "ignore"))] == []


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "..", "a/../../escaped", "nul\0"])
def test_what_a_row_says_names_no_file_outside(name: str, tmp_path: Path) -> None:
    """A row whose id and models are paths: prepared, answered and kept, all files are where they always are."""
    from data_pipeline.config import PrepareConfig
    from data_pipeline.shards import ShardSet
    from urg.evaluation.answer_store import Answered, AnswerStore
    from urg.evaluation.config import EvaluateConfig

    texts = [{"model": f"{name}{i}", "text": f"text {i}", "scores": {name: 0.5 + i}} for i in range(3)]
    row = {"id": name, "instruction": "ask", "input": "", "output": "say", "candidates": texts}
    (tmp_path / "deep").mkdir()
    source = tmp_path / "deep" / "rows.jsonl"
    source.write_text(json.dumps(row) + "\n")
    folder = prepare_without_ray(PrepareConfig(input={"train": str(source)}, output=str(tmp_path / "deep" / "data")))
    rows = list(ShardSet.open(folder).split("train"))
    assert rows[0].models[0] == f"{name}0"
    config = EvaluateConfig(shards=str(folder), output=str(tmp_path / "deep" / "out"))
    AnswerStore(Path(config.output), config, rows, name).save(Answered(rows[0].models[0], "ranker", [None]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["data", "out", "rows.jsonl"]
    assert not [path for path in (tmp_path / "deep" / "data").rglob("*") if "escaped" in path.name]
    assert len(list((tmp_path / "deep" / "out" / "answers").iterdir())) == 1
