"""Preference rows made from prompts: answers of the policy and their scores, `mlx_lm_lora.prefplus pairs`."""
