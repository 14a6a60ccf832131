"""Adapters and states that are damaged, of another form or of another model: told, and nothing else is touched."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.engine.files import run_state
from mlx_lm_lora_prefplus.errors import UserError

from .fuzz import contents, damaged, told_or_fine

pytestmark = pytest.mark.slow

CONFIGS = (
    *("", "null", "[]", "{}", "3", "{", "[" * 9000, '{"lora_parameters": null}', '{"lora_parameters": []}', "\x00"),
    *(
        json.dumps({"num_layers": 1, "lora_parameters": {"rank": 2, "scale": 1.0, "dropout": 0.0, **parts}})
        for parts in (
            *({"rank": "x"}, {"rank": -2}, {"rank": 10**11}, {"rank": None}, {"scale": "x"}, {"scale": float("nan")}),
            *({"dropout": 7}, {"keys": ["nope"]}, {"keys": 5}),
        )
    ),
    *(
        json.dumps({"num_layers": 1, "lora_parameters": {"rank": 2, "scale": 1.0, "dropout": 0.0}, **parts})
        for parts in (
            {"fine_tune_type": "x"},
            {"fine_tune_type": ["x"]},
            {"fine_tune_type": "dora"},
            {"num_layers": "x"},
        )
    ),
)


@pytest.fixture
def trained(world, go) -> Path:
    """The folder of a short run."""
    go(adapter_path="trained", iters=4)
    return world.folder / "trained"


def spoil(weights: dict[str, mx.array], draw: random.Random) -> None:
    """One tensor not finite, missing, of another shape or type, or one too many."""
    name = draw.choice(list(weights))
    value = weights.pop(name)
    weights |= draw.choice(
        [
            {name: mx.full(value.shape, float("nan"))},
            {name: mx.full(value.shape, float("inf"))},
            {name: mx.ones((3, 3))},
            {name: mx.array(1.0)},
            {name: value.astype(mx.complex64)},
            {name: value, "more": mx.ones(3)},
            {},
        ]
    )


def spoil_adapters(folder: Path, draw: random.Random) -> None:
    config, weights = folder / "adapter_config.json", folder / "adapters.safetensors"
    how = draw.randrange(4)
    if how == 0:
        config.write_text(draw.choice(CONFIGS))
    elif how == 1:
        arrays = dict(mx.load(str(weights)))
        spoil(arrays, draw)
        mx.eval(arrays)
        weights.unlink()
        mx.save_safetensors(str(weights), arrays)
    elif how == 2:
        file = draw.choice([config, weights])
        file.write_bytes(damaged(file.read_bytes(), draw))
    else:
        file = draw.choice([config, weights])
        file.unlink()
        if draw.random() < 0.5:
            file.mkdir()


def finite(file: Path) -> bool:
    return all(mx.isfinite(value).all().item() for value in mx.load(str(file)).values())


@pytest.mark.parametrize("key", ["resume_adapter_file", "reference_model_path", "reference_folder", "test"])
def test_damaged_adapters(go, world, trained, key):
    draw, tally = random.Random(key), Counter()
    folder, new = world.folder / "spoilt", world.folder / "new"
    given = {
        "resume_adapter_file": {"resume_adapter_file": "spoilt/adapters.safetensors", "adapter_path": "new"},
        "reference_model_path": {"reference_model_path": "spoilt/adapters.safetensors", "adapter_path": "new"},
        "reference_folder": {"reference_model_path": "spoilt", "adapter_path": "new"},
        "test": {"train": False, "test": True, "data": "test", "adapter_path": "spoilt"},
    }[key]
    shutil.copytree(world.folder / "data", world.folder / "test")
    (world.folder / "test" / "valid.jsonl").rename(world.folder / "test" / "test.jsonl")
    for _ in range(25):
        for one in (folder, new):
            shutil.rmtree(one, ignore_errors=True)
        shutil.copytree(trained, folder)
        spoil_adapters(folder, draw)
        before = contents(world.folder, new, world.folder / "cache")
        with told_or_fine((key, sorted(path.name for path in folder.iterdir())), tally):
            go(**{**given, "iters": 2})
            assert key == "test" or finite(new / "adapters.safetensors")
        assert contents(world.folder, new, world.folder / "cache") == before
    assert tally["refused"] > 5, tally


def changed(values, draw: random.Random) -> None:
    """One value somewhere within, of another kind or left out."""
    while isinstance(values, (dict, list)) and values:
        place = draw.choice(list(values)) if isinstance(values, dict) else draw.randrange(len(values))
        if isinstance(values[place], (dict, list)) and values[place] and draw.random() < 0.7:
            values = values[place]
            continue
        if draw.random() < 0.4:
            del values[place]
        else:
            values[place] = draw.choice([None, -1, 1.5, "x", [], {}, 10**30, True])
        return


def test_states_that_are_whole_and_of_another_form(go, world, trained):
    """Their digest is right: they were made so."""
    draw, tally = random.Random(0), Counter()
    folder = world.folder / "spoilt"
    for number in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained, folder)
        newest = sorted(folder.glob("state-*"))[-1]
        arrays, header = mx.load(str(newest), return_metadata=True)
        values, arrays = json.loads(header["values"]), dict(arrays)
        if number % 2:
            changed(values, draw)
        else:
            spoil(arrays, draw)
        mx.eval(arrays)
        newest.unlink()
        mx.save_safetensors(str(newest), arrays, {"sha256": run_state.BLANK.decode(), "values": json.dumps(values)})
        run_state._seal(newest)
        before = contents(world.folder, folder, world.folder / "cache")
        with told_or_fine((number, values, sorted(arrays)), tally):
            go(adapter_path="spoilt", resume=draw.choice([True, "force"]), iters=6)
            assert finite(folder / "adapters.safetensors")
        assert contents(world.folder, folder, world.folder / "cache") == before
    assert tally["refused"] > 10, tally


def test_a_folder_in_place_of_a_state(go, world, trained):
    newest = sorted(trained.glob("state-*"))[-1]
    newest.unlink()
    newest.mkdir()
    with pytest.raises(UserError, match=r"Could not write .*Is a directory.*Files saved earlier are intact"):
        go(adapter_path="trained", resume=True, iters=6)
    assert newest.is_dir()
