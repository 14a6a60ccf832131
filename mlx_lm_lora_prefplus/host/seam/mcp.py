"""Add this package's modes and keys to the tables of the host's MCP server."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...losses import loss_names
from ...plugin.installed import registry
from ...plugin.manager import Registered
from ...plugin.protocol import RowKind
from ...settings import OWN_KEYS

COLUMNS: Mapping[RowKind, str] = {
    "paired": "prompt, chosen, rejected",
    "unpaired": "prompt, completion, label (true or false)",
    "ranked": "prompt, responses, scores",
}


def extended(originals: Mapping[str, Any]) -> dict[str, Any]:
    """Return `TRAIN_MODES` with the added modes and `known_config_keys` with the added keys, for the host's
    `mcp_server`.
    """
    modes = registry().modes
    keys = {
        *OWN_KEYS,
        *(field.name for one in modes.values() for field in dataclasses.fields(one.trainer.options)),
    }

    def known_config_keys() -> set[str]:
        """Return the host's keys and those of the added modes. The MCP server reports any other key as unknown."""
        return originals["known_config_keys"]() | keys

    described = {mode: _described(one, originals["TRAIN_MODES"].get(mode)) for mode, one in modes.items()}
    return {
        "TRAIN_MODES": {**originals["TRAIN_MODES"], **described},
        "known_config_keys": known_config_keys,
    }


def _described(registered: Registered, of_host: str | None) -> str:
    """Describe a mode in a few sentences: its rows, its losses, and the package that runs it."""
    trainer = registered.trainer
    options = trainer.options()
    reference = "with" if trainer.needs_reference(options) else "without"
    start = of_host or f"Preference tuning {reference} a reference. Data rows: {COLUMNS[trainer.rows]}."
    losses = ""
    if len(trainer.losses) > 1:
        default = ", ".join(loss_names(getattr(options, "loss_type", "")))
        losses = f" loss_type: {', '.join(trainer.losses)} (default {default})."
    return f"{start}{losses} Run by {registered.provider}."
