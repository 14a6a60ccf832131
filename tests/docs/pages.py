"""Writes losses.md, losses/*.md, presets.md, configuration.md, figures.md and papers.md: python -m tests.docs.pages.

Everything in them comes from the tables of the modes, the docstrings, the config keys, the table of presets, and the
files in docs/figures.
`python -m tests.docs.plots` draws the plots that the pages show.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

from mlx_lm_lora_prefplus.host.config.presets import PRESETS, Preset
from mlx_lm_lora_prefplus.host.tools.describe import Description, Option, description_of, mode_options
from mlx_lm_lora_prefplus.host.tools.render import KINDS, NOTATION, format_value, sentence
from mlx_lm_lora_prefplus.trainers import mlx_lm_lora_register_trainers
from tests.docs.configuration import configuration
from tests.docs.curves import curves
from tests.docs.machines import machines
from tests.docs.papers import papers
from tests.paths import DOCS

FOLDER = DOCS / "losses"
MADE = "Made by `python -m tests.docs.pages` from the tables, docstrings and config keys; do not edit it by hand.\n"

SYMBOLS = fill(
    f"Notation: {NOTATION} β is `beta`, ε `label_smoothing`, σ the logistic function; a *reward* is β·u.", 120
)

INDEX = f"""\
# Losses

`loss_type` chooses a loss of the train mode. Modes `dpo` and `cpo` also accept several losses, weighted by
`loss_weights`. `mlx_lm_lora.prefplus losses` prints this list, and `mlx_lm_lora.prefplus losses NAME` describes one
loss.
[How to choose](how-to-choose.md) · [presets](presets.md) · [add a loss](add-a-loss.md)

{SYMBOLS}

An option of a loss that you did not choose is an error. A value that you give replaces the default of the loss.

{MADE}"""

PRESET_PAGE = f"""\
# Presets

Published settings by name, in a config file or on the command line:

```yaml
preset: simpo-llama3
learning_rate: 5e-6 # your value replaces that of the preset
```

`mlx_lm_lora.prefplus presets` prints this list. The start of a run reports which values came from the preset. Presets
are starting points. Most come from full fine-tuning of 7B to 9B models, with the published learning rates. LoRA needs
higher learning rates, often ten times as high. A learning rate also depends on the number of pairs per update, which is
`batch_size` × `gradient_accumulation_steps` and often 64 or 128 in these publications.
[`mlx_lm_lora.prefplus new`](new.md) offers the presets of a mode and writes a config with a learning rate for LoRA.

{MADE}
| preset | mode | values | what was trained | source |
|---|---|---|---|---|"""


def trainers() -> list[Any]:
    """Our own trainers."""
    return mlx_lm_lora_register_trainers()


def pages() -> dict[Path, str]:
    """Every generated page: path → text."""
    made = {
        DOCS / "losses.md": index(),
        DOCS / "presets.md": presets(),
        DOCS / "configuration.md": f"{configuration(trainers())}\n{MADE}",
        DOCS / "figures.md": machines(),
        DOCS / "papers.md": f"{papers(trainers())}\n{MADE}",
    }
    for trainer in trainers():
        for name in trainer.losses:
            made[FOLDER / f"{trainer.mode}-{name}.md"] = page(trainer, name)
    return made


def index() -> str:
    """A table for each mode, and the options of all its losses."""
    return "\n".join([INDEX, *(line for trainer in trainers() for line in _of_mode(trainer))]) + "\n"


def _of_mode(trainer: Any) -> Iterator[str]:
    reference = "with a reference" if trainer.needs_reference(trainer.options()) else "without a reference"
    yield f"\n## `{trainer.mode}`: {KINDS[trainer.rows]}, {reference}\n"
    yield "| loss | formula | log-probs | when to use it |\n|---|---|---|---|"
    for name in trainer.losses:
        loss = description_of(trainer, name)
        kind = f" ({KINDS[loss.rows]})" if loss.rows != trainer.rows else ""
        log_probs = "means" if loss.means else "sums"
        link = f"[`{name}`](losses/{trainer.mode}-{name}.md)"
        yield f"| {link} | {_formula(loss.formula)} | {log_probs} | {_cell(loss.when)}{kind} |"
    if common := mode_options(trainer):
        yield f"\nWith any loss of mode `{trainer.mode}`:\n"
        yield from _options(common)


def page(trainer: Any, name: str) -> str:
    """One loss."""
    return "\n".join(_page(trainer, name, description_of(trainer, name)))


def _page(trainer: Any, name: str, loss: Description) -> Iterator[str]:
    yield f"# `{name}`, mode `{loss.mode}`\n"
    yield f"    {loss.formula}\n"
    yield f"{sentence(loss.meaning)}\n" if loss.meaning else ""
    yield f"{SYMBOLS}\n"
    yield "| | |\n|---|---|"
    yield f"| when to use it | {_cell(loss.when)} |"
    yield f"| log-probs | {_cell(loss.log_probs)} |"
    yield f"| reference | {'needed' if loss.reference else 'none'} |"
    yield f"| data columns | {', '.join(f'`{column}`' for column in loss.columns)} |"
    if loss.value:
        yield f"| result | {_cell(loss.value)} |"
    function = trainer.losses[name].function
    if function:
        path = Path(inspect.getfile(function)).relative_to(DOCS.parent)
        yield f"| code | [`{path.name}`](../../{path}), `{function.__name__}` |"
    yield f"| config | `train_mode: {loss.mode}`, `loss_type: {name}` |"
    yield f"\n{_source(loss)}\n"
    shown = curves(trainer, name)
    yield f"![loss and gradient of {name}](plots/{loss.mode}-{name}.svg)\n"
    yield f"Loss and gradient against: {shown.axis}.{f' With {shown.note}.' if shown.note else ''}\n"
    if loss.options:
        yield "## Options\n"
        yield from _options(loss.options)
        yield ""
    if presets := [preset for preset in PRESETS.values() if _names(preset) == (loss.mode, name)]:
        yield f"Presets: {', '.join(f'[`{preset.name}`](../presets.md)' for preset in presets)}.\n"
    yield f"[All losses](../losses.md), with the options of every loss of the mode. {MADE}"


def _source(loss: Description) -> str:
    return f"Source: {_linked(loss.references)}" if loss.references else "Source: maximum likelihood."


def _names(preset: Preset) -> tuple[str, Any]:
    """The mode and the loss of a preset."""
    return preset.mode, preset.values.get("loss_type", preset.mode)


def presets() -> str:
    """All presets."""
    return "\n".join([PRESET_PAGE, *map(_preset, PRESETS.values())]) + "\n"


def _preset(preset: Preset) -> str:
    values = ", ".join(f"`{key}` {format_value(value)}" for key, value in preset.values.items())
    return f"| `{preset.name}` | {preset.mode} | {values} | {_cell(preset.about)} | {_linked(preset.source)} |"


def _options(options: Iterable[Option]) -> Iterator[str]:
    yield "| option | default | bounds | |\n|---|---|---|---|"
    for one in options:
        yield f"| `{one.key}` | {format_value(one.default)} | {one.bounds} | {_cell(one.about)} |"


def _cell(text: str) -> str:
    """Text that does not end the cell of a table."""
    return text.replace("|", "\\|")


def _formula(text: str) -> str:
    """A formula as code, unless it names another loss that way."""
    return _cell(text if "`" in text else f"`{text}`")


def _linked(text: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def main() -> None:
    """Write the pages, and take away those of losses that are gone."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for old in set(FOLDER.glob("*.md")) - set(made):
        old.unlink()
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
