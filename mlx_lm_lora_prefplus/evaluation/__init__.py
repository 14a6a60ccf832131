"""Evaluation on held-out rows, and of the policy's answers against its reference: `mlx_lm_lora.prefplus evaluate`."""
