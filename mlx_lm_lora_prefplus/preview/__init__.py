"""What a run will be, found out without training: the command `mlx_lm_lora.prefplus check`."""
