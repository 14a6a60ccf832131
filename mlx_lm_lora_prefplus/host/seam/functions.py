"""Replacements for functions of the host, for programs that call them one by one as the host's `run` does.

They are used in this package's modes only.
"""

from pathlib import Path
from typing import Any

import mlx.nn as nn
import mlx_lm_lora.train as host
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...data.tokens.rows import TokenRows, unwrapped
from ...engine.log.output import recorded
from ...engine.model.adapters import adapter_layers
from ...engine.ranks.ranks import Ranks
from ...errors import UserError
from ...plugin.installed import registry
from ...storage.owner import owned
from .. import models
from ..callbacks.loggers import open_loggers
from ..config.resolve import Resolved, resolve
from ..console import print_warning
from ..dropin.host_items import PairRows, token_rows
from ..dropin.settings import OBJECTIVE, with_files
from ..output.previous import keep_previous
from ..run import summary
from ..run.references import ReferencePass
from ..run.resume import check_same_run, find_state, fingerprint
from ..run.rows import read_rows
from ..run.session import Session
from ..run.train import test_policy, train_policy
from .studio_modes import check_has_pipeline


def load_dataset(args: Any, tokenizer: Any) -> tuple[Any, Any, Any]:
    """Replace the host's function: return train, valid and test rows, with an empty list for an unused split.

    Rows of pairs have the host's form (see `PairRows`). Other rows are a `Dataset`.
    """
    check_has_pipeline(args.train_mode)
    resolved = resolve(vars(args), registry(), read_file=False)
    wrapped = tokenizer if isinstance(tokenizer, TokenizerWrapper) else TokenizerWrapper(tokenizer)
    rows_of_set: dict[str, Any] = {}
    for name, split in read_rows(resolved, wrapped).items():
        split.rows.description = summary.rows(name, split).partition(": ")[2]
        rows_of_set[name] = PairRows(split.rows) if resolved.kind == "paired" else split.rows.dataset()
    train_rows, valid_rows, test_rows = (rows_of_set.get(name, []) for name in ("train", "valid", "test"))
    return train_rows, valid_rows, test_rows


def train_model(
    args: Any,
    model: nn.Module,
    tokenizer: Any,
    adapter_file: Path,
    reference_model: nn.Module | None = None,
    judge_model: Any = None,
    judge_tokenizer: Any = None,
    train_set: Any = None,
    valid_set: Any = None,
    training_callback: Any = None,
) -> None:
    """Replace the host's function of this name.

    train_set, valid_set: from `load_dataset` or from the host's classes, with or without its `CacheDataset`.
    """
    resolved, file = _resolved(args), Path(adapter_file)
    ranks = Ranks()
    with (
        recorded() as log,
        ranks.together(log.add),
        owned(file.parent if ranks.first else None, print_warning) as owner,
    ):
        models.make_ready(model, resolved.settings)
        session = Session(resolved, model, tokenizer, _given_rows(resolved, train=train_set, valid=valid_set), ranks)
        state = find_state(session.resolved, file)
        planned = ReferencePass(session, reference_model)
        identity = fingerprint(session, planned)
        if state is not None:
            check_same_run(state, identity, session.resolved.settings)
        settings = session.resolved.settings
        reference = planned.source(done=state.iteration if state else 0)

        def begin() -> None:
            if owner is not None:
                owner.check()
                keep_previous(settings, file, resumed=state is not None)
                log.open(file.parent)

        with open_loggers(settings, session.resolved.values) as loggers:
            arguments = {"state": state, "identity": identity, "begin": begin, "loggers": loggers, "owner": owner}
            train_policy(session, reference, file, training_callback, **arguments)


def evaluate_model(
    args: Any,
    model: nn.Module,
    tokenizer: Any,
    reference_model: nn.Module | None = None,
    judge_model: Any = None,
    judge_tokenizer: Any = None,
    test_set: Any = None,
) -> None:
    """Replace the host's function; see `train_model`.

    Without a reference model, the reference is the model without its adapters. If the model has no adapters, the
    reference is the model that `args.model` names, loaded again.
    """
    resolved = _resolved(args)
    models.make_ready(model, resolved.settings)
    session = Session(resolved, model, tokenizer, _given_rows(resolved, test=test_set))
    if reference_model is None and _lost_its_start(session):
        reference_model = models.load_base(resolved.settings)[0]
    test_policy(session, ReferencePass(session, reference_model).source())


def _lost_its_start(session: Session) -> bool:
    """Return whether the reference is the model before training and must be loaded again to obtain it."""
    resolved = session.resolved
    compares = resolved.needs_reference and not resolved.settings.reference_model_path
    return compares and not adapter_layers(session.model)


def _resolved(args: Any) -> Resolved:
    """Return the caller's settings. Values in options files take precedence, as in `train_dpo`.

    The caller's `beta` and `delta` are used only if they differ from the host's defaults. Otherwise the defaults of the
    chosen loss apply.
    """
    given = {key: value for key, value in vars(args).items() if value is not None}
    for key in OBJECTIVE:
        if given.get(key) == host.CONFIG_DEFAULTS[key]:
            del given[key]
    return with_files(given, Path(given["adapter_path"]) if "adapter_path" in given else None)


def _given_rows(resolved: Resolved, **sets: Any) -> dict[str, TokenRows]:
    """Return the rows of the sets that are not empty."""
    rows = {}
    for name, given in sets.items():
        if given is None or not len(given):
            continue
        if resolved.kind == "paired":
            rows[name] = token_rows(given, resolved.data, f"{name}_set").rows
            continue
        rows_of_set = unwrapped(given)
        if rows_of_set is None:
            raise UserError(
                f"{name}_set is a {type(given).__name__}; in mode {resolved.trainer.mode} it must come from "
                "load_dataset, called with the same train_mode."
            )
        rows[name] = rows_of_set
    return rows
