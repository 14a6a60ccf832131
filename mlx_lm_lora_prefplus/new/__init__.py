"""The command `mlx_lm_lora.prefplus new`: write a config for a model, data and a machine."""
