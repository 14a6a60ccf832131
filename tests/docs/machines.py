"""docs/figures.md: the files in docs/figures/ that `mlx_lm_lora.prefplus bench --share` wrote on people's machines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.paths import DOCS

FOLDER = DOCS / "figures"

HEAD = """\
# Figures from machines

What a training step costs on machines that people have. Yours is missing? In an empty folder:

```bash
mlx_lm_lora.prefplus bench --share
```

runs a short suite (some minutes; on Metal and CUDA with four layers of a 4-bit Qwen3-4B in it) and writes one small
JSON file: kind of machine, chip, memory, system, versions, figures; no name of yours, of the machine or of a file. Read
it, then paste it into an issue. It is kept in `docs/figures/` as it is, and the tables below are made from these files.

A step is loss and gradient of a batch, mlx-lm-lora's own beside ours in one process, as on the page of
[performance](performance.md), which says what the figures mean. `host → ours`.
"""


def machines() -> str:
    """The page: a table for each file, the newest first."""
    reports = sorted(
        ((json.loads(path.read_text("utf-8")), path) for path in FOLDER.glob("*.json")),
        key=lambda one: (one[0]["date"], one[1].name),
        reverse=True,
    )
    return "\n".join([HEAD, *(line for report, path in reports for line in _section(report, path))])


def _section(report: dict[str, Any], path: Path) -> Iterator[str]:
    machine, versions = report["machine"], report["versions"]
    yield f"## {machine['chip']}, {machine['memory'] / 2**30:.0f} GiB, {machine['backend']}\n"
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("mlx-lm-lora-prefplus", "mlx-lm-lora", "mlx") if name in versions
    )
    yield (
        f"{machine['kind']}, {machine['cores']} cores, {machine['os']}; {packages}; {report['date']}; "
        f"[{path.name}](figures/{path.name})\n"
    )
    yield "| workload | step, s | faster | step memory, MiB | less |\n|---|---|---|---|---|"
    for row in report["rows"]:
        seconds = f"{row['host_seconds']:.3g} → {row['ours_seconds']:.3g}"
        memory = f"{row['host_step_bytes'] / 2**20:,.0f} → {row['ours_step_bytes'] / 2**20:,.0f}"
        ratios = f"{row['speed_ratio']:.2f}×", f"{row['memory_ratio']:.1f}×"
        yield f"| `{row['workload']}` | {seconds} | {ratios[0]} | {memory} | {ratios[1]} |"
    yield ""
