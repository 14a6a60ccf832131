"""docs/configuration.md: every key of a config file, from the classes that check them."""

import typing
from collections.abc import Iterator
from typing import Any

from mlx_lm_lora.train import CONFIG_DEFAULTS
from pydantic.fields import FieldInfo

from mlx_lm_lora_prefplus.host.config.option_fields import option_fields
from mlx_lm_lora_prefplus.host.tools.describe import _bounds
from mlx_lm_lora_prefplus.host.tools.render import format_value
from mlx_lm_lora_prefplus.settings import FIELDS, GROUPS, OWN_KEYS

HEAD = """\
# Configuration

You configure a run with a YAML file (`--config FILE`), with flags, or with both. Every key below works in the file and
as a flag of the same name, with `-` for `_`. Nested keys take JSON or YAML on the command line. If a key has several
values, the first source in this order wins:

**command line > config file > preset > default of the mode > default of mlx-lm-lora**

The start of a run prints the settings of the run. `run.json` in the adapter folder stores each value with its
source. `mlx_lm_lora.prefplus check FILE` shows them without training.

An unknown key is reported with the closest known one. If that key affects the result (`betta`, `lr`), the run stops;
otherwise it warns (`wand`). `check` stops in both cases. An option of another mode is an error, except in a file that
serves several modes and gets its mode from `--train-mode`. **Ours** marks keys that mlx-lm-lora does not have.

```yaml
model: mlx-community/Qwen3-4B-Instruct-2507-4bit
train: true
train_mode: dpo
data: my-pairs/ # train.jsonl, valid.jsonl
loss_type: sigmoid
beta: 0.1
batch_size: 2
iters: 600
learning_rate: 5.0e-6
lora_parameters: {rank: 16, dropout: 0.0, scale: 10.0}
adapter_path: adapters
```
"""


def configuration(trainers: list[Any]) -> str:
    """The page."""
    return "\n".join([HEAD, *_shared(), *_of_modes(trainers)]) + "\n"


def _shared() -> Iterator[str]:
    for title, keys in GROUPS.items():
        yield f"## {title}\n"
        yield "| key | type | default | |\n|---|---|---|---|"
        for key in keys:
            yield _row(key, FIELDS[key])
        yield ""


def _row(key: str, field: FieldInfo) -> str:
    own = "**Ours.** " if key in OWN_KEYS else ""
    text = (field.description or "").replace("|", "\\|")
    default = CONFIG_DEFAULTS[key] if key == "train_mode" else field.get_default(call_default_factory=True)
    return f"| `{key}` | {_type(field)} | {_default(default)} | {own}{text} |"


def _default(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "`{" + ", ".join(f"{key}: {format_value(one)}" for key, one in value.items()) + "}`"
    return format_value(value) if value not in ({}, [], None) else "–"


NAMES = {
    **{bool: "true, false", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"},
    type(None): "",
}


def _type(field: FieldInfo) -> str:
    kinds = dict.fromkeys(_kinds(field.annotation))
    return ", ".join(filter(None, [*kinds, _limits(field)]))


def _limits(field: FieldInfo) -> str:
    literal = typing.get_origin(field.annotation) is typing.Literal
    limits = "" if literal else _bounds(field)
    return ", ".join(limit for limit in limits.split(", ") if limit not in UNSAID)


UNSAID = {f"≤ {2**31 - 1}", f"< {2**32}"}
"""Bounds of the types that hold a number, which nobody meets."""


def _kinds(annotation: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        yield from (f"`{value}`" for value in arguments)
    elif origin is typing.Annotated:
        yield from _kinds(arguments[0])
    elif origin in (list, dict):
        yield NAMES[origin]
    elif arguments:
        for one in arguments:
            yield from _kinds(one)
    else:
        yield NAMES[annotation]


def _of_modes(trainers: list[Any]) -> Iterator[str]:
    """The options of the modes: a key once, with the modes and the losses that take it."""
    seen: dict[str, tuple[FieldInfo, list[str], list[str]]] = {}
    for trainer in trainers:
        for key, field in option_fields(trainer.options).items():
            _, modes, losses = seen.setdefault(key, (field, [], []))
            modes.append(trainer.mode)
            losses += [name for name, row in trainer.losses.items() if key in (*row.options, *row.instead)]
    yield "## Options of the modes\n"
    yield (
        "Options of the modes' trainers. If a default depends on the loss or the mode, the page of the "
        "[loss](losses.md) shows it. `dpo_cpo_loss_type` is the host's name for `loss_type`.\n"
    )
    yield "| key | type | default | modes | losses | |\n|---|---|---|---|---|---|"
    for key, (field, modes, losses) in seen.items():
        taken = ", ".join(f"`{name}`" for name in dict.fromkeys(losses)) if len(set(losses)) <= 4 else "several"
        about = (field.description or "").replace("|", "\\|")
        default = _default(field.get_default(call_default_factory=True))
        named = ", ".join(modes) if len(modes) < len(trainers) else "all"
        yield f"| `{key}` | {_type(field)} | {default} | {named} | {taken or 'all'} | {about} |"
    yield ""


def missing() -> set[str]:
    """Keys that no table has, or two have, or that nothing says what they are."""
    told = [key for keys in GROUPS.values() for key in keys]
    twice = {key for key in told if told.count(key) > 1}
    mute = {key for key in told if not FIELDS[key].description}
    return (set(FIELDS) ^ set(told)) | twice | mute
