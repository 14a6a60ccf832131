"""docs/figures.md: the files in docs/figures/ that `mlx_lm_lora.prefplus bench --share` wrote on people's machines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.paths import DOCS

FOLDER = DOCS / "figures"

HEAD = """\
# Figures from machines

The cost of a training step on real machines. To add yours, run this in an empty folder:

```bash
mlx_lm_lora.prefplus bench --share
```

It runs a short suite, which takes some minutes. On Metal and CUDA the suite includes four layers of a 4-bit Qwen3-4B.
It writes one small JSON file with the kind of machine, chip, memory, system, versions and figures. The file contains no
name of you, of the machine or of a file. Read it, then paste it into an issue. The files are in `docs/figures/`, and
the tables below are made from them.

A step is the loss and gradient of a batch. mlx-lm-lora's step and ours are measured in one process (`host → ours`).
[Performance](performance.md) explains the figures.
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
