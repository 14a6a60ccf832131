"""The command `mlx_lm_lora.prefplus evaluate`: evaluate held-out rows, and compare answers with the reference's."""
