"""The command `mlx_lm_lora.prefplus check`: show and forecast a run without training."""
