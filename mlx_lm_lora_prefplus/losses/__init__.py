"""Preference losses: pure functions of log-probs, and the row that describes each to the rest of the package."""

from .examples import Labelled, Lists, Pairs
from .pairs import dpop, dpop_policy, hinge, ipo, sigmoid
from .table import Loss

__all__ = ["Labelled", "Lists", "Loss", "Pairs", "dpop", "dpop_policy", "hinge", "ipo", "sigmoid"]
