"""The inputs of losses: log-probs of the completions of pairs, unpaired rows or lists.

Notation in the formulas: p is the policy's log-prob of a completion, q the reference's, and u = p − q the log-ratio.
The index w marks the chosen completion of a pair, l the rejected one. Δ = u_w − u_l. n is the number of completion
tokens. Log-probs are in nats. A log-prob is the sum over the completion tokens, or the mean if the description of the
loss says so; p̄ is always the mean. Without a reference q is 0, so u is p, and Δ is p_w − p_l. The same functions
therefore serve DPO and CPO.
"""

from collections.abc import Mapping
from typing import NamedTuple

import mlx.core as mx


class Pairs(NamedTuple):
    """Chosen and rejected completions, each (pairs,) float32. Without a reference, the fields of the reference are
    zeros.

    columns: numbers from the data, such as `margin`, (pairs,) each.
    """

    chosen: mx.array
    rejected: mx.array
    reference_chosen: mx.array
    reference_rejected: mx.array
    chosen_tokens: mx.array
    rejected_tokens: mx.array
    columns: Mapping[str, mx.array] = {}

    @classmethod
    def of(cls, policy: mx.array, reference: mx.array, tokens: mx.array, columns: Mapping[str, mx.array]) -> "Pairs":
        """Make pairs of (2·pairs,) log-probs and token counts: first all chosen completions, then all rejected ones."""
        (p_w, p_l), (q_w, q_l), (n_w, n_l) = (mx.split(values, 2) for values in (policy, reference, tokens))
        return cls(p_w, p_l, q_w, q_l, n_w, n_l, columns)

    @property
    def chosen_logratio(self) -> mx.array:
        """Return u_w = p_w − q_w, (pairs,)."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_logratio(self) -> mx.array:
        """Return u_l = p_l − q_l, (pairs,)."""
        return self.rejected - self.reference_rejected

    @property
    def logratio(self) -> mx.array:
        """Return u of every completion, (2·pairs,)."""
        return mx.concatenate([self.chosen_logratio, self.rejected_logratio])

    @property
    def delta(self) -> mx.array:
        """Return Δ = u_w − u_l, (pairs,)."""
        return self.chosen_logratio - self.rejected_logratio

    def means(self) -> "Pairs":
        """Return the same pairs with each log-prob divided by the token count of its completion (at least 1)."""
        n_w, n_l = mx.maximum(self.chosen_tokens, 1), mx.maximum(self.rejected_tokens, 1)
        return self._replace(
            chosen=self.chosen / n_w,
            rejected=self.rejected / n_l,
            reference_chosen=self.reference_chosen / n_w,
            reference_rejected=self.reference_rejected / n_l,
        )


class Unpaired(NamedTuple):
    """Single completions with a label, each (rows,) float32.

    label: 1 for a desirable completion, 0 for an undesirable one.
    mismatched_logratio: u of another row's completion after this row's prompt; zeros if the loss does not need it.
    """

    policy: mx.array
    reference: mx.array
    tokens: mx.array
    label: mx.array
    mismatched_logratio: mx.array

    @property
    def logratio(self) -> mx.array:
        """Return u = p − q, (rows,)."""
        return self.policy - self.reference


class Lists(NamedTuple):
    """Completions of one prompt sorted by score, best first, each (lists, completions) float32.

    scores: of the completions. Equal scores are ties. tokens: token counts; 0 for empty completions that pad a list.
    """

    policy: mx.array
    reference: mx.array
    tokens: mx.array
    scores: mx.array

    @classmethod
    def of(cls, lists: int, *values: mx.array) -> "Lists":
        """Make lists of the four arrays in another order: first the best completions of all lists, then the second
        best, and so on. lists: number of lists.
        """
        return cls(*(array.reshape(-1, lists).T for array in values))

    @property
    def logratio(self) -> mx.array:
        """Return u = p − q, (lists, completions)."""
        return self.policy - self.reference

    def means(self) -> "Lists":
        """Return the same lists with each log-prob divided by the token count of its completion (at least 1)."""
        tokens = mx.maximum(self.tokens, 1)
        return self._replace(policy=self.policy / tokens, reference=self.reference / tokens)


def compared(values: mx.array, tokens: mx.array, gold: bool = False) -> tuple[mx.array, mx.array]:
    """Return the values of each list's chosen (best) and rejected (worst) completion, (lists,) each.

    values, tokens: (completions, lists), best first. Completions without tokens are padding and are ignored.
    gold: whether the best completion of a list of three or more is a gold response. The second best then counts as
        chosen.
    """
    count = (tokens > 0).sum(axis=0, keepdims=True)
    last = mx.maximum(count - 1, min(1, len(values) - 1))
    first = mx.clip(count - 2, 0, 1) if gold else mx.zeros_like(last)
    chosen, rejected = (mx.take_along_axis(values, place, axis=0)[0] for place in (first, last))
    return chosen, rejected
