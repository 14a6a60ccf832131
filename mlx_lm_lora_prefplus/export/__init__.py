"""The command `mlx_lm_lora.prefplus export`: write trained adapters for other programs, or upload them to the hub."""
