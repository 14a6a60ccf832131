"""Values that the processes of one run compare, because they must be equal in all processes.

The processes first compare their settings and package versions, then the model and data that they loaded.
"""

import dataclasses
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlx_lm.utils import _download

from ... import __version__
from ...engine.files.names import ADAPTERS, CONFIG
from ...engine.model.digest import content_digest
from ...settings import RunSettings
from .. import trained
from ..config.resolve import Resolved
from .resume import REFERENCE
from .session import Session

PLACES = ("model", "data", "adapter_path", "resume_adapter_file", "reference_model_path")
"""Keys with paths, which may differ between machines. The content at these paths is compared instead."""

PACKAGES = ("mlx-lm-lora", "mlx-lm", "mlx", "numpy", "transformers", "tokenizers", "datasets")


def started_with(resolved: Resolved) -> dict[str, Any]:
    """Return every setting and the package versions, by name."""
    of_run, of_data = resolved.settings.model_dump(), resolved.data.model_dump()
    settings = {**of_run, **of_data, **dataclasses.asdict(resolved.options)}
    return {
        "train_mode": resolved.trainer.mode,
        **{key: value for key, value in settings.items() if key not in PLACES},
        **{key: "given" if settings[key] else "not given" for key in PLACES},
        "package of the mode": resolved.provider,
        "mlx-lm-lora-prefplus": __version__,
        **{name: _release(name) for name in PACKAGES},
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def loaded(session: Session, identity: dict[str, Any]) -> dict[str, Any]:
    """Return name → value: digests of rows and weights, and values derived from the settings.

    identity: see `resume.fingerprint`.
    """
    settings = session.resolved.settings
    found = {name: value for name, value in identity.items() if name not in (*PLACES, REFERENCE)}
    for split, rows in session.rows.items():
        found[f"{split} rows"] = f"{len(rows)} rows, digest {rows.fingerprint}"
    found["iters"] = session.iters
    if settings.reference_model_path:
        found["reference_model_path"] = _reference(settings)
    if not settings.train and settings.adapter_path:
        folder = Path(settings.adapter_path)
        found["adapters to test"] = content_digest([folder / ADAPTERS, folder / CONFIG])
    return found


def _reference(settings: RunSettings) -> str:
    """Return a digest of the content that `reference_model_path` names. It is the same on every machine."""
    assert settings.reference_model_path
    try:
        file = trained.adapter_file(settings.reference_model_path)
        if file is not None:
            return content_digest([file, file.parent / CONFIG])
        folder = _download(settings.reference_model_path)  # or the local folder
        return content_digest([*folder.glob("*.safetensors"), folder / "config.json"])
    except Exception as error:  # the hub raises many kinds of errors; loading will report this one
        return f"cannot be read ({type(error).__name__})"


def _release(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
