"""Run `python -m mlx_lm_lora_prefplus train …`: the host's command with our modes, without the start-up hook.

Any other word runs the companion command.
"""

import os
import sys


def main() -> None:
    """Run the host's command, or the companion command."""
    if sys.argv[1:2] == ["train"]:
        sys.argv[:2] = ["mlx_lm_lora.train"]
        train()
    else:
        from .cli import main as companion

        companion()


def train() -> None:
    """Return the host's `main`. If the hook has not replaced the host's functions, they are replaced here."""
    from .backend import problem
    from .printing import fail

    if found := problem():
        fail(found)
    import mlx_lm_lora.train as host

    from .host.seam.install import activate

    if os.environ.get("MLX_LM_LORA_PREFPLUS", "").strip() != "0":
        activate(host)
    host.main()


if __name__ == "__main__":
    main()
