"""Write results of this machine into a small JSON file for publication: `mlx_lm_lora.prefplus bench --share`.

The file contains only the keys below. Names of the user, the host and files are never read.
"""

import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..host.tools import machine
from ..printing import say
from ..storage.atomic import whole_file
from . import measure
from .workloads import SUITE, Workload

FORMAT = 1
"""Format version. Increase it when the meaning of a key changes."""

PACKAGES = ("mlx-lm-lora-prefplus", "mlx-lm-lora", "mlx-lm", "mlx", *machine.BACKENDS)

ROW_KEYS = (
    *("workload", "mode", "loss", "shape", "hidden", "layers", "vocabulary", "dtype", "bits", "pairs"),
    *("prompt", "chosen", "rejected"),
    *("real_tokens", "repeat", "clock", "policy", "graphs_compiled", "gradient_error"),
    *("host_seconds", "ours_seconds", "floor_seconds", "speed_ratio"),
    *("host_step_bytes", "ours_step_bytes", "memory_ratio", "host_peak_bytes", "ours_peak_bytes"),
)
"""The keys of a row of `measure` that are published. Other keys, such as the folder of a model, are left out."""

SHORT_SUITE = tuple(replace(SUITE[name], speed_goal=None, memory_goal=None) for name in ("cpo-chat", "dpo-summary"))

ON_A_GPU = Workload("dpo-4b", "dpo", 180, 280, 270, pairs=1, shape="qwen3-4b", layers=4, dtype="bfloat16", bits=4)
"""Four layers of a 4-bit Qwen3-4B with its real head. Only GPUs run this workload: on a CPU it is too slow for a short
suite.
"""


def collect() -> dict[str, Any]:
    """Run the short suite and return the content of the published file."""
    about = machine_facts()
    suite = [*SHORT_SUITE, *([ON_A_GPU] if about["backend"] in ("metal", "cuda") else [])]
    rows = []
    for workload in suite:
        say(f"{workload.name} …")
        row = measure.measure(workload, measure.Method())
        rows.append({key: row[key] for key in ROW_KEYS if row.get(key) is not None})
    versions = {"python": platform.python_version(), **{name: machine.installed(name) for name in PACKAGES}}
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": about,
        "versions": {name: text for name, text in versions.items() if text},
        "rows": rows,
    }


def machine_facts() -> dict[str, Any]:
    """Return kind (such as MacBookPro18,3, or the architecture), chip, cores, memory (bytes), os, backend, device, and
    device_memory (bytes that MLX may use).
    """
    device = machine.device()
    mac = sys.platform == "darwin"
    release = platform.mac_ver()[0] if mac else ""
    return {
        "kind": (_sysctl("hw.model") if mac else None) or platform.machine(),
        "chip": (_sysctl("machdep.cpu.brand_string") if mac else _linux_chip()) or platform.machine(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": f"macOS {release}" if mac else platform.system(),
        "backend": device["backend"],
        "device": device["device"],
        "device_memory": device["memory"],
    }


def check_folder(folder: Path) -> None:
    """Raise a UserError if no file can be written into a folder. Call it before measuring, which takes minutes."""
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"bench: --share writes a file into {folder}, which cannot be written. Start it in another folder."
        )


def write(report: dict[str, Any], folder: Path) -> Path:
    """Write the report into a folder. The file is named after the chip and the date. Returns its path."""
    chip = re.sub(r"[^a-z0-9]+", "-", report["machine"]["chip"].lower()).strip("-")
    path = folder / f"prefplus-figures-{chip}-{report['date']}.json"
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def _sysctl(name: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5).stdout.strip() or None
    return None


def _linux_chip() -> str | None:
    with suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        return found[1].strip() if found else None
    return None
