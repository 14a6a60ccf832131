"""The rows of a caller's data sets, the way to compute log-probs of them, and the reference's."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...engine.reference import reference_logps
from ...engine.reference_cache import Store
from ...errors import UserError
from ..config import Resolved
from ..references import References
from ..work import Work
from .options import say
from .rows import token_rows


def work_of(resolved: Resolved, model: nn.Module, **datasets: Any) -> Work:
    """The rows of the data sets that hold any, ready to be visited.

    Raises:
        UserError: there are several processes, or something is wrong with the rows.
    """
    if mx.distributed.init().size() > 1:
        raise UserError(
            "These functions run in one process: start the program without mlx.launch, or train with mlx_lm_lora.train."
        )
    if not hasattr(model, "layers"):  # no model of mlx-lm, in which there is nothing to look for
        resolved = resolved._replace(settings=resolved.settings.model_copy(update={"engine": "plain"}))
    rows = {}
    for split, dataset in datasets.items():
        if dataset is None or (split == "valid" and not len(dataset)):
            continue
        rows[split], cut, dropped = token_rows(dataset, resolved.data, f"{split} data set")
        if cut:
            where = f"{cut} of {len(dataset)} items ({split})"
            say(f"{where} are longer than max_seq_length: {cut - dropped} were cut, {dropped} dropped")
    return Work(resolved, model, _Unknown(), rows)


class _Unknown:
    """A tokenizer of which nothing is known, so that the rows themselves are looked through for tokens too large."""

    def get_vocab(self) -> dict[str, int]:
        return {"": 2**62}


def reference_of(work: Work, ref_model: nn.Module | None) -> References:
    """Log-probs of the rows that the run visits, from a model as it is; None for each split without a model."""
    trainer: Any = work.resolved.trainer
    used = [name for name in work.rows if name == "train" or work.evaluates(name)]
    if ref_model is None:
        return dict.fromkeys(used)
    policy = work.policy_of(ref_model)
    stores = {name: Store(None, len(work.rows[name])) for name in used}
    for name, store in stores.items():
        reference_logps(
            policy,
            work.visited(name),
            len(work.rows[name]),
            f"Reference, {name}",
            store=store,
            missing=len(work.visited_rows(name)),
            weights=lambda batch: trainer.weights(batch, work.resolved.options),
        )
    return stores
