"""Reject modes that a program cannot train, because the program's table of training functions lacks them."""

import sys

from ...errors import UserError

INSTEAD = {
    "simpo": "choose CPO and write `loss_type: simpo` into prefplus.yaml (in the run's adapter folder, or in the "
    "folder of the python3 that the app runs)",
    "kto": "run `mlx_lm_lora.train --train --train-mode kto` with the same model and data",
    "bco": "run `mlx_lm_lora.train --train --train-mode bco` with the same model and data",
}


def check_has_pipeline(mode: str) -> None:
    """Reject a mode that MLX-LoRA-Studio's runner cannot train, before anything is read.

    The runner looks up its training function in a table `PIPELINES`, but only after it has loaded the model and the
    rows. This check comes earlier, so that the user does not wait.

    Raises:
        UserError: The running program has a table `PIPELINES` without this mode.
    """
    table = getattr(sys.modules.get("__main__"), "PIPELINES", None)
    if isinstance(table, dict) and mode not in table:
        instead = INSTEAD.get(mode, f"run `mlx_lm_lora.train --train --train-mode {mode}` with the same model and data")
        raise UserError(f"train_mode {mode}: this program trains only {', '.join(table)}. Instead, {instead}.")
