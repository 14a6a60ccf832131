"""Preference losses: pure functions of log-probs, and the row that describes each to the rest of the package."""

from .pairs import Pairs, dpop, dpop_policy, hinge, ipo, sigmoid
from .table import Loss

__all__ = ["Loss", "Pairs", "dpop", "dpop_policy", "hinge", "ipo", "sigmoid"]
