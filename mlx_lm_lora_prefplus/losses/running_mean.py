"""The running mean of the rewards, which BCO uses as its baseline δ (Jung et al. 2024, arXiv:2404.04656)."""

import mlx.core as mx

State = dict[str, mx.array]

START: State = {"reward_mean": mx.array(0.0), "reward_count": mx.array(0.0)}


def updated(state: State, rewards: mx.array) -> State:
    """Add rewards to the mean over all rewards so far. All rewards have equal weight, and the mean has no gradient."""
    rewards = mx.stop_gradient(rewards)
    count = state["reward_count"] + rewards.size
    mean = state["reward_mean"] + (rewards - state["reward_mean"]).sum() / count
    return {"reward_mean": mean, "reward_count": count}
