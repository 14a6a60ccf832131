"""What is ours goes to our run; what is the host's reaches the host as if we were not there."""

from types import SimpleNamespace

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import originals
from mlx_lm_lora_prefplus.host.seam import install as activate
from mlx_lm_lora_prefplus.plugin import installed
from mlx_lm_lora_prefplus.plugin.manager import HOST_MODES, Registry

THEIRS = [mode for mode in HOST_MODES if mode not in ("cpo", "dpo")]


# the host's modes: identical with the seam and without


def host_calls(host, monkeypatch, registry, command_line, active, call):
    """What the host's `run` is given when `call` is made, with the seam or without."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(host, "run", lambda args, training_callback=None: seen.append(vars(args)))
        if active:
            patch.setattr(installed, "load_registry", lambda: registry)
            installed.registry.cache_clear()
            for name in originals.WRAPPED[host.__name__]:
                patch.setattr(host, name, getattr(host, name))
            assert activate.activate(host)
        call()
        if active:
            delattr(host, originals.MARK)
            installed.registry.cache_clear()
    return seen


@pytest.mark.parametrize("mode", [*THEIRS, None])
@pytest.mark.parametrize("form", ["words", "abbreviated", "file", "dict"])
def test_a_host_mode_is_not_touched(plain_host, registry, monkeypatch, command_line, capsys, tmp_path, mode, form):
    config = tmp_path / "run.yaml"
    config.write_text(f"train_mode: {mode or 'sft'}\nbeta: 0.3\ndelta: 2\nunknown: 1\nfuse: false\n")
    chosen = ["--train-mode", mode] if mode else []

    def call():
        if form == "dict":
            command_line("--train-mode", "dpo")  # belongs to another program
            plain_host.main({"model": "m", "loss_type": "x", **({"train_mode": mode} if mode else {})})
        else:
            words = {
                "words": ["--train", "--model", "m", *chosen, "--delta", "3"],
                "abbreviated": ["--resume", "x", "--save", "5", "--sft", "dft", *chosen],
                "file": ["--config", config, "--batch-size", "2"],
            }
            command_line(*words[form])
            plain_host.main()

    found = []
    for active in (False, True):
        calls = host_calls(plain_host, monkeypatch, registry, command_line, active, call)
        found.append((calls, *capsys.readouterr()))
    off, on = found
    if form == "dict":
        on[0][0].pop("config", None), off[0][0].pop("config", None)
    assert on == off
    assert len(off[0]) == 1


@pytest.mark.parametrize("mode", THEIRS)
def test_the_functions_of_a_host_mode_get_the_same_arguments(plain_host, registry, monkeypatch, mode):
    seen = []
    parameters = {name: names for name, names in originals.WRAPPED[plain_host.__name__].items() if "args" in names}
    parameters.pop("main")
    for name, names in parameters.items():
        scope = {"seen": seen}
        defaults = ", ".join(f"{one}=None" for one in names[1:])
        exec(f"def {name}(args, {defaults}): seen.append(dict(locals())); return {name!r}", scope)
        monkeypatch.setattr(plain_host, name, scope[name])
    monkeypatch.setattr(installed, "load_registry", lambda: registry)
    installed.registry.cache_clear()
    activate.activate(plain_host)
    args = SimpleNamespace(train_mode=mode, reference_model_path=None)
    for name, names in parameters.items():
        values = {one: object() for one in names[1:]}
        assert getattr(plain_host, name)(args, *values.values()) == name
        assert getattr(plain_host, name)(args=args, **values) == name
        assert seen == [{"args": args, **values}] * 2
        seen.clear()
    installed.registry.cache_clear()


def test_the_usage_knows_all_modes_and_the_rest_of_the_parser_is_the_hosts(host, command_line):
    command_line("--train-mode", "sft")
    wrapped, original = host.build_parser(), originals.originals_of(host)["build_parser"]()
    assert wrapped.parse_args(["--train-mode", "fancy"]).train_mode == "fancy"
    assert vars(wrapped.parse_args([])) == vars(original.parse_args([]))
    with pytest.raises(SystemExit):
        wrapped.parse_args(["--loss-type", "ipo"])


def test_a_broken_config_file_is_told_where_no_mode_is_typed(host, command_line, tmp_path, capsys):
    """`--no-fuse` in that command is no flag of the host: its parser would complain of that instead."""
    (tmp_path / "broken.yaml").write_text("train_mode: dpo\na: [\n")
    command_line("--config", tmp_path / "broken.yaml", "--no-fuse")
    with pytest.raises(SystemExit) as stopped:
        host.main()
    assert stopped.value.code == 1
    assert "[ERROR] The config file" in (told := capsys.readouterr().err) and "line 3" in told
    command_line("--config", tmp_path / "broken.yaml", "--train-mode", "sft")
    with pytest.raises(Exception, match="while parsing a flow"):
        host.main()


@pytest.mark.parametrize(
    "printed", [(), ("Stopped by SIGINT after iteration 3 of 9.",)], ids=["at once", "after a step"]
)
def test_an_interrupted_run_of_ours_ends_in_one_line(host, our_run, command_line, capsys, printed):
    """A run that stopped after a step has said so itself."""

    def interrupted(*_):
        raise KeyboardInterrupt(*printed)

    our_run.run = interrupted
    command_line("--train-mode", "dpo", "--train")
    with pytest.raises(SystemExit) as stopped:
        host.main()
    assert stopped.value.code == 130
    line = "Interrupted. Adapter files that were already saved are complete."
    assert (line in capsys.readouterr().err) is not bool(printed)
    with pytest.raises(KeyboardInterrupt):
        host.main({"train_mode": "dpo"})


# our modes


@pytest.mark.parametrize("mode", ["cpo", "dpo", "fancy"])
def test_main_from_the_command_line(host, our_run, command_line, capsys, mode):
    command_line("--train-mode", mode, "--train", "--iters", "3", "--no-fuse", "--max-grad-norm", "1.5")
    assert host.main() == "our run"
    (name, (resolved, callback), _) = our_run.calls.pop()
    assert (name, callback) == ("run", None)
    assert (resolved.settings.iters, resolved.settings.fuse, resolved.settings.max_grad_norm) == (3, False, 1.5)
    assert resolved.settings.train_mode == resolved.trainer.mode == mode
    out = capsys.readouterr().out
    assert f"--train-mode {mode} is run by {resolved.provider} (MLX_LM_LORA_PREFPLUS=0 turns it off)" in out
    assert "Configuration Summary" in out and "Batch Size:" in out


def test_the_line_of_ownership_is_no_line_that_programs_look_for(host, our_run, command_line, capsys):
    host.main({"train_mode": "dpo"})
    lines = [line for line in capsys.readouterr().out.splitlines() if "is run by" in line]
    assert len(lines) == 1
    assert not any(word in lines[0] for word in ("loss", "it/s", "peak mem", "memory:"))
    assert not lines[0].startswith("=======")


def test_the_summary_is_the_hosts(plain_host, registry, our_run, monkeypatch, command_line, capsys):
    def summary():
        plain_host.main({"train_mode": "dpo", "load_in_4bits": True, "model": "m"})
        out = capsys.readouterr().out
        return out[out.index("=====") :]

    monkeypatch.setattr(plain_host, "run", lambda args, training_callback=None: None)
    theirs = summary()
    monkeypatch.setattr(installed, "load_registry", lambda: registry)
    installed.registry.cache_clear()
    activate.activate(plain_host)
    assert summary() == theirs
    installed.registry.cache_clear()


def test_main_with_a_file(host, our_run, command_line, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("train_mode: dpo\ndelta: 5\nloss_type: dpop\ngradient_accumulation_steps: 4\n")
    command_line("-c", config, "--save", "7")
    host.main()
    resolved = our_run.calls.pop()[1][0]
    assert (resolved.options.delta, resolved.settings.gradient_accumulation_steps) == (5.0, 4)
    assert resolved.settings.save_every == 7


def test_main_with_a_dict_or_a_namespace(host, our_run):
    host.main({"train_mode": "dpo", "beta": 0.5, "iters": None})
    host.main(SimpleNamespace(train_mode="dpo", beta=0.5))
    for _, (resolved, _), _ in our_run.calls:
        assert (resolved.options.beta, resolved.sources["beta"]) == (0.5, "command line")


def test_an_error_on_the_command_line_is_a_message_and_exit_code_1(host, our_run, command_line, capsys):
    command_line("--train-mode", "dpo", "--loss-type", "nonsense")
    with pytest.raises(SystemExit) as stopped:
        host.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("[ERROR] This setting cannot work:\n  - loss_type: 'nonsense'")
    assert our_run.calls == []


def test_an_error_from_python_is_raised(host, our_run):
    with pytest.raises(UserError, match="nonsense"):
        host.main({"train_mode": "dpo", "loss_type": "nonsense"})


def test_an_error_of_the_run_is_told_the_same_way(host, our_run, command_line, capsys):
    def run(resolved, callback):
        raise UserError("There are no rows.")

    our_run.run = run
    command_line("--train-mode", "dpo")
    with pytest.raises(SystemExit):
        host.main()
    assert capsys.readouterr().err == "[ERROR] There are no rows.\n"


def test_notes_are_told(host, our_run, capsys):
    host.main({"train_mode": "dpo", "batchsize": 3})
    assert "batchsize (command line) is not a key of this mode" in capsys.readouterr().out


def test_run_called_directly(host, our_run, capsys):
    callback = object()
    args = SimpleNamespace(**{**host.CONFIG_DEFAULTS, "train_mode": "dpo", "beta": 0.7, "config": "not read"})
    assert host.run(args, training_callback=callback) == "our run"
    resolved, given = our_run.calls.pop()[1]
    assert given is callback
    assert (resolved.options.beta, resolved.options.delta) == (0.7, 50.0)
    assert "is run by" in capsys.readouterr().out


def test_run_with_what_our_parser_gives(host, our_run, command_line):
    words = command_line("--train-mode", "fancy", "--tau", "0.9", "--loss-type", "curved")
    host.run(host.build_parser().parse_args(words))
    resolved = our_run.calls.pop()[1][0]
    assert (resolved.options.tau, resolved.options.beta, resolved.sources["beta"]) == (0.9, 2.0, "trainer default")


def test_the_functions_of_our_modes_go_to_our_run(host, our_run):
    args = SimpleNamespace(train_mode="dpo", reference_model_path=None)
    assert host.load_dataset(args, "tokenizer") == "our load_dataset"
    assert host.train_model(args=args, model="m", tokenizer="t", adapter_file="f") == "our train_model"
    assert host.evaluate_model(args, "m", "t", test_set="rows") == "our evaluate_model"
    assert our_run.calls == [
        ("load_dataset", (args, "tokenizer"), {}),
        ("train_model", (args,), {"model": "m", "tokenizer": "t", "adapter_file": "f"}),
        ("evaluate_model", (args, "m", "t"), {"test_set": "rows"}),
    ]


def test_a_second_model_is_loaded_only_where_one_is_named(plain_host, registry, monkeypatch):
    monkeypatch.setattr(plain_host, "load_reference_model", lambda args: "a model")
    monkeypatch.setattr(installed, "load_registry", lambda: registry)
    installed.registry.cache_clear()
    activate.activate(plain_host)
    load = plain_host.load_reference_model
    assert load(SimpleNamespace(train_mode="dpo", reference_model_path=None)) is None
    assert load(SimpleNamespace(train_mode="dpo", reference_model_path="x")) == "a model"
    assert load(SimpleNamespace(train_mode="grpo", reference_model_path=None)) == "a model"
    installed.registry.cache_clear()


# plugins that are broken


def test_broken_plugins_are_named_once(plain_host, monkeypatch, capsys, command_line):
    monkeypatch.setattr(installed, "load_registry", lambda: Registry({}, broken={"bad 1.0": "it fell over"}))
    installed.registry.cache_clear()
    activate.activate(plain_host)
    command_line()
    plain_host.build_parser(), plain_host.build_parser()
    assert capsys.readouterr().err == "[mlx-lm-lora-prefplus] the plugin bad 1.0 is skipped: it fell over\n"
    installed.registry.cache_clear()


def test_rivals_stop_their_mode_and_no_other(plain_host, monkeypatch, capsys, command_line, registry, our_run):
    rivals = Registry(registry.modes, rivals={"kto": ["a 1", "b 2"]})
    monkeypatch.setattr(installed, "load_registry", lambda: rivals)
    installed.registry.cache_clear()
    activate.activate(plain_host)
    command_line("--train-mode", "kto")
    with pytest.raises(SystemExit) as stopped:
        plain_host.main()
    assert stopped.value.code == 1
    assert "kto is provided by a 1 and by b 2" in capsys.readouterr().err
    command_line("--train-mode", "dpo")
    assert plain_host.main() == "our run"
    installed.registry.cache_clear()


def test_a_registry_that_cannot_be_made_leaves_the_host_as_it_is(plain_host, monkeypatch, capsys, command_line):
    def broken():
        raise RuntimeError("no")

    monkeypatch.setattr(installed, "load_registry", broken)
    installed.registry.cache_clear()
    activate.activate(plain_host)
    command_line()
    assert plain_host.build_parser().parse_args(["--train-mode", "sft"]).train_mode == "sft"
    assert "its modes are not available: RuntimeError: no" in capsys.readouterr().err
    installed.registry.cache_clear()
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS", "strict")
    with pytest.raises(RuntimeError):
        plain_host.build_parser()
    installed.registry.cache_clear()
