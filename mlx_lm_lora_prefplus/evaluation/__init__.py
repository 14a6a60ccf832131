"""The command `mlx_lm_lora.prefplus evaluate`: score held-out rows, and compare the policy's answers with the
reference's.
"""
