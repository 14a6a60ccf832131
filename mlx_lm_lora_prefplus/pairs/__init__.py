"""The command `mlx_lm_lora.prefplus pairs`: make preference rows from prompts by sampling and scoring answers."""
