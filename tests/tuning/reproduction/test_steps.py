from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from tuning.reproduction.steps import Ending, Step, ending_of, marker, options, run_steps, with_needs

Copy = Callable[..., Step]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """copy(name, source, *needs): a step whose command copies one JSON file of tmp_path to another, named as itself."""

    def make(name: str, source: str, *needs: str) -> Step:
        return Step(name, ("json.tool", str(tmp_path / source), str(tmp_path / name)), needs)

    (tmp_path / "first").write_text("{}", encoding="utf-8")
    return make


def steps(*made: Step) -> dict[str, Step]:
    return {step.name: step for step in made}


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_step_runs_after_those_that_it_needs(tmp_path: Path, copy: Copy, at_once: int):
    asked = steps(copy("c", "b", "b"), copy("b", "a", "a"), copy("a", "first"))
    endings = run_steps(tmp_path, asked, at_once)
    assert {name: ending.failure for name, ending in endings.items()} == {"a": None, "b": None, "c": None}
    assert (tmp_path / "c").read_text() == "{}\n"


def test_nothing_runs_beside_a_step_that_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each step notes when it began and ended; only the two others may overlap."""
    code = "import sys, time; a = time.time(); time.sleep(1); open(sys.argv[1], 'w').write(f'{a} {time.time()}')"
    (tmp_path / "noting.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    made = [Step(name, ("noting", str(tmp_path / name)), alone=name == "b") for name in "abc"]
    endings = run_steps(tmp_path, steps(*made), 3)
    assert not any(ending.failure for ending in endings.values())
    spans = {name: [float(moment) for moment in (tmp_path / name).read_text().split()] for name in "abc"}
    assert spans["a"][1] <= spans["b"][0] or spans["b"][1] <= spans["a"][0]
    assert spans["c"][1] <= spans["b"][0] or spans["b"][1] <= spans["c"][0]
    assert max(spans["a"][0], spans["c"][0]) < min(spans["a"][1], spans["c"][1])


def test_steps_at_once_share_the_machines_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "show.py").write_text("import os; print(os.environ.get('OMP_NUM_THREADS'))", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told = {}
    for alone in (False, True):
        step = Step(f"alone-{alone}", ("show",), alone=alone)
        run_steps(tmp_path, steps(step), 2)
        told[alone] = (tmp_path / "logs" / f"{step.name}.log").read_text(encoding="utf-8").strip()
    assert told == {False: "2", True: "None"}


def test_what_is_done_is_not_run_again(tmp_path: Path, copy: Copy):
    run_steps(tmp_path, steps(copy("a", "first")), 1)
    (tmp_path / "a").unlink()
    endings = run_steps(tmp_path, steps(copy("a", "first"), copy("b", "first", "a")), 1)
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()
    assert endings["a"].failure is None


def test_a_step_whose_log_cannot_be_written_fails_and_the_others_go_on(tmp_path: Path, copy: Copy):
    (tmp_path / "logs" / "a.log").mkdir(parents=True)
    endings = run_steps(tmp_path, steps(copy("a", "first"), copy("b", "first", "a"), copy("c", "first")), 1)
    assert "a.log" in str(endings["a"].failure)
    assert (endings["b"].failure, endings["c"].failure) == ("a failed", None)


def test_a_failure_is_told_with_its_log_and_stops_only_what_needs_it(
    tmp_path: Path, copy: Copy, capsys: pytest.CaptureFixture[str]
):
    asked = steps(copy("a", "absent"), copy("b", "first", "a"), copy("c", "first", "b"), copy("d", "first"))
    endings = run_steps(tmp_path, asked, 1)
    assert "No such file" in str(endings["a"].failure)
    assert str(tmp_path / "logs" / "a.log") in str(endings["a"].failure)
    assert [endings[name].failure for name in "bcd"] == ["a failed", "b failed", None]
    assert not (tmp_path / "b").exists()
    assert "[1/4] a: failed" in capsys.readouterr().out
    (tmp_path / "absent").write_text("{}", encoding="utf-8")
    endings = run_steps(tmp_path, asked, 1)  # the same again tries what failed
    assert not any(ending.failure for ending in endings.values())


def test_a_marker_of_another_command_is_refused_with_the_difference(tmp_path: Path, copy: Copy):
    run_steps(tmp_path, steps(copy("a", "first")), 1)
    changed = Step("a", ("json.tool", str(tmp_path / "other"), str(tmp_path / "a")))
    with pytest.raises(UserError, match=r"its step a was run with \S+/first and not with \S+/other"):
        ending_of(tmp_path, changed)
    assert json.loads(marker(tmp_path, "a").read_text())["command"][0] == "json.tool"


def test_what_only_measures_is_run_again_where_its_command_has_changed(tmp_path: Path):
    """A metric's model that is named later must cost no training."""
    path = marker(tmp_path, "a")
    path.parent.mkdir()
    for module, again in (("urg.evaluate", True), ("data_pipeline.stats", True), ("urg.train", False)):
        path.write_text(json.dumps({"command": [module, "--seed", "0"], "seconds": 1.0}), encoding="utf-8")
        changed = Step("a", (module, "--seed", "0", "--bleurt_model", "B"))
        assert ending_of(tmp_path, Step("a", (module, "--seed", "0"))) is not None
        if again:
            assert ending_of(tmp_path, changed) is None
        else:
            with pytest.raises(UserError, match="holds another reproduction"):
                ending_of(tmp_path, changed)


def test_a_marker_tells_the_commit_and_the_data(tmp_path: Path, copy: Copy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("URG_GIT_COMMIT", "abc")
    step = copy("a", "first")
    ended = run_steps(tmp_path, steps(step), 1, lambda: "key")["a"]
    assert ended == ending_of(tmp_path, step)
    assert (ended.commit, ended.data) == ("abc", "key")


def test_a_step_that_takes_up_what_another_keeps_goes_after_it_where_both_run(tmp_path: Path, copy: Copy):
    late = replace(copy("a", "first"), after=("b", "absent"))
    asked = steps(late, copy("b", "first"))
    assert with_needs(asked, ["a"]) == {"a": late}
    endings = run_steps(tmp_path, asked, 2)
    assert endings["a"].began >= endings["b"].began + endings["b"].seconds - 0.1
    assert run_steps(tmp_path / "alone", steps(late), 1)["a"].failure is None


REPRODUCTION = """
import pathlib, sys
from tuning.reproduction.steps import Step, run_steps
root = pathlib.Path(sys.argv[1])
step = Step("slow", ("slow", str(root)))
print(run_steps(root, {"slow": step}, 1)["slow"].failure)
"""
SLOW = """
import os, pathlib, signal, sys, time
root = pathlib.Path(sys.argv[1])
def ended(*_):
    while not (root / "written").exists():  # as a training that writes its checkpoint
        time.sleep(0.05)
    (root / "told to end").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, ended)
if (root / "began").exists():
    sys.exit(0 if (root / "told to end").exists() or sys.platform != "linux" else "two at once")
(root / "began").write_text(str(os.getpid()))
time.sleep(60 if sys.platform == "linux" else 3)
"""


@pytest.mark.parametrize("killed_by", [signal.SIGKILL, signal.SIGTERM])
def test_the_steps_of_a_killed_reproduction_end_and_the_next_one_waits_for_them(
    tmp_path: Path, killed_by: signal.Signals
):
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), str(tmp_path)])}
    command = [sys.executable, "-c", REPRODUCTION, str(tmp_path)]
    first = subprocess.Popen(command, cwd=tmp_path, env=environment)
    while not (tmp_path / "began").exists() or not (tmp_path / "began").read_text():
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(killed_by)
    first.wait()
    second = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    begun, waits = (second.stdout.readline() for _ in range(2))
    (tmp_path / "written").touch()
    assert (begun[:10], waits) == ("[1/1] slow", "slow: waiting for the process of an earlier session\n")
    assert second.communicate(timeout=50)[0].splitlines()[-1] == "None"  # it did not begin beside the other one


ON_A_CLUSTER = """
import os, pathlib, sys
import ray
from tuning.reproduction.steps import Step, run_steps
context = ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
os.environ |= {"RAY_ADDRESS": context.address_info["address"], "CUDA_VISIBLE_DEVICES": "", "OURS": "1"}
asked = [Step("there", ("show",), gpu=True), Step("bad", ("absent",), gpu=True)]
for name, ending in run_steps(pathlib.Path(sys.argv[1]), {step.name: step for step in asked}, 2).items():
    print(name, ending.failure)
"""


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_step_that_needs_a_gpu_runs_on_a_node_that_has_one(tmp_path: Path):
    """A cluster that claims a GPU, of which the process is told, beside what this one is told. A failure comes back."""
    (tmp_path / "show.py").write_text(
        "import os; print(*map(os.environ.get, ('CUDA_VISIBLE_DEVICES', 'OURS')))", encoding="utf-8"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CUDA_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[3]), str(tmp_path)])
    command = [sys.executable, "-c", ON_A_CLUSTER, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "there None" in done.stdout.splitlines(), done.stderr
    assert "No module named absent" in done.stdout
    assert (tmp_path / "logs" / "there.log").read_text(encoding="utf-8") == "0 1\n"


def test_a_marker_that_does_not_say_when_its_step_began_was_written_at_its_end(tmp_path: Path, copy: Copy):
    step, path = copy("a", "first"), marker(tmp_path, "a")
    path.parent.mkdir()
    path.write_text(json.dumps({"command": step.command, "seconds": 60.0}), encoding="utf-8")
    os.utime(path, (5000, 5000))
    assert ending_of(tmp_path, step) == Ending(60.0, began=4940.0)


def test_options_are_what_a_shell_would_be_given():
    assert options({"a.b": 0.5, "c": "x", "d": {"e": [1]}, "f": False}) == [
        *("--a.b", "0.5", "--c", "x", "--d", '{"e": [1]}', "--f", "false")
    ]
