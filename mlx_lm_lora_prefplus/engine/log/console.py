"""Print the same log lines as mlx-lm-lora, and call its callbacks with the same payloads."""

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

_HOST_METRICS = {
    "accuracies": "rewards/accuracies",
    "margins": "rewards/margins",
    "policy_rejected_logps": "logps_per_token/rejected",
    "policy_chosen_logps": "logps_per_token/chosen",
    "rejected_logits_mean": "logits/rejected",
    "chosen_logits_mean": "logits/chosen",
}
"""mlx-lm-lora's name of a metric → its name in this package."""


def host_metrics(means: Mapping[str, float], prefix: str = "") -> dict[str, float]:
    """Return the metrics of a trainer under the host's names."""
    return {prefix + host: means[ours] for host, ours in _HOST_METRICS.items() if ours in means}


def bar_text(means: Mapping[str, float]) -> str:
    """Return the text that the progress bar shows after its count, rate and remaining time."""
    shown = {"loss": "loss", "acc": "rewards/accuracies", "margin": "rewards/margins"}
    return ", ".join(f"{name}={means[metric]:.3f}" for name, metric in shown.items() if metric in means)


def report_training(callback: Any, iteration: int, means: Mapping[str, float], speed: Mapping[str, float]) -> None:
    """Print the host's training line and call `on_train_loss_report`.

    speed: the payload keys `learning_rate`, `iterations_per_second`, `tokens_per_second`, `trained_tokens` and
    `peak_memory` (GB = 1e9 bytes).
    """
    tqdm.write(
        f"\nIter {iteration}: "
        f"loss {means['loss']:.3f}, "
        f"chosen_r {means.get('rewards/chosen', 0.0):.3f}, "
        f"rejected_r {means.get('rewards/rejected', 0.0):.3f}, "
        f"acc {means.get('rewards/accuracies', 0.0):.3f}, "
        f"margin {means.get('rewards/margins', 0.0):.3f}, "
        f"lr {speed['learning_rate']:.3e}, "
        f"it/s {speed['iterations_per_second']:.3f}, "
        f"tok/s {speed['tokens_per_second']:.3f}, "
        f"peak_mem {speed['peak_memory']:.3f}GB"
    )
    if callback is not None:
        callback.on_train_loss_report(
            {
                "iteration": iteration,
                "train_loss": means["loss"],
                "train_chosen_reward": means.get("rewards/chosen", 0.0),
                "train_rejected_reward": means.get("rewards/rejected", 0.0),
                **host_metrics(means, "train_"),
                **speed,
            }
        )


def report_validation(callback: Any, iteration: int, means: Mapping[str, float], seconds: float) -> None:
    """Print the host's validation line and call `on_val_loss_report`."""
    chosen, rejected = means.get("rewards/chosen", 0.0), means.get("rewards/rejected", 0.0)
    tqdm.write(
        f"Iter {iteration}: "
        f"Val loss {means['loss']:.3f}, "
        f"Val chosen reward {chosen:.3f}, "
        f"Val rejected reward {rejected:.3f}, "
        f"Val accuracy {means.get('rewards/accuracies', 0.0):.3f}, "
        f"Val margin {means.get('rewards/margins', 0.0):.3f}, "
        f"Val took {seconds:.3f}s"
    )
    if callback is not None:
        callback.on_val_loss_report(
            {
                "iteration": iteration,
                "val_loss": means["loss"],
                "val_chosen_reward": chosen,
                "val_rejected_reward": rejected,
                "val_chosen_r": chosen,  # the names that MLX-LoRA-Studio's chart reads
                "val_rejected_r": rejected,
                **host_metrics(means, "val_"),
                "val_time": seconds,
            }
        )
