"""Check whether the start-up hook works in this environment. If not, find the reason and the remedy."""

import importlib.util
import json
import os
import platform
import site
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from ...plugin.manager import load_registry
from ...printing import wrapped
from ..originals import MARK, version_misfit
from . import machine

PACKAGES = ("mlx-lm-lora-prefplus", "mlx-lm-lora", "mlx", "mlx-lm", "transformers", "datasets")
SWITCHES = ("MLX_LM_LORA_PREFPLUS", "MLX_LM_LORA_PREFPLUS_PATCH")
PTH, HOOK = "mlx_lm_lora_prefplus.pth", "_mlx_lm_lora_prefplus_hook"
WITHOUT_HOOK = "or start runs with `python -m mlx_lm_lora_prefplus train …`, which does not need the hook"

PROBE = f"""
import json, mlx_lm_lora.train as host
native = getattr(host, "TRAINER_PLUGIN_API", None) is not None
print("\\n" + json.dumps({{"file": host.__file__, "active": hasattr(host, {MARK!r}), "native": native}}))
"""
"""Source of a program for a new interpreter. It prints which functions the host's command would find there."""


def examine() -> dict[str, Any]:
    """The report of `doctor`, as values for JSON.

    `active`: whether the hook works in a new interpreter. `problems`: pairs (what is wrong, what to do); there may be
    problems even if the hook works. `notes`: pairs of the same form for what is slow, or works only in this package's
    modes.
    """
    probe, registry, device = _probe(), load_registry(), machine.device()
    versions = {"python": platform.python_version(), **{name: machine.installed(name) for name in PACKAGES}}
    files = {name: str(path) if path else None for name, path in (("pth", _pth()), ("hook", _hook()))}
    report: dict[str, Any] = {
        "active": bool(probe["active"] or probe["native"]),
        "native": probe["native"],
        "versions": versions,
        **device,
        "interpreter": sys.executable,
        "host": probe["file"],
        "files": files,
        "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ},
        "modes": {mode: registered.provider for mode, registered in registry.modes.items()},
        "rivals": registry.rivals,
        "broken": registry.broken,
    }
    problems = [
        *_problems(probe, device["backend"]),
        *machine.backend_problems(device["backend"]),
        *machine.version_problems(),
    ]
    report["problems"] = [{"what": what, "do": do} for what, do in problems]
    report["notes"] = [{"what": what, "do": do} for what, do in machine.notes(device["backend"])]
    return report


def report_lines(report: dict[str, Any]) -> list[str]:
    """Return the report as lines of text."""
    state = (
        "mlx_lm_lora.train runs the modes below" if report["active"] else "mlx_lm_lora.train does NOT know our modes"
    )
    if report["native"]:
        state += ", by its own discovery"
    lines = [("ok: " if report["active"] else "not active: ") + state, ""]
    for mark in ("problem", "note"):
        for one in report[f"{mark}s"]:
            lines += [wrapped(one["what"], f"{mark}: "), wrapped(one["do"], f"{'do':>{len(mark)}}: ")]
    lines += [""] if report["problems"] or report["notes"] else []
    lines += [f"{name:<22}{number or 'not installed'}" for name, number in report["versions"].items()]
    lines += [f"{'backend':<22}{report['backend']}, {report['device']}"]
    lines += [f"{'memory':<22}{report['memory'] / 1e9:.1f} GB"] if report["memory"] else []
    lines += [f"{'interpreter':<22}{report['interpreter']}"]
    lines += [f"{'host':<22}{report['host'] or 'not found'}"]
    lines += [f"{name + ' file':<22}{path or 'not found'}" for name, path in report["files"].items()]
    lines += [f"{name}={value}" for name, value in report["switches"].items()]
    lines += ["", *(f"mode {mode:<17}{provider}" for mode, provider in report["modes"].items())]
    lines += [f"mode {mode:<17}claimed by {' and by '.join(names)}" for mode, names in report["rivals"].items()]
    lines += [f"skipped plugin {provider}: {reason}" for provider, reason in report["broken"].items()]
    return lines


def _probe() -> dict[str, Any]:
    """Return what a new interpreter finds in the host's module. `error` is the last line of its error output."""
    nothing = {"file": None, "active": False, "native": False}
    try:
        process = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {**nothing, "error": str(error)}
    output = process.stderr.strip()
    if process.returncode:
        return {**nothing, "error": output.splitlines()[-1] if output else f"exit code {process.returncode}"}
    warned = [line for line in output.splitlines() if line.startswith("[mlx-lm-lora-prefplus]")]
    return {**json.loads(process.stdout.strip().splitlines()[-1]), "error": "\n".join(warned)}


def _problems(probe: dict[str, Any], backend: str) -> list[machine.Advice]:
    problems: list[tuple[str, str]] = []
    host = machine.installed("mlx-lm-lora")
    if host is None and probe["file"] is None:
        problems.append(("mlx-lm-lora is not installed for this interpreter", "pip install mlx-lm-lora"))
    elif host is not None and (misfit := version_misfit(host)):
        problems.append((misfit, 'pip install "mlx-lm-lora>=5.10,<6", or a release of this package for that version'))
    if os.environ.get("MLX_LM_LORA_PREFPLUS", "").strip() == "0":
        problems.append(("MLX_LM_LORA_PREFPLUS=0 turns the plugin off", "unset MLX_LM_LORA_PREFPLUS"))
    if sys.flags.no_site:
        problems.append(
            ("this interpreter was started with -S and therefore reads no .pth files", "start it without -S")
        )
    problems += _file_problems()
    if probe["file"] and (elsewhere := _vendored(Path(probe["file"]))):
        problems.append((elsewhere, f"remove that folder from PYTHONPATH, or work in another folder, {WITHOUT_HOOK}"))
    works = probe["active"] or probe["native"]
    if backend != "none" and probe["error"] and not works:
        problems.append((f"a new interpreter reports: {probe['error']}", "fix that, then run doctor again"))
    if backend != "none" and not works and not problems:
        problems.append(
            (
                "the hook is installed but did not run",
                f"set MLX_LM_LORA_PREFPLUS=strict to see the reason, {WITHOUT_HOOK}",
            )
        )
    return problems


def _file_problems() -> Iterator[machine.Advice]:
    again = f"pip install --force-reinstall --no-deps mlx-lm-lora-prefplus, {WITHOUT_HOOK}"
    pth, hook = _pth(), _hook()
    if pth is None:
        where = ", ".join(str(folder) for folder in _site_folders())
        yield f"{PTH} is in none of the folders whose .pth files are read ({where})", again
    if hook is None:
        yield f"the module {HOOK} cannot be imported", again
    elif reason := _hook_error():
        yield f"{hook} cannot be imported ({reason}), and Python ignores it", again
    for path in (pth, hook):
        if path and _is_hidden(path):
            fix = f"chflags nohidden {path}, {WITHOUT_HOOK}"
            yield f"{path} has macOS's hidden flag, and newer Python versions skip such .pth files", fix


def _is_hidden(path: Path) -> bool:
    return bool(getattr(path.stat(), "st_flags", 0) & stat.UF_HIDDEN)


def _site_folders() -> list[Path]:
    """Return the folders whose `.pth` files this interpreter reads."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [Path(folder) for folder in [*site.getsitepackages(), *user]]


def _pth() -> Path | None:
    return next((folder / PTH for folder in _site_folders() if (folder / PTH).is_file()), None)


def _hook() -> Path | None:
    spec = importlib.util.find_spec(HOOK)
    return Path(spec.origin) if spec and spec.origin else None


def _hook_error() -> str | None:
    """Return why the hook cannot be imported; None if it can. The `.pth` line hides this error at every
    Python start.
    """
    try:
        importlib.import_module(HOOK)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _vendored(file: Path) -> str | None:
    """Describe the copy of the host that Python imports, if it is not the installed one; otherwise return None."""
    try:
        installed = Path(str(distribution("mlx-lm-lora").locate_file("mlx_lm_lora/train.py")))
    except PackageNotFoundError:
        return f"the host is imported from {file.parent}, a copy that pip did not install"
    if installed.is_file() and installed.resolve() != file.resolve():
        return f"the host is imported from {file.parent} instead of the installed copy in {installed.parent}"
    return None
