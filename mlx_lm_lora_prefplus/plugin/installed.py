"""The installed modes."""

import functools
import os
import sys

from .manager import OWN_DISTRIBUTION, Registry, load_registry


@functools.cache
def registry() -> Registry:
    """Return the installed modes, searched for once. Broken plugins are reported on stderr and skipped."""
    try:
        installed = load_registry()
    except Exception as error:
        if os.environ.get("MLX_LM_LORA_PREFPLUS", "").strip().lower() == "strict":
            raise
        print(f"[{OWN_DISTRIBUTION}] its modes are not available: {type(error).__name__}: {error}", file=sys.stderr)
        return Registry({})
    for provider, reason in installed.broken.items():
        print(f"[{OWN_DISTRIBUTION}] the plugin {provider} is skipped: {reason}", file=sys.stderr)
    return installed
