"""The sweep as a saved view of MLflow's UI: its trials, best first, what was searched over in columns and charts.

As MLflow shows an experiment by itself, the trials are folded away below their parent, without a param or a metric. A
view is a tag of the experiment, in the form that the UI (3.17) itself writes when one saves a view by hand.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from typing import Any
from urllib.parse import quote

from tuning.blueprint import Blueprint

TAG = "mlflow.sharedViewState."


def view_tag(blueprint: Blueprint) -> dict[str, str]:
    """The experiment's tag that holds the view."""
    name, now = blueprint.config.name, int(time.time() * 1000)
    packed = base64.b64encode(zlib.compress(json.dumps(_state(blueprint)).encode())).decode()
    view = {"name": f"Sweep {name}", "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return {TAG + name: json.dumps(view)}


def view_link(blueprint: Blueprint, experiment_id: str) -> str:
    """Where the UI shows the view; for a database, with the command that starts the UI on its usual port."""
    from urg.tracking.loggable import redact

    place = f"#/experiments/{experiment_id}/runs?viewStateShareKey={quote(blueprint.config.name)}"
    uri = blueprint.tracking_uri
    if uri.startswith(("http://", "https://")):
        return f"{redact(uri).rstrip('/')}/{place}"
    return f"http://127.0.0.1:5000/{place} after `mlflow ui --backend-store-uri {redact(uri)}`"


def _state(blueprint: Blueprint) -> dict[str, Any]:
    from urg.tracking.loggable import clean_name

    config, keys = blueprint.config, blueprint.space.keys
    metrics = [clean_name(name) for name in config.objective]
    objectives = [f"objective/{name}" for name in metrics]
    columns = [*map(_metric, objectives), *(f"params.`{key}`" for key in keys)]
    return {
        "searchFilter": f"tags.kind = 'trial' AND tags.sweep = '{config.name}'",
        "orderByKey": _metric(objectives[0]),
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": [*columns, "tags.`trial.state`", _metric("trial/seconds"), "tags.`trial.reason`"],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [_section("together", "Parameters together", 1), _section("each", "By parameter", 3)],
        "compareRunCharts": [
            _chart("together", "PARALLEL", selectedParams=keys, selectedMetrics=objectives, showAllRuns=True),
            *(_chart("each", "LINE", metricKey=f"dev/{name}", useGlobalXaxisKey=False) for name in metrics),
            *(_chart("each", "BAR", metricKey=name) for name in objectives),
            *(
                _chart("each", "SCATTER", xaxis=_axis("PARAM", key), yaxis=_axis("METRIC", objectives[0]))
                for key in keys
            ),
        ],
        "isAccordionReordered": True,
    }


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _section(uuid: str, name: str, columns: int) -> dict[str, Any]:
    shown = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": uuid, "name": name, "columns": columns, "cardHeight": 360} | shown


def _chart(section: str, kind: str, **settings: Any) -> dict[str, Any]:
    uuid = json.dumps([section, kind, settings])
    own = {"uuid": uuid, "type": kind, "metricSectionId": section, "runsCountToCompare": 100}
    return own | {"deleted": False, "isGenerated": False} | settings


def _axis(kind: str, key: str) -> dict[str, str]:
    return {"key": key, "type": kind}
