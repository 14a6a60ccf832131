"""On-policy training in rounds, `mlx_lm_lora.prefplus rounds`: pairs of the present policy, training, evaluation."""
