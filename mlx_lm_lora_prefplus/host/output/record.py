"""`run.json` in the adapter folder: the settings, data and package versions of a run."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from ... import __version__
from ...data import Split
from ...data.statistics import length_bias
from ...engine.files.names import RECORD, REFERENCE_DIGEST
from ...settings import DataSettings, RunSettings
from ...storage.atomic import RESUME, whole_file
from ..config.resolve import Resolved, defaults_of
from .previous import PREVIOUS_KEY

FORMAT = 1
"""Format version. Increase it when a key changes its meaning."""


def write_record(
    folder: Path,
    resolved: Resolved,
    iters: int,
    splits: Mapping[str, Split],
    summary: Sequence[str],
    warnings: Sequence[str],
    reference: str | None,
    previous: str | None = None,
) -> None:
    """Write the settings with their sources, the data reports and the package versions to `run.json`.

    A resumed run writes the file again.

    reference: a digest of the reference's weights; None if there is no reference or its weights are unknown.
    previous: the subfolder with the files of earlier runs.
    summary, warnings: what was printed at the start. The lines of the summary have the form `Name: text`.

    Raises:
        UserError: The file cannot be written.
    """
    reports = {
        name: {**dataclasses.asdict(split.report), "length_bias": length_bias(split.rows)}
        for name, split in splits.items()
    }
    content = {
        "format": FORMAT,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "iters": iters,
        PREVIOUS_KEY: previous,
        "summary": list(summary),
        "warnings": list(warnings),
        "settings": settings_of(resolved),
        REFERENCE_DIGEST: reference,
        "data": reports,
        "versions": {
            "mlx-lm-lora-prefplus": __version__,
            **{name: version(name) for name in ("mlx-lm-lora", "mlx-lm", "mlx")},
            "python": platform.python_version(),
        },
        "device": f"{mx.default_device().type.name}, {mx.device_info().get('device_name', platform.machine())}",
    }
    with whole_file(folder / RECORD, RESUME) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str), encoding="utf-8")


def settings_of(resolved: Resolved) -> dict[str, dict[str, Any]]:
    """Return key → value, source and (if the value was set) default, for every key of the mode."""
    options = [field.name for field in dataclasses.fields(resolved.options)]
    keys = dict.fromkeys([*RunSettings.model_fields, *DataSettings.model_fields, *options])
    defaults = defaults_of(resolved.trainer, resolved.options)
    settings = {}
    for key in keys:
        if key in resolved.values:
            source = resolved.sources.get(key, "")
            settings[key] = {"value": resolved.values[key], "source": source}
            if key in defaults and resolved.set_by_user(key):
                settings[key]["default"] = defaults[key]
    return settings
