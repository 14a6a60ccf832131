"""Write the model card, a `README.md` in the hub's format, from the record of a run."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from ..errors import UserError
from ..host.tools.describe import description_of
from ..losses import loss_names
from ..plugin.manager import load_registry
from ..report.results.evidence import accuracy_of, evidence_of
from ..report.results.intervals import of_rows
from ..report.results.runs import RunRecord, read_run
from ..report.results.verdict import verdict
from ..report.settings import DEFAULTS, summary_of
from ..storage.atomic import whole_file
from .adapter import Adapter
from .usage import usage

_MARK = re.compile(r"\n<!-- Written by mlx_lm_lora\.prefplus export, sha256 ([0-9a-f]{64})\. .*-->\n$")
_HOME = "https://pypi.org/project/mlx-lm-lora-prefplus"
_LICENSE = "license: unknown"
_LICENCE = f"""## Licence

The licence of the adapter follows from those of the base model and the data. Fill in the line `{_LICENSE}` at the top
of this file."""


def write_card(file: Path, text: str) -> bool:
    """Write the card, unless the user has written or edited the file. Returns whether it was written."""
    if file.is_file() and not _is_ours(file.read_text(encoding="utf-8", errors="replace")):
        return False
    with whole_file(file) as temporary:
        temporary.write_text(text + _mark(text), encoding="utf-8")
    return True


def _mark(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"\n<!-- Written by mlx_lm_lora.prefplus export, sha256 {digest}. An edited file is never replaced. -->\n"


def _is_ours(content: str) -> bool:
    """Return whether the content is a card that this package wrote and that nobody has edited since."""
    found = _MARK.search(content)
    return found is not None and content == (text := content[: found.start()]) + _mark(text)


def card(adapter: Adapter, form: str, base: str) -> str:
    """Return the text of the card. form: the format of the folder that the card describes. base: the base model."""
    try:
        run = read_run(adapter.folder)
    except UserError:
        run = None
    settings = _settings(run)
    mode = str(settings.get("train_mode", ("", ""))[0])
    trained = f", trained with {mode.upper()} by [mlx-lm-lora-prefplus]({_HOME})" if mode else ""
    parts = [
        f"---\n{_front_matter(adapter, form, base, mode, settings)}\n---",
        f"# {adapter.folder.resolve().name}",
        f"A {_KINDS[adapter.kind]} for `{_public(base)}`{trained}.",
        f"## How to use it\n\n{usage(form, _public(base), adapter.pictures)}",
        *(_of_run(run, mode, settings) if run else []),
        _LICENCE,
    ]
    return "\n\n".join(parts) + "\n"


_KINDS = {"lora": "LoRA adapter", "dora": "DoRA adapter", "full": "full fine-tune"}


def _front_matter(adapter: Adapter, form: str, base: str, mode: str, settings: Mapping[str, Any]) -> str:
    """Return the YAML block at the top of the card, which the hub reads."""
    dataset = settings.get("hf_dataset", (None,))[0]
    datasets = [one for one in ([dataset] if isinstance(dataset, str) else []) if _is_hub_name(one)]
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if _is_hub_name(base) else {}
    data = ModelCardData(
        base_model=base if _is_hub_name(base) else None,
        datasets=datasets or None,
        library_name=form,
        license="unknown",
        pipeline_tag="image-text-to-text" if adapter.pictures else "text-generation",
        tags=[tag for tag in (adapter.kind, mode, "preference-tuning" if mode else "", "mlx-lm-lora-prefplus") if tag],
        **relation,
    )
    return data.to_yaml().strip().replace(_LICENSE, f"{_LICENSE}  # Fill in, such as apache-2.0")


def _of_run(run: RunRecord, mode: str, settings: Mapping[str, tuple[Any, str]]) -> list[str]:
    """Return the sections of the card that describe the training run."""
    summary = _summary(run)
    dataset = settings.get("hf_dataset", (None,))[0] or settings.get("data", ("not recorded",))[0]
    rows = [f"- {name.removeprefix('Rows, ')}: {text}" for name, text in summary.items() if name.startswith("Rows, ")]
    objective = [f"- {name}: {summary[name]}" for name in ("Mode", "Objective", "Reference") if name in summary]
    papers = [f"- Paper: {paper}" for paper in _papers(mode, settings)]
    versions = run.about.get("versions")
    listed = ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, dict) else ""
    machine = f"{listed}; {run.about.get('device', 'device not recorded')}."
    command = "```bash\nmlx_lm_lora.train --config run.yaml\n```"
    return [
        "\n".join(["## Data\n", f"Preference data: `{_public(str(dataset))}`\n", *rows]),
        "\n".join(["## Objective\n", *objective, *papers]),
        f"## Figures\n\n{_figures(run)}",
        f"## How to train it again\n\n{command}\n\n`run.yaml`:\n\n```yaml\n{_config(settings)}```\n\n{machine}",
    ]


def _summary(run: RunRecord) -> dict[str, str]:
    """Return name → text of the lines that the run printed before its first step."""
    cached = re.compile(r", \d+ of \d+ rows from the cache.*")  # describes the machine, not the adapter
    return {name: _public(cached.sub("", text)) for name, text in summary_of(run).items() if text}


def _papers(mode: str, settings: Mapping[str, tuple[Any, str]]) -> list[str]:
    """Return the sources of the losses that were trained."""
    registered = load_registry().modes.get(mode)
    if registered is None:
        return []
    loss_type = settings.get("dpo_cpo_loss_type", settings.get("loss_type", (mode, "")))[0]
    names = [name for name in loss_names(loss_type) if name in registered.trainer.losses]
    found = [description_of(registered.trainer, name).references for name in names]
    return [" ".join(text.split()) for text in dict.fromkeys(found) if text]


def _figures(run: RunRecord) -> str:
    """Return the section on results: first and last metrics, the accuracy with its 95 % interval, and the verdict of
    `report`.
    """
    split = "validation" if run.valid else "training"
    reports = list((run.valid or run.train).values())
    first, last = reports[0], reports[-1]
    lines = [f"Of the {split} rows, after {run.iterations:,} iterations.", ""]
    lines += ["| metric | before | after |", "|---|---|---|"]
    for name, key in (("accuracy", "rewards/accuracies"), ("reward margin", "rewards/margins"), ("objective", "loss")):
        if key in last:
            shown = [_shown(report, key) for report in (first, last)]
            lines.append(f"| {name} | {shown[0]} | {shown[1]} |")
    return "\n".join([*lines, "", verdict(evidence_of(run)).text])


def _shown(report: Mapping[str, float], key: str) -> str:
    if key == "rewards/accuracies" and key in report:
        figure = accuracy_of(dict(report))
        return of_rows(figure) if figure else "–"
    return f"{report[key]:.4g}" if key in report else "–"


def _settings(run: RunRecord | None) -> dict[str, tuple[Any, str]]:
    """Return key → value and source of the settings that `run.json` records."""
    recorded = run.about.get("settings") if run else None
    entries = recorded.items() if isinstance(recorded, dict) else ()
    return {key: (entry.get("value"), str(entry.get("source"))) for key, entry in entries if isinstance(entry, dict)}


def _config(settings: Mapping[str, tuple[Any, str]]) -> str:
    """Return the settings that are not defaults, as a config file. Absolute paths are cut to their last name."""
    given = {key: _bare(value) for key, (value, source) in settings.items() if source not in DEFAULTS}
    return yaml.safe_dump(given, sort_keys=False, allow_unicode=True)


def _bare(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _public(text: str) -> str:
    """Cut every absolute path in a text to its last name, so that no folder of this machine is published."""
    return re.sub(r"(?<![\w.:/])[~]?/[^\s,;:()]*/([^\s,;:()/]+)", r"\1", text)


def _is_hub_name(name: str) -> bool:
    """Return whether a name has the form OWNER/NAME of a repository on the hub and is no local path."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and name[0] != "." and not Path(name).exists()
