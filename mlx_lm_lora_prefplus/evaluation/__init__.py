"""Did it work? Held-out rows and answers of the policy against its reference: `mlx_lm_lora.prefplus evaluate`."""
