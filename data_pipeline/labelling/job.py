"""One labelling: its files, the passes over them, and the names under which finished work is found again.

<output>/                  the labelled set: <split>-00000-of-00003.jsonl …, records/, and manifest.json
.<output>.work/            beside it while it is made: what is finished stays there when a run is killed
    sources/               input that was no plain lines, as such
    scores-<key>/          a pass's scores, a file a shard
    verdicts-<key>/        the judge's
    judge.jsonl            every answer of the judge
    output/                the set, renamed into place at the end
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.conversion import InputFile, key, plain_lines
from data_pipeline.errors import UserError
from data_pipeline.labelling.config import LabelConfig
from data_pipeline.lines import byte_ranges
from data_pipeline.quality.metrics import METRICS
from data_pipeline.quality.model_folder import MetricModel, fingerprint, require_model
from data_pipeline.shard_writing import file_sha256
from data_pipeline.shards import MANIFEST
from data_pipeline.sources import list_source, shown_input

if TYPE_CHECKING:
    from data_pipeline.survey import Survey

VERSION = 2  # of the set's layout and of how all scores are computed: raised, finished work is not taken for today's
METRIC_VERSIONS = {"reward": 2}  # of how one metric is computed: raised, what was finished with it is not
JOURNAL = "judge.jsonl"


@dataclass(frozen=True)
class Pass:
    """Metrics that one pool of actors computes: those without a model together, the others one by one."""

    name: str
    fields: Mapping[str, Sequence[str]]
    models: Mapping[str, MetricModel]
    folder: str


@dataclass(frozen=True)
class LabelJob:
    """A configuration with what it names found. digests: of the files' lines; fingerprints: of the metrics' models."""

    config: LabelConfig
    files: Sequence[InputFile]
    digests: Sequence[str]
    fingerprints: Mapping[str, str]

    @property
    def key(self) -> str:
        """What stands for input, metrics, models and settings that decide scores; not for how fast they come."""
        return key([self._rows_key, [each.folder for each in self.passes()], self.judge_folder])

    @property
    def _rows_key(self) -> list[Any]:
        sources = [(file.split, file.path.name, sha) for file, sha in zip(self.files, self.digests, strict=True)]
        config = self.config
        return [VERSION, sources, config.rows_per_shard, config.log_scale_scores, config.overwrite]

    def passes(self) -> list[Pass]:
        """The passes, in the order of the table of metrics."""
        fields, models = self.config.fields(), self.config.metric_models()
        plain = [name for name in fields if not METRICS[name].needs_model]
        groups = [plain] if plain else []
        groups += [[name] for name in fields if METRICS[name].needs_model]
        return [self._pass({name: fields[name] for name in group}, models) for group in groups]

    def _pass(self, fields: Mapping[str, Sequence[str]], models: Mapping[str, MetricModel]) -> Pass:
        facts: list[Any] = [self._rows_key, fields, self.config.dtype, [self.fingerprints.get(name) for name in fields]]
        versions = {name: METRIC_VERSIONS[name] for name in fields if name in METRIC_VERSIONS}
        if versions:  # else the key is as it was before there were any
            facts.append(versions)
        named = {name: models[name] for name in fields}
        return Pass(", ".join(fields), fields, named, f"scores-{key(facts)}")

    @property
    def judge_folder(self) -> str:
        """The folder of the judge's verdicts; "" where nobody judges."""
        judge = self.config.judge
        if not self.config.judges or judge is None:
            return ""
        facts = [judge.model, judge.base_url, judge.system, judge.parameters, self.config.judge_template]
        return f"verdicts-{key([self._rows_key, facts])}"

    def tasks(self, survey: Survey) -> list[dict[str, Any]]:
        """The shards: split, name (without its ending), and the places of their rows."""
        tasks = []
        for split, places in survey.places.items():
            shards = list(places.shards(self.config.rows_per_shard))
            for index, shard in enumerate(shards):
                tasks.append({"split": split, "name": f"{split}-{index:05d}-of-{len(shards):05d}", **shard})
        return tasks


def find_job(config: LabelConfig) -> LabelJob:
    """Find the rows and the models that `config` names; its work folder must be locked.

    Raises `UserError` where one is not there.
    """
    found = list_source(config.input)
    models = {name: model for name, model in config.metric_models().items() if METRICS[name].needs_model}
    for name, model in models.items():
        try:
            require_model(name, model.name, METRICS[name].kind)
        except UserError as error:
            raise UserError(f"{str(error).removesuffix('.')}: --models.{name} FOLDER names another.") from error
        if model.weights and not Path(model.weights).expanduser().is_file():
            raise UserError(f"There is no file {model.weights} of weights for {name}; see weights.{name}.")
    files = [plain_lines(file, config.work) for file in found]
    byte_ranges([file.path for file in files], size=1 << 30)
    prints = {name: fingerprint(model.name, model.weights) for name, model in models.items()}
    return LabelJob(config, files, [file_sha256(file.path) for file in files], prints)


def is_done(job: LabelJob) -> bool:
    """Whether the output holds this very set, whole. Raises `UserError` where it holds anything else."""
    output = job.config.folder
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        key, shards = manifest["key"], [shard for split in manifest["splits"].values() for shard in split["shards"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{output} holds something else than a labelled set; name another output.") from None
    if key != job.key:
        raise UserError(
            f"{output} holds rows that were labelled otherwise; name another output"
            f" (--input {output} takes its labels along)."
        )
    for shard in shards:
        path = output / shard["file"]
        if not path.is_file() or file_sha256(path) != shard["sha256"]:
            raise UserError(f"{path} is not as it was written; remove {output} and label again.")
    return True


def sweep(config: LabelConfig) -> None:
    """Remove the work folder where a next run misses nothing of it: the set is in place, or nothing was finished."""
    finished = [*config.work.glob("scores-*/*.json"), *config.work.glob(JOURNAL)]
    if (config.folder / MANIFEST).is_file() or not any(path.stat().st_size for path in finished):
        shutil.rmtree(config.work, ignore_errors=True)


def settings(config: LabelConfig) -> dict[str, Any]:
    """The configuration for the manifest, without what a URL may hold of passwords; keys are never a part of it."""
    return asdict(config) | {"input": shown_input(config.input)}
