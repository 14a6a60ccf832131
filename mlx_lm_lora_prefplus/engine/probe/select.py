"""Choose the fastest exact method to compute log-probs of a model. At the start of a run, the methods are tested on the
loaded model.

If a model ignores padding masks or caches, a method that relies on them gives wrong gradients without any error. Each
method is therefore tested on a few small batches of rows of different lengths. It must give the same results as plain
forward passes of single rows without padding.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...data.batches.packing import with_packed
from ...plugin.protocol import Batch, Scorer, Scores
from ...settings import RunSettings
from ..logprobs.chunked import ChunkedPolicy
from ..logprobs.frozen_trunk import Trunk, find_trunk, reference_logps_sharing_trunk
from ..logprobs.packed import PackedPolicy, packed_as_given
from ..logprobs.plain import PlainPolicy
from ..logprobs.prefix_cache import has_states, key_heads
from ..logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy, call_tokens
from ..memory.recompute import Keep
from ..mlx_errors import lacks_gradient, raise_of_device
from ..model.adapters import adapter_layers, adapters_off
from ..model.dropout import dropouts
from ..model.split_model import SplitModel, split_model
from .known_choice import Choice, KnownChoice
from .skip_layers import skippable_layers, skipping
from .verify import Difference, Oracle

MOST_ROWS = 32
"""The most rows that a batch of the test may have."""


class SelectedMethod(NamedTuple):
    """policy: the method. description: a text for the user with the method and why it was chosen. compilable: whether
    `mx.compile` can trace it. trunk: the frozen trunk, if policy and reference can share its output; else None.
    no_gradient: MLX's error if it has no gradient of an operation of the model.
    """

    policy: Scorer
    description: str
    compilable: bool = True
    trunk: Trunk | None = None
    no_gradient: str | None = None


PLAIN = "prompt and completion through the whole model"


def choose_policy(
    model: nn.Module,
    settings: RunSettings,
    examples: Batch | None = None,
    keep: Keep = Keep.ALL,
    known: KnownChoice | None = None,
    packs: bool | None = None,
) -> SelectedMethod:
    """Return the fastest method that is exact on `model`. With the setting `engine: plain`, return the plain method
    without a test.

    examples: long examples of the data, with prompts of different lengths, for a further test. Errors with sliding
    windows, scaled positions and blocks of keys do not show in short rows.
    keep: what layers should keep for the backward pass. If that is not exact, they keep all activations.
    known: the file with an earlier run's choice, which is used without a test. If there is none, the choice of this run
    is written to it.
    packs: whether to try packed rows, which suit a compiled step. None: on a GPU.
    """
    if settings.engine == "plain":
        return SelectedMethod(PlainPolicy(model, keep), f"{PLAIN} (engine: plain){_kept(keep)}")
    with _training_without_dropout(model):
        ways = _ways(model, settings, call_tokens() is None if packs is None else packs)
        choice = known.read() if known else None
        if choice is None:
            choice = _probe(model, settings, ways, examples, keep)
            if known:
                known.write(choice)
        selected = _selected(choice, model, ways)
    mx.clear_cache()
    return selected


def _selected(choice: Choice, model: nn.Module, ways: Sequence["Method"]) -> SelectedMethod:
    if choice.method is None or choice.split is None:
        return SelectedMethod(PlainPolicy(model), choice.description, choice.compilable, no_gradient=choice.no_gradient)
    halves = SplitModel.restored(model, choice.split)
    policy = ways[choice.method].make(halves)
    policy.keep = choice.keep
    trunk = find_trunk(model, halves.head_names) if choice.shares_trunk else None
    return SelectedMethod(policy, choice.description, choice.compilable, trunk)


@contextmanager
def _training_without_dropout(model: nn.Module) -> Iterator[None]:
    """While the context is open, the model is in training mode, but without dropout. Training mode matters because some
    models compute differently in it than for generation.
    """
    training = model.training
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    try:
        yield
    finally:
        model.train(training)


class Method(NamedTuple):
    """A method to compute log-probs that may be exact.

    make: a function that makes the policy for a split model. description: the method in words. compilable: as in
    `SelectedMethod`.
    trials: functions like `make` for all variants of the method, set up for the probe's short rows. Empty: the probe
    tests `make`.
    in_pieces: whether the method computes rows in chunks. Such a method needs little memory even if layers keep all
    activations.
    """

    make: Callable[[SplitModel], HeadPolicy]
    description: str
    compilable: bool = True
    trials: Sequence[Callable[[SplitModel], HeadPolicy]] = ()
    in_pieces: bool = False


def _in_groups(kind: type[HeadPolicy], description: str, compilable: bool = True) -> Method:
    """Return a method that computes rows in groups of similar length if that is faster. The probe tests it with a
    single group, and with one group per length.
    """
    cost = call_tokens()
    trials = () if cost is None else (kind, partial(kind, call_tokens=0))
    return Method(partial(kind, call_tokens=cost), description, compilable, trials)


def _ways(model: nn.Module, settings: RunSettings, packs: bool) -> list[Method]:
    """Return the methods to test, fastest first. With the setting `efficient_long_context`, the methods in chunks come
    before all others. packs: whether packed rows are among the methods.
    """
    together = _in_groups(HeadPolicy, "prompt and completion together")
    try:
        padded = not has_states(model)
    except Exception:  # the model has an unsupported kind of cache, or failed to make one
        return [together]
    once = [_in_groups(PairwisePrefixPolicy, "the prompt once for its completions, prompt by prompt", False), together]
    if padded:
        once.insert(0, _in_groups(SharedPrefixPolicy, "the prompt once for its completions"))
    if padded and packs:
        trials = SharedPrefixPolicy, partial(PackedPolicy, always=True)
        once.insert(0, Method(PackedPolicy, "the prompt once, in one row with its completions", trials=trials))
    if not settings.efficient_long_context or dropouts(model):
        return once
    width = settings.long_context_chunk
    description = f"in chunks of {width} tokens, the prompt once for its completions"
    pieces = [
        Method(
            partial(ChunkedPolicy, width=width, pairwise=True, call_tokens=call_tokens()),
            f"{description}, prompt by prompt",
            False,
            [_small(True)],
            True,
        )
    ]
    if padded:
        padded_pieces = partial(ChunkedPolicy, width=width, call_tokens=call_tokens())
        pieces.insert(0, Method(padded_pieces, description, False, [_small(False)], True))
    return [*pieces, *once]


def _small(pairwise: bool) -> Callable[[SplitModel], HeadPolicy]:
    """Return a function that makes a policy with chunks of 2 tokens, so that even the short rows of the probe are
    divided into chunks.
    """
    return partial(ChunkedPolicy, width=2, pairwise=pairwise, call_tokens=0)


def _probe(
    model: nn.Module, settings: RunSettings, ways: Sequence[Method], examples: Batch | None, keep: Keep
) -> Choice:
    """Test the methods on the model, fastest first, and return the first exact one.

    The test first skips layers that are like others (see `skip_layers`). This counts only if the fastest method passes,
    and if its log-probs are then confirmed with all layers. Otherwise the test is repeated with all layers.
    """
    if layers := skippable_layers(model):
        with skipping(layers):
            choice, oracle = _tested(model, settings, ways, examples, keep)
        same_keep = choice.keep is keep or (choice.keep is Keep.ALL and ways[0].in_pieces)
        if choice.method == 0 and same_keep and oracle:
            policy = _selected(choice, model, ways).policy
            packed = [PackedPolicy(policy.halves, always=True)] if isinstance(policy, PackedPolicy) else []
            if all(map(oracle.confirms, [policy, *packed])):
                return choice
    return _tested(model, settings, ways, examples, keep)[0]


def _tested(
    model: nn.Module, settings: RunSettings, ways: Sequence[Method], examples: Batch | None, keep: Keep
) -> tuple[Choice, Oracle | None]:
    """Return the first exact method, and the test rows if there are any."""
    plain, halves = PlainPolicy(model), split_model(model)
    if halves is None:
        return _plainly("its head cannot be separated"), None
    vocabulary = halves.logits(halves.hidden(mx.array([[1]]))).shape[-1]
    try:
        oracle = Oracle(model, vocabulary, _row_counts(halves))
    except Exception as error:  # a model may raise anything if no gradient can be taken
        raise_of_device(error)
        missing = str(error) if lacks_gradient(error) else None
        return _plainly(f"no gradient could be taken: {error}")._replace(no_gradient=missing), None
    refused = ""
    if settings.efficient_long_context and dropouts(model):
        refused = "; not in chunks: dropout would differ when a chunk is computed again"
    for number, way, kept in ((i, one, level) for i, one in enumerate(ways) for level in _levels(one, keep)):
        tries = [make(halves) for make in way.trials or (way.make,)]
        for tried in tries:
            tried.for_gradient, tried.keep = True, kept
        variants = list({type(tried): tried for tried in reversed(tries)}.values())
        found = [oracle.difference(tried) for tried in variants]
        # Variants of one class differ in how rows are grouped. The largest batch is enough to test that.
        found += [oracle.difference(tried, oracle.batches[-1:]) for tried in tries if tried not in variants]
        difference = Difference(*map(max, zip(*found, strict=True)))
        if oracle.passes(difference):
            policy = way.make(halves)
            policy.keep = kept
            # The variants pad the rows; one packs several into a row, one packs none. (Chunks of two tokens are slow.)
            compared = [policy] if way.in_pieces else variants
            if examples is not None and not all(oracle.agrees(one, HeadPolicy(halves), examples) for one in compared):
                refused += f"; {way.description}: not exact on rows {list(map(int, examples.ids))} of the data"
                continue
            exactness = f"gradients within {difference.gradients:.0e} of plain ones{refused}"
            description = f"{way.description}, the head at completion tokens only{_kept(kept)} ({exactness})"
            traceable = way.compilable and _traceable(policy, oracle.batches[0])
            shares = all(_shares_trunk(tried, oracle) for tried in tries)
            return Choice(number, kept, description, traceable, shares, halves.found()), oracle
        refused += f"; {way.description}{_kept(kept)}: not exact here"
    if not oracle.passes(oracle.difference(plain)):
        refused += "; but padding changes its log-probs, as if tokens attended to later ones"
    return Choice(None, Keep.ALL, f"{PLAIN}{refused}", _traceable(plain, oracle.batches[0]), False), oracle


def _levels(way: Method, keep: Keep) -> list[Keep]:
    """Return what layers may keep with this method, best first. keep: what they should keep."""
    if way.in_pieces:
        return [Keep.ALL]
    if way.make is PackedPolicy:
        return [keep]  # to need less memory matters more than packed rows
    return list(dict.fromkeys((keep, Keep.ALL)))


def _plainly(reason: str) -> Choice:
    return Choice(None, Keep.ALL, f"{PLAIN} ({reason})", True, False)


def _kept(keep: Keep) -> str:
    return "" if keep is Keep.ALL else f", keeping {keep.value} for the gradient"


def _shares_trunk(policy: HeadPolicy, oracle: Oracle) -> bool:
    """Return whether the model has a frozen trunk whose output for the reference can be reused for the policy with
    exact results.
    """
    model: Any = policy.model
    trunk = find_trunk(model, policy.halves.head_names)
    if trunk is None or not _same_for_both(model, trunk, policy.halves.head_names):
        return False

    def over_the_same(batch: Batch) -> Scores:
        _, own = reference_logps_sharing_trunk(policy, trunk, batch, None, adapters_off(model))
        return own(batch)

    return oracle.passes(oracle.difference(over_the_same))


def _same_for_both(model: Any, trunk: Trunk, head_names: Collection[str]) -> bool:
    """Return whether all adapters and dropout modules are above the trunk. If so, the trunk computes the same for
    policy and reference.
    """
    names = {id(module): name for name, module in model.named_modules()}
    of_head = [layer for layer in adapter_layers(model) if f"{names[id(layer)]}.lora_a" in head_names]
    above = {id(module) for layer in (*model.layers[trunk.size :], *of_head) for module in layer.modules()}
    return all(id(module) in above for module in (*adapter_layers(model), *dropouts(model)))


def _row_counts(halves: SplitModel) -> set[int]:
    """Return the head counts of the layers, as batch sizes for the test. If a batch has as many rows as a layer has
    heads, a model may confuse a mask over rows with a mask over heads.
    """
    try:
        return {heads for heads in key_heads(halves) if heads <= MOST_ROWS}
    except Exception as error:  # if the model fails on these caches, the test of them reports it
        raise_of_device(error)
        return set()


def _traceable(policy: Scorer, batch: Batch) -> bool:
    def logps(batch: Batch) -> mx.array:
        with packed_as_given(policy, batch):
            return policy(batch).logps

    try:
        mx.compile(logps)(with_packed(batch) if isinstance(policy, PackedPolicy) else batch)
    except Exception:  # a model that reads values of arrays, as some mixtures of experts do
        return False
    return True
