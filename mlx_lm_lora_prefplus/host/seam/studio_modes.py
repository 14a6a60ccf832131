"""Modes that a program which picks its training function from a table of its own has no entry for."""

import sys

from ...errors import UserError

INSTEAD = {
    "simpo": "choose CPO and write `loss_type: simpo` into prefplus.yaml (in the folder of the run's adapters, or "
    "beside the python3 that the app runs)",
    "kto": "run `mlx_lm_lora.train --train --train-mode kto` with the same model and data",
    "bco": "run `mlx_lm_lora.train --train --train-mode bco` with the same model and data",
}


def check_has_pipeline(mode: str) -> None:
    """Refuse a mode before anything is read that MLX-LoRA-Studio's runner cannot train.

    The runner looks its training function up in a table `PIPELINES`, after it has loaded the model and the rows.

    Raises:
        UserError: the running program has such a table without this mode.
    """
    table = getattr(sys.modules.get("__main__"), "PIPELINES", None)
    if isinstance(table, dict) and mode not in table:
        instead = INSTEAD.get(mode, f"run `mlx_lm_lora.train --train --train-mode {mode}` with the same model and data")
        raise UserError(f"train_mode {mode}: this program trains {', '.join(table)} only. Instead, {instead}.")
