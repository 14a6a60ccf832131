"""Show the settings of runs: those that differ from the default first, and those that differ between runs."""

import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from ..engine.files.names import REFERENCE_DIGEST
from ..settings import Effect, keys_with
from .drawing.elements import code, folded, format_value, per_run, section, short_name, table
from .results.runs import RunRecord, mapping, texts

DEFAULTS = ("host default", "trainer default")
"""Sources of default values."""

NO_DIFFERENCE = {*keys_with(Effect.SHOWS), "adapter_path", "resume"}
"""Settings that do not affect the result of a run."""

CONTENT = "weights of the reference (digest)"

CACHED = re.compile(r", \d+ of \d+ rows from the cache")

UNKNOWN = object()


class Setting(NamedTuple):
    """value: in the run. source: where the value was set. default: `UNKNOWN` if an older run did not record the
    default.
    """

    value: Any
    source: str
    default: Any = UNKNOWN

    @property
    def is_default(self) -> bool:
        if self.default is UNKNOWN:
            return self.source in DEFAULTS
        return format_value(self.value) == format_value(self.default)


def settings_of(run: RunRecord) -> dict[str, Setting]:
    """Return the settings of a run by key. The content of its reference is listed as a further setting."""
    settings = {}
    for key, entry in mapping(run.about.get("settings")).items():
        entry = entry if isinstance(entry, dict) and "value" in entry else {"value": entry}
        settings[key] = Setting(entry["value"], str(entry.get("source", "")), entry.get("default", UNKNOWN))
    if digest := run.about.get(REFERENCE_DIGEST):
        settings[CONTENT] = Setting(str(digest)[:16], "its weights, at the start of the run")
    return settings


def summary_of(run: RunRecord) -> dict[str, str]:
    """Return the lines that the run printed at its start: name → text."""
    lines = (line.partition(": ") for line in texts(run.about.get("summary")))
    return {name: text for name, _, text in lines}


def value_of(run: RunRecord, key: str) -> Any:
    """Return the value of one setting; None if it is unknown."""
    setting = settings_of(run).get(key)
    return None if setting is None else setting.value


def settings(runs: Sequence[RunRecord]) -> str:
    """Render the settings of each run: those that differ from the default, then all others folded."""
    content = per_run(runs, _settings)
    if len(runs) > 1:
        content = folded("Settings of each run", content)
    return section("settings", "Settings", content)


def differing(runs: Sequence[RunRecord]) -> str:
    """Render the settings that are not the same in all runs. Empty if there are none, or if the record of a run is
    missing.
    """
    values = [settings_of(run) for run in runs]
    keys = {key: None for one in values for key in one if key not in NO_DIFFERENCE}
    differ = [key for key in keys if _differs([one.get(key) for one in values])]
    if not all(run.about.get("versions") for run in runs):
        return "<p>The settings of some runs are not known (no run.json), so they are not compared.</p>"
    if not differ:
        return "<p>All settings that affect the result are the same.</p>"
    heads = ("setting", *(short_name(run) for run in runs))
    rows = [
        [f"<code>{escape(key)}</code>", *(code(one[key].value) if key in one else "–" for one in values)]
        for key in differ
    ]
    return f"<h3>Settings that differ</h3>{table(heads, rows)}"


def _differs(values: Sequence[Setting | None]) -> bool:
    """Return whether runs differ in a setting. A run whose mode lacks it counts as one with the default."""
    known = [setting for setting in values if setting]
    if len({format_value(setting.value) for setting in known}) > 1:
        return True
    return len(known) < len(values) and not all(setting.is_default for setting in known)


def _settings(run: RunRecord) -> str:
    known = sorted((key, setting) for key, setting in settings_of(run).items() if key != CONTENT)
    changed = [(key, setting) for key, setting in known if not setting.is_default]
    defaults = [(key, setting) for key, setting in known if setting.is_default and setting.value is not None]
    unset = sum(setting.is_default and setting.value is None for _, setting in known)
    content = f"<h4>Printed at the start</h4>{summary}" if (summary := _summary(run)) else ""
    if changed:
        content += "<h4>Different from the default</h4>" + table(
            ("setting", "value", "default", "set by"),
            [[_key(key), code(one.value), _default(one), escape(one.source)] for key, one in changed],
        )
    elif not known:
        content += "<p>The settings are not known.</p>"
    if defaults:
        rows = [[_key(key), code(one.value), escape(one.source)] for key, one in defaults]
        rest = f"; {unset} more have no value" if unset else ""
        content += folded(f"Equal to the default ({len(defaults)}{rest})", table(("setting", "value", "from"), rows))
    return content


def _key(key: str) -> str:
    return f"<code>{escape(key)}</code>"


def _default(setting: Setting) -> str:
    return "" if setting.default is UNKNOWN else code(setting.default)


def _summary(run: RunRecord) -> str:
    """Render the lines that the run printed at its start, except those that concern only its speed."""
    rows = [
        f"<dt>{escape(name)}</dt><dd>{escape(CACHED.sub('', text))}</dd>"
        for name, text in summary_of(run).items()
        if name != "Engine"  # the section of versions shows it
    ]
    return f'<dl class="summary">{"".join(rows)}</dl>' if rows else ""
