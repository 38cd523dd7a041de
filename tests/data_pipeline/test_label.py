"""The whole command: rows in, labelled rows out, on Ray and without it, disturbed and undisturbed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import endpoint as client
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import UserError
from data_pipeline.label import label, main
from data_pipeline.labelling import scoring, stages
from data_pipeline.labelling.config import LabelConfig
from data_pipeline.labelling.judge import A_BETTER, B_BETTER, SAME_GOOD
from data_pipeline.models import Endpoint
from data_pipeline.plan import Actors
from data_pipeline.prepare import prepare
from data_pipeline.quality.metrics import METRICS, Scorer
from data_pipeline.quality.model_folder import MetricModel
from data_pipeline.shards import ShardSet
from tests.data_pipeline.chat_server import Request, chat_server, refuse, say
from tests.data_pipeline.tiny_models import save_bart, save_gpt, save_regressor

Rows = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]
MODELS = {"bartscore": save_bart, "bleurt": save_regressor, "reward": save_regressor, "reference_logprob": save_gpt}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """metric → a tiny random model for it."""
    root = tmp_path_factory.mktemp("models")
    folders = {save: save(root / save.__name__) for save in set(MODELS.values())}
    return {name: folders[save] for name, save in MODELS.items()} | {"candidate_logprob": folders[save_gpt]}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., LabelConfig]:
    """config(input, metrics, **changes): small shards, output in tmp_path/labelled."""

    def make(source: Any, metrics: str, **changes: Any) -> LabelConfig:
        settings = {"output": str(tmp_path / "labelled"), "rows_per_shard": 4, **changes}
        return LabelConfig(source if isinstance(source, dict) else str(source), metrics=metrics, **settings)

    return make


def read(folder: Path, split: str = "rows") -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob(f"{split}-*")) for line in path.read_text().splitlines()]


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


def scores(rows: list[dict[str, Any]], name: str) -> list[float | None]:
    return [candidate["scores"].get(name) for row in rows for candidate in row["candidates"]]


BAD_LINES = [b'{"id": "x", ', b"[]", b'{"id": "n", "instruction": "q", "candidates": []}']


def test_labels_are_added_and_all_else_stays(
    without_ray: None, config: Callable[..., LabelConfig], make_rows: Rows, write_rows: Write, models: dict[str, str]
):
    rows = make_rows(9)
    rows[0]["more"] = {"kept": ["\ud800", None]}
    rows[1]["candidates"][0] |= {"scores": None, "own": 1}
    path = write_rows("rows.jsonl", [*rows[:4], *BAD_LINES, b"", *rows[4:], rows[0]])
    folder = label(
        config(path, "bleu,rouge2,bartscore,bleurt,reference_logprob,candidate_logprob,reward", models=models)
    )
    labelled, facts = read(folder), manifest(folder)
    names = {"bleu", "rouge2", "bartscore", "bleurt", "reward", "reference_logprob", "reference_logprob_sum"}
    names |= {"candidate_logprob", "candidate_logprob_sum"}
    assert set(facts["labels"]) == names
    assert all(None not in scores(labelled, name) for name in names)
    assert facts["labels"]["bartscore"]["kept"] == 26  # all but the one that was null
    assert facts["labels"]["bleu"]["computed"] == 27
    for before, after in zip(rows, labelled, strict=True):
        for one, other in zip(before["candidates"], after["candidates"], strict=True):
            old = one["scores"] or {}
            assert {name: other["scores"][name] for name in old} == old
            one["scores"] = other["scores"] = None
        assert before == after
    assert facts["totals"] == {
        "input": 13,
        "kept": 9,
        "rejected": {"bad_json": 1, "duplicate_id": 1, "no_candidates": 1, "not_an_object": 1},
    }
    quarantine = [json.loads(line) for line in (folder / "records" / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in quarantine] == [
        (5, "bad_json"),
        (6, "not_an_object"),
        (7, "no_candidates"),
        (14, "duplicate_id"),
    ]
    assert [shard["rows"] for shard in facts["splits"]["rows"]["shards"]] == [4, 4, 1]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["labelled", "rows.jsonl"]


def test_what_has_no_score_is_missing_and_counted_never_zero(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    models: dict[str, str],
    capsys: pytest.CaptureFixture[str],
):
    rows = make_rows(4)
    rows[0]["output"] = " "
    rows[1]["candidates"][2]["text"] = "\n"
    rows[2]["output"] = "Привет"
    rows[3]["candidates"][0]["scores"]["bartscore"] = 0.0  # MixInstruct's way to say that nobody computed it
    main(config(write_rows("a.jsonl", rows), "rougeL,bartscore,reward", models=models, overwrite=False))
    told, folder = capsys.readouterr().out, Path(config("x", "bleu").output)
    labelled, labels = read(folder), manifest(folder)["labels"]
    assert [labels["reward"][name] for name in ("computed", "empty_text")] == [11, 1]
    assert labels["bartscore"] == {**labels["bartscore"], "computed": 1, "kept": 11}
    assert labelled[3]["candidates"][0]["scores"]["bartscore"] < -0.5
    assert "reward" not in labelled[1]["candidates"][2]["scores"]
    assert "bartscore: 1 computed, 11 kept, missing: none" in told
    for row in rows:
        for candidate in row["candidates"]:
            candidate["scores"] = {}
    other = str(folder.with_name("other"))
    main(config(write_rows("a.jsonl", rows), "rougeL,bleu", output=other))
    assert "rougeL: 5 computed, 0 kept, missing: empty_text 1, no_reference 3, not_defined 3" in capsys.readouterr().out
    missing = [scores([row], "rougeL").count(None) for row in read(Path(other))]
    assert missing == [3, 1, 3, 0]


def test_labels_live_beside_each_other_and_are_not_computed_twice(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    path = write_rows("a.jsonl", make_rows(5))
    first = label(config(path, "bleu", output=str(tmp_path / "first")))
    second = label(config(first, "bleu,rouge1", output=str(tmp_path / "second")))
    assert manifest(second)["labels"]["bleu"] == {**manifest(second)["labels"]["bleu"], "kept": 15}
    assert scores(read(second), "bleu") == scores(read(first), "bleu")
    assert None not in scores(read(second), "rouge1")
    rows = read(second)
    for candidate in rows[0]["candidates"]:
        candidate["scores"]["bleu"] = -1.0
    wrong = write_rows("wrong.jsonl", rows)
    assert scores(read(label(config(wrong, "bleu", output=str(tmp_path / "kept")))), "bleu")[:3] == [-1.0] * 3
    anew = label(config(wrong, "bleu", output=str(tmp_path / "anew"), overwrite=True))
    assert scores(read(anew), "bleu") == scores(read(first), "bleu")
    assert manifest(anew)["labels"]["bleu"]["computed"] == 15


def test_overwriting_takes_away_a_score_that_cannot_be_computed(
    without_ray: None, config: Callable[..., LabelConfig], make_rows: Rows, write_rows: Write
):
    rows = make_rows(2)
    rows[0]["output"] = ""
    for row in rows:
        for candidate in row["candidates"]:
            candidate["scores"] = {"bleu": 50.0, "own": 1.0}
    folder = label(config(write_rows("a.jsonl", rows), "bleu", overwrite=True))
    labelled, told = read(folder), manifest(folder)["labels"]["bleu"]
    assert scores(labelled[:1], "bleu") == [None] * 3
    assert set(scores(labelled, "own")) == {1.0}
    assert (told["computed"], told["no_reference"]) == (3, 3)
    assert [of["values"] for of in told["models"].values()] == [1, 1, 1]
    assert told["mean"] == pytest.approx(sum(scores(labelled[1:], "bleu")) / 3)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nSee …"), IndexError("index out of range in self")],
)
def test_a_metric_that_fails_says_so_and_what_is_done_is_kept(
    error: Exception,
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    calls: list[int] = []

    def load(model: MetricModel) -> Scorer:
        def score(items: Any) -> Any:
            calls.append(len(items))
            if len(calls) == 2:
                raise error
            return {"reward": [1.0] * len(items)}

        return score

    monkeypatch.setitem(METRICS, "reward", replace(METRICS["reward"], load=load))
    path = write_rows("a.jsonl", make_rows(9))
    with pytest.raises(UserError) as told:
        label(config(path, "reward", models=models))
    first = str(error).split("\n")[0].rstrip(".")
    assert f"reward fails on shard rows-00001-of-00003 ({type(error).__name__}: {first}); " in str(told.value)
    assert str(told.value).endswith("finished shards are kept, and the same command goes on from there.")
    label(config(path, "reward", models=models, batch_tokens=16))
    assert "reward: 9 rows, 4 of them done before" in capsys.readouterr().out


def test_actors_that_die_are_told_and_a_bug_keeps_its_traceback(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    monkeypatch: pytest.MonkeyPatch,
):
    from ray.exceptions import ActorDiedError, RayTaskError

    def failing(error: Exception) -> Callable[..., Any]:
        def on_actors(*_: Any) -> Any:
            raise error

        return on_actors

    path, bug = write_rows("a.jsonl", make_rows(2)), RayTaskError("work", "Traceback …", ValueError("a bug"))
    monkeypatch.setattr(stages, "on_actors", failing(ActorDiedError()))
    with pytest.raises(UserError, match=r"bleu has lost its actors \(.*\); lower batch_tokens or actors"):
        label(config(path, "bleu"))
    monkeypatch.setattr(stages, "on_actors", failing(bug))
    with pytest.raises(RayTaskError):
        label(config(path, "bleu"))


def test_a_model_is_loaded_once_in_an_actor_and_only_where_a_row_needs_it(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    loaded: list[str] = []

    def load(model: MetricModel) -> Scorer:
        loaded.append(model.name)
        return lambda items: {"reward": [float(len(item.text)) for item in items]}

    monkeypatch.setitem(METRICS, "reward", replace(METRICS["reward"], load=load))
    path = write_rows("a.jsonl", make_rows(9))
    first = label(config(path, "reward", models=models, rows_per_shard=2))  # five shards, one after the other
    assert loaded == [models["reward"]]
    label(config(first, "reward", models=models, output=str(tmp_path / "again")))
    assert len(loaded) == 1


def test_only_metrics_with_a_model_get_the_actors_share_of_a_gpu(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
):
    pools: list[Actors] = []

    def on_actors(tasks: Any, work: Any, actors: Actors) -> Any:
        pools.append(actors)
        return map(work, tasks)

    def load(model: MetricModel) -> Scorer:
        assert model.device == "cuda"
        return lambda items: {"reward": [1.0] * len(items)}

    monkeypatch.setattr(stages, "on_actors", on_actors)
    monkeypatch.setitem(METRICS, "reward", replace(METRICS["reward"], load=load))
    settings = {"actors": 2, "num_gpus": 0.5, "cpus_per_actor": 0.25}
    label(config(write_rows("a.jsonl", make_rows(9)), "bleu,reward", models=models, **settings))
    assert pools == [Actors(2, 0.25, 0.0), Actors(2, 0.25, 0.5), Actors(2, 0.25, 0.0)]  # the last writes the rows


def test_prepare_reads_the_labelled_rows_as_they_are(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    tokenizer_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    source = write_rows("source/train.jsonl", make_rows(9)).parent
    write_rows("source/val.jsonl", [*make_rows(3, "val"), *BAD_LINES])
    main(config(source, "rouge1,bleu"))
    folder = tmp_path / "labelled"
    assert f"next: python -m data_pipeline.prepare --input {folder} " in capsys.readouterr().out
    shards = ShardSet.open(prepare(PrepareConfig(str(folder), str(tmp_path / "out"), str(tokenizer_folder))))
    assert {name: len(shards.split(name)) for name in shards.splits} == {"train": 9, "dev": 3}
    assert shards.score_names == ("bartscore", "bleu", "rouge1", "rougeL")
    assert shards.split("train").has_label("bleu") == 9
    with pytest.raises(UserError, match=r"has the score bertscore; .*python -m data_pipeline\.label --metrics bert"):
        shards.split("train").has_label("bertscore")


def test_compressed_rows_are_labelled_too(
    without_ray: None, config: Callable[..., LabelConfig], make_rows: Rows, write_rows: Write, tmp_path: Path
):
    path = write_rows("a.jsonl", make_rows(3))
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    folder = label(config(packed, "bleu"))
    assert content(folder) == content(label(config(path, "bleu", output=str(tmp_path / "plain"))))
    assert [source["file"] for source in manifest(folder)["sources"]] == [str(packed)]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl.gz", "labelled", "plain"]


def test_without_a_train_split_the_next_command_names_the_files(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    capsys: pytest.CaptureFixture[str],
):
    main(config({"test": str(write_rows("a.jsonl", make_rows(2)))}, "bleu"))
    assert "--input.test '" in capsys.readouterr().out.splitlines()[-1]


def test_a_killed_run_goes_on_where_it_was(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    path, names = write_rows("a.jsonl", make_rows(10)), "bleu,reward,bleurt"
    whole = label(config(path, names, models=models, output=str(tmp_path / "whole")))
    done: list[str] = []
    real = scoring.write_whole

    def write(path: Path, text: str) -> None:
        if len(done) % 3 == 2:
            done.append("killed")
            raise KeyboardInterrupt
        done.append(path.name)
        real(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "write_whole", write)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                label(config(path, names, models=models))
    assert not (tmp_path / "labelled").exists()
    capsys.readouterr()
    folder = label(config(path, names, models=models, actors=2, batch_tokens=50))
    assert "reward: 10 rows, 8 of them done before" in capsys.readouterr().out
    assert done.count("killed") == 4
    rows = read(whole)
    for name in ("bleu", "reward", "bleurt"):
        assert scores(read(folder), name) == pytest.approx(scores(rows, name), abs=1e-6)
    assert not list(tmp_path.glob(".*"))


def test_a_rerun_does_nothing_and_another_set_is_never_replaced(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    path = write_rows("a.jsonl", make_rows(5))
    folder = label(config(path, "bleu"))
    before = content(folder)
    capsys.readouterr()
    assert label(config(path, "bleu", actors=2)) == folder
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"labelled otherwise; name another output \(--input .*labelled takes"):
        label(config(path, "rouge1"))
    with pytest.raises(UserError, match="labelled otherwise"):
        label(config(folder, "bleu"))
    assert content(folder) == before
    (folder / "rows-00000-of-00002.jsonl").write_text("")
    with pytest.raises(UserError, match="is not as it was written"):
        label(config(path, "bleu"))
    with pytest.raises(UserError, match="something else than a labelled set"):
        label(config(path, "bleu", output=str(tmp_path)))


def test_a_full_disk_says_so_and_keeps_what_is_done(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    path = write_rows("a.jsonl", make_rows(5))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "write_manifest", full)
        with pytest.raises(UserError, match="No space left on device"):
            label(config(path, "bleu"))
    assert not (tmp_path / "labelled").exists()
    assert len(read(label(config(path, "bleu")))) == 5


def test_bad_input_is_one_clear_sentence(
    without_ray: None, config: Callable[..., LabelConfig], make_rows: Rows, write_rows: Write, tmp_path: Path
):
    path = write_rows("a.jsonl", make_rows(2))
    with pytest.raises(UserError, match=r"no valid row in the input \(rejected: bad_json 1, no_candidates 1, n"):
        label(config(write_rows("bad.jsonl", BAD_LINES), "bleu"))
    with pytest.raises(UserError, match="There is no file at"):
        label(config(tmp_path / "none.jsonl", "bartscore", models={"bartscore": "/no/such"}))
    with pytest.raises(UserError, match=r"no model folder /no/such for bartscore; .*: --models.bartscore FOLDER names"):
        label(config(path, "bartscore", models={"bartscore": "/no/such"}))
    with pytest.raises(UserError, match="no model folder for bartscore: it has no config"):
        label(config(path, "bartscore", models={"bartscore": str(tmp_path)}))
    bart = save_bart(tmp_path / "bart")
    with pytest.raises(UserError, match=r"no file /no/such.pth of weights for bartscore; see weights\.bartscore"):
        label(config(path, "bartscore", models={"bartscore": bart}, weights={"bartscore": "/no/such.pth"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "bad.jsonl", "bart"]


def test_a_label_that_no_row_can_have_is_told(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    capsys: pytest.CaptureFixture[str],
):
    rows = [{**row, "output": ""} for row in make_rows(2)]
    main(config(write_rows("a.jsonl", rows), "bleu"))
    assert "bleu: 0 computed, 0 kept, missing: no_reference 6; no row has it" in capsys.readouterr().out


@pytest.mark.timeout(300)
def test_a_judge_writes_comparisons_and_none_is_paid_for_twice(
    without_ray: None,
    config: Callable[..., LabelConfig],
    make_rows: Rows,
    write_rows: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    rows = make_rows(5)
    rows[0]["cmp_results"] = json.dumps({"model-1,model-0": SAME_GOOD})
    path = write_rows("a.jsonl", rows)

    def longer(request: Request) -> Any:
        first, second = request.question.split("[Answer A]\n")[1].split("\n\nWhich")[0].split("\n\n[Answer B]\n")
        return say(A_BETTER if len(first) > len(second) else B_BETTER if len(first) < len(second) else SAME_GOOD)

    with chat_server() as server:
        judge = Endpoint("j", server.url, "m", api_key_env="JUDGE_KEY", retries=0, give_up_after=1, concurrency=1)
        server.reply = lambda request: longer(request) if request.number < 11 else refuse(503)
        with pytest.raises(UserError, match=r"judge j does not answer \(.*HTTP 503"):
            label(config(path, "bleu,judge", judge=judge))
        asked = server.questions[:11]
        server.reply = longer
        server.requests.clear()
        main(config(path, "bleu,judge", judge=judge))
        assert len(server.requests) == 2 * 14 - 11
        assert not {*asked} & {*server.questions}
    folder = tmp_path / "labelled"
    for row in read(folder):
        lengths = {candidate["model"]: len(candidate["text"]) for candidate in row["candidates"]}
        assert len(json.loads(row["cmp_results"])) == 3
        for pair, verdict in json.loads(row["cmp_results"]).items():
            a, b = (lengths[name] for name in pair.split(","))
            assert verdict == SAME_GOOD if (row["id"], pair) == ("row/0", "model-1,model-0") else (
                A_BETTER if a > b else B_BETTER if a < b else SAME_GOOD
            )  # fmt: skip
    facts = manifest(folder)
    assert facts["judge"]["pairs"] == {"computed": 14, "kept": 1}
    assert sum(facts["judge"]["verdicts"].values()) == 15
    assert "pairs by j: 14 computed, 1 kept" in capsys.readouterr().out
    assert len((folder / "records" / "judge.jsonl").read_text().splitlines()) == 28
    assert not any(b"sk-secret" in path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_on_ray_actors_as_without_them(
    make_rows: Rows, write_rows: Write, models: dict[str, str], tmp_path: Path, without_ray: None,
    config: Callable[..., LabelConfig],
):  # fmt: skip
    """The command in a process of its own: two actors, a shard each at a time; the same bytes as in this process."""
    path = write_rows("rows.jsonl", [*make_rows(20), *BAD_LINES])
    plain = label(config(path, "reward", models=models, output=str(tmp_path / "plain")))
    command = [sys.executable, "-m", "data_pipeline.label", "--input", str(path), "--metrics", "reward"]
    command += ["--output", str(tmp_path / "ray"), "--models.reward", models["reward"], "--rows_per_shard", "4"]
    done = subprocess.run(
        [*command, "--actors", "2", "--cpus_per_actor", "0.5"],
        capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reward: 20 of 20 rows" in done.stdout
    assert content(tmp_path / "ray") == content(plain)
    assert manifest(tmp_path / "ray")["labels"] == manifest(plain)["labels"]


class Deadly:
    """A scorer whose process is killed, as where the memory of a machine ends."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, task: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_breaks_in_an_actor_is_told_as_itself(
    ray_started: None, make_rows: Rows, write_rows: Write, config: Callable[..., LabelConfig], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
):  # fmt: skip
    broken = Path(save_regressor(tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no weights")
    path, models = write_rows("a.jsonl", make_rows(2)), {"reward": str(broken)}
    with pytest.raises(UserError, match=r"The reward model .*broken cannot be loaded"):
        label(config(path, "reward", models=models))
    monkeypatch.setattr(stages, "ShardScorer", Deadly)
    with pytest.raises(UserError, match=r"bleu has lost its actors \(The actor died unexpectedly .*are kept"):
        label(config(path, "bleu"))
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(UserError, match=r"One actor asks for 0\.5 GPU, but there are 0; ask for less"):
        label(config(path, "reward", models=models, num_gpus=0.5))
