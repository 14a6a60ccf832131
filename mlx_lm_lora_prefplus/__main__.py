"""`python -m mlx_lm_lora_prefplus train …`: the host's command with our modes, where the start-up hook is not read.

Any other word goes to the companion command.
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
    """The host's `main`, with the seam put in by hand if the hook has not done it."""
    from .backend import problem
    from .wrapping import fail

    if found := problem():
        fail(found)
    import mlx_lm_lora.train as host

    from .host.seam.install import activate

    if os.environ.get("MLX_LM_LORA_PREFPLUS", "").strip() != "0":
        activate(host)
    host.main()


if __name__ == "__main__":
    main()
