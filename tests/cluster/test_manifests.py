"""The Kubernetes manifests: valid by the schemas, closed by default, and of the versions that the lock names.

The schema of the custom resources was written by hand from KubeRay's and Kueue's types, as its head says: it finds
slips in the manifests, and not what was misread in both.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "cluster" / "kubernetes"
CUSTOM = yaml.safe_load(Path(__file__).with_name("kuberay.schema.yaml").read_text())
VERSION = kubernetes_validate.latest_version()
PATCHES = ("kustomization.yaml", "queued.yaml")


def objects() -> list[dict[str, Any]]:
    files = sorted(path for path in KUBERNETES.rglob("*.yaml") if path.name not in PATCHES)
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def merged(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """As kustomize merges: mappings key by key."""
    result = dict(base)
    for key, value in patch.items():
        result[key] = merged(base[key], value) if isinstance(value, dict) and key in base else value
    return result


def queued_job() -> dict[str, Any]:
    (job,) = (each for each in objects() if each["kind"] == "RayJob")
    return merged(job, yaml.safe_load((KUBERNETES / "kueue" / "queued.yaml").read_text()))


OBJECTS = [*objects(), queued_job()]


def name_of(each: dict[str, Any]) -> str:
    return f"{each['kind']}-{each['metadata']['name']}"


def templates(node: object) -> Iterator[dict[str, Any]]:
    """Every pod template in an object."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "template":
                yield value
            yield from templates(value)
    elif isinstance(node, list):
        for value in node:
            yield from templates(value)


def validate(each: dict[str, Any]) -> None:
    if each["apiVersion"].split("/")[0] not in ("ray.io", "kueue.x-k8s.io"):
        kubernetes_validate.validate(each, VERSION, strict=True)
        return
    jsonschema.validate(each, CUSTOM)
    for template in templates(each):
        labelled = {"metadata": {"labels": {"a": "b"}}, **template}
        deployment = {"selector": {"matchLabels": {"a": "b"}}, "template": labelled}
        wrapped = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": deployment}
        kubernetes_validate.validate(wrapped, VERSION, strict=True)


CLUSTER = ("spec",)
GROUP = ("spec", "workerGroupSpecs", 0)
RULE = {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}
BROKEN: dict[str, tuple[str, tuple[str | int, ...], object]] = {
    "an unknown field": ("RayCluster", (*CLUSTER, "headGroup"), {}),
    "an unknown mode": ("RayCluster", (*CLUSTER, "authOptions", "mode"), "tokens"),
    "an unknown manager": ("RayCluster", (*CLUSTER, "managedBy"), "me"),
    "a number for a text": ("RayCluster", (*GROUP, "rayStartParams", "num-gpus"), 0),
    "a text for a number": ("RayCluster", (*GROUP, "priority"), "10"),
    "no minReplicas": ("RayCluster", (*GROUP, "minReplicas"), None),
    "no maxReplicas": ("RayCluster", (*GROUP, "maxReplicas"), None),
    "no pod": ("RayCluster", (*GROUP, "template"), None),
    "no head": ("RayCluster", (*CLUSTER, "headGroupSpec"), None),
    "a field of no pod": ("RayCluster", (*GROUP, "template", "spec", "containers", 0, "image_"), "x"),
    "half a strategy": ("RayJob", ("spec", "deletionStrategy"), {"onSuccess": {"policy": "DeleteSelf"}}),
    "two strategies": (
        "RayJob",
        ("spec", "deletionStrategy"),
        {"onSuccess": {}, "onFailure": {}, "deletionRules": [RULE]},
    ),
    "a rule for nothing": ("RayJob", ("spec", "deletionStrategy"), {"deletionRules": [RULE | {"condition": {}}]}),
    "a job's worker group without maxReplicas": ("RayJob", ("spec", "rayClusterSpec", *GROUP[1:], "maxReplicas"), None),
    "a queue of no ClusterQueue": ("LocalQueue", ("spec", "clusterQueue"), None),
}
"""What is wrong with an object: (its kind, the place that is changed, what then stands there, None for nothing)."""


def broken(kind: str, place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(next(each for each in OBJECTS if each["kind"] == kind))
    node: Any = found
    for key in place[:-1]:
        node = node[key]
    if value is None:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return found


@pytest.mark.parametrize("each", OBJECTS, ids=name_of)
def test_each_object_is_valid(each: dict[str, Any]) -> None:
    validate(each)


@pytest.mark.parametrize("what", BROKEN)
def test_the_schemas_find_what_is_wrong(what: str) -> None:
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(broken(*BROKEN[what]))


def test_the_schemas_let_a_rayjob_delete_its_cluster_by_rules() -> None:
    validate(broken("RayJob", ("spec", "deletionStrategy"), {"deletionRules": [RULE]}))


def test_kustomizations_name_files_that_exist() -> None:
    for path in KUBERNETES.rglob("kustomization.yaml"):
        named = yaml.safe_load(path.read_text())
        files = named["resources"] + [patch["path"] for patch in named.get("patches", [])]
        assert [name for name in files if not (path.parent / name).exists()] == []


def test_containers_are_not_root_and_have_limits() -> None:
    found = [template["spec"] for each in OBJECTS for template in templates(each)]
    assert len(found) >= 9
    for spec in found:
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert re.search(r":[\w.-]*\w$", container["image"])
            assert not container["image"].endswith(":latest")


def test_workers_drain_their_node_before_they_are_killed() -> None:
    clusters = [
        each["spec"].get("rayClusterSpec", each["spec"]) for each in OBJECTS if each["apiVersion"] == "ray.io/v1"
    ]
    groups = [group for cluster in clusters for group in cluster["workerGroupSpecs"]]
    assert len(groups) == 4
    for spec in (group["template"]["spec"] for group in groups):
        (container,) = spec["containers"]
        variables = {each["name"]: each["value"] for each in container["env"]}
        drained = float(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert 60 <= drained <= spec["terminationGracePeriodSeconds"] - 10


def test_nothing_is_open_and_no_secret_is_written_down() -> None:
    assert [each for each in OBJECTS if each["kind"] in ("Secret", "Ingress")] == []
    services = [each["spec"].get("type", "ClusterIP") for each in OBJECTS if each["kind"] == "Service"]
    assert set(services) == {"ClusterIP"}
    policies = [each for each in OBJECTS if each["kind"] == "NetworkPolicy"]
    closed = {
        each["metadata"]["namespace"]
        for each in policies
        if each["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    }
    assert closed == {each["metadata"]["name"] for each in OBJECTS if each["kind"] == "Namespace"}
    assert closed == {each["metadata"]["namespace"] for each in OBJECTS if "namespace" in each["metadata"]}
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            assert rule["from"]
            assert all("ipBlock" not in source for source in rule["from"])


def secrets(node: object) -> Iterator[str]:
    """The name of every Secret that an object takes a value from."""
    if isinstance(node, dict):
        if "secretKeyRef" in node:
            yield node["secretKeyRef"]["name"]
        for value in node.values():
            yield from secrets(value)
    elif isinstance(node, list):
        for value in node:
            yield from secrets(value)


def test_rays_namespace_has_no_secret_that_its_users_have_not_anyway() -> None:
    """By the head's account they can have the cluster mount any of them."""
    named = [(each["metadata"].get("namespace"), name) for each in OBJECTS for name in secrets(each)]
    assert set(named) == {("urg", "redis"), ("urg-mlflow", "mlflow")}


def test_pods_have_no_account_but_the_head_that_scales_its_cluster() -> None:
    with_account = [
        (each["kind"], number)
        for each in OBJECTS
        for number, template in enumerate(templates(each))
        if template["spec"].get("automountServiceAccountToken") is not False
    ]
    assert with_account == [("RayCluster", 0)]


def test_mlflow_answers_to_its_name_in_the_namespace_that_lets_ray_in() -> None:
    (server,) = (each for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == ("Deployment", "mlflow"))
    (container,) = server["spec"]["template"]["spec"]["containers"]
    (hosts,) = (each["value"] for each in container["env"] if each["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS")
    address = f"mlflow.{server['metadata']['namespace']}:5000"
    assert address in hosts.split(",")
    assert f"--tracking.uri http://{address}\n" in (ROOT / "cluster" / "README.md").read_text()
    (policy,) = (
        each["spec"] for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == ("NetworkPolicy", "mlflow")
    )
    ((source,),) = (rule["from"] for rule in policy["ingress"])
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "urg"}
    assert source["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}


def test_mlflow_begins_as_one_server_which_makes_the_tables() -> None:
    """Its lock against a second one is a file, which pods do not share."""
    (server,) = (each for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == ("Deployment", "mlflow"))
    assert server["spec"]["replicas"] == 1
    readme = (ROOT / "cluster" / "README.md").read_text()
    made = readme.index("rollout status deployment/mlflow ")
    assert readme.index("scale deployment/mlflow --replicas=2") > made


def test_ray_asks_for_its_token_and_is_of_the_locks_version() -> None:
    lock = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "requirements.lock").read_text(), re.M))
    clusters = [each["spec"] for each in OBJECTS if each["kind"] == "RayCluster"]
    clusters += [each["spec"]["rayClusterSpec"] for each in OBJECTS if each["kind"] == "RayJob"]
    for cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["rayVersion"] == lock["ray"]
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert f"ARG RAY_TAG={lock['ray']}-py311-cpu\n" in (ROOT / "cluster" / "Dockerfile").read_text()
    assert f"mlflow=={lock['mlflow']} " in (ROOT / "cluster" / "mlflow" / "Dockerfile").read_text()
