"""The command `mlx_lm_lora.prefplus new`: from a model, data and a machine to a config that runs."""
