"""The command `mlx_lm_lora.prefplus export`: trained adapters for other programs, and for the hub."""
