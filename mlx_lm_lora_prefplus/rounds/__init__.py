"""The command `mlx_lm_lora.prefplus rounds`: on-policy training in rounds of making pairs, training and evaluation."""
