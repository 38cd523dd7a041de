"""The commands of cluster/README.md: what can be said of them without a cloud. Pasted in order, they lack nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"
SECTIONS = {
    title: "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S))
    for title, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", (CLUSTER / "README.md").read_text(), re.M | re.S)
}
"""The commands of each section, by its title."""
IMAGES = {"AWS": "../cluster.yaml", "GCP": "gcp.yaml", "Kubernetes": "kubernetes/**/*.yaml"}
"""What the commands of a section start, and so which images they must have made."""


@pytest.mark.parametrize("title", [title for title, commands in SECTIONS.items() if commands])
def test_each_section_sets_a_variable_before_it_uses_it(title: str) -> None:
    commands = SECTIONS[title]
    subprocess.run(["bash", "-n", "-c", commands], check=True)
    places: dict[str, int] = {}
    for found in re.finditer(r"\b([A-Z][A-Z_]+)=|\bfor ([A-Z]+) in ", commands):
        places.setdefault(found[1] or found[2], found.start())
    used = [(found[1], found.start()) for found in re.finditer(r"\$\{?([A-Z][A-Z_]+)", commands)]
    assert [name for name, place in used if places.get(name, len(commands)) > place] == []


@pytest.mark.parametrize("title", IMAGES)
def test_each_image_that_a_section_starts_is_built_and_pushed_there(title: str) -> None:
    files = sorted(CLUSTER.glob(IMAGES[title]))
    images = {image for path in files for image in re.findall(r"REGISTRY(/[\w.-]+:[\w.-]+)", path.read_text())}
    assert images
    commands = SECTIONS[title]
    assert [image for image in images if f'docker push "$REGISTRY{image}"' not in commands] == []
    assert [image for image in images if f'-t "$REGISTRY{image}"' not in commands] == []


def test_on_kubernetes_what_is_applied_is_waited_for_before_the_next_command_needs_it() -> None:
    commands = SECTIONS["Kubernetes"]
    order = [
        "kuberay/kuberay-operator",
        "--create-namespace --wait ",
        "kubernetes/redis.yaml",
        "rollout status statefulset/redis ",
        "kubernetes/raycluster.yaml",
        "wait --for=condition=HeadPodReady raycluster/urg ",
        "port-forward service/urg-head-svc ",
        'exec "$HEAD" ',
    ]
    places = [commands.index(part) for part in order]
    assert places == sorted(places)


def test_a_rayjob_is_stopped_by_the_words_that_a_run_writes() -> None:
    """In the log of the run that the manifest names; the RayJob is deleted after them, or it starts the run anew."""
    training = CLUSTER.parent / "urg" / "training"
    (file,) = re.findall(r'^UNTIL_STOPPED = "(.+)"$', (training / "notices.py").read_text(), re.M)
    named = dict(re.findall(r"--(name|storage) (\S+)", (CLUSTER / "kubernetes" / "job" / "rayjob.yaml").read_text()))
    commands = SECTIONS["Kubernetes"]
    assert f"cd {named['storage']}/{named['name']} && rm {file} && " in commands
    (words,) = re.findall(r'train\.log \| grep "([^"]+)"', commands)
    heard, _, done = words.partition(": ")
    loop = (training / "loop.py").read_text()
    assert f'"{heard}"' in loop
    assert f": {done} at step" in loop
    assert commands.index(words) < commands.index("delete rayjob")


def test_google_cloud_is_asked_for_each_service_before_it_is_used() -> None:
    """In a new project all of them are off. `iam` and `cloudresourcemanager` are what Ray itself calls."""
    commands = SECTIONS["GCP"]
    enabled = re.search(r"^gcloud services enable (.*)$", commands, re.M)
    assert enabled
    names = {"compute": "compute", "filestore": "file", "artifacts": "artifactregistry", "iam": "iam"}
    names["projects"] = "cloudresourcemanager"
    first_words = set(re.findall(r"gcloud (\w+)", commands)) - {"config", "auth", "services"}
    needed = {names[word] for word in first_words} | {"cloudresourcemanager"}
    assert needed == {name.removesuffix(".googleapis.com") for name in enabled[1].split()}
    assert enabled.start() < min(commands.index(f"gcloud {word} ") for word in first_words)
