"""The companion command."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from mlx_lm_lora_prefplus import __version__, cli
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.tools import doctor
from mlx_lm_lora_prefplus.plugin import manager
from mlx_lm_lora_prefplus.plugin.manager import Registry, load_registry
from mlx_lm_lora_prefplus.storage.sealed import sealed_json


@pytest.fixture
def call():
    return lambda *words: CliRunner().invoke(cli.app, list(words))


def test_version(call):
    done = call("--version")
    assert (done.exit_code, done.stdout) == (0, f"{__version__}\n")


def test_modes_as_json(call):
    rows = {row["mode"]: row for row in json.loads(call("modes", "--json").stdout)}
    assert rows["dpo"] == {
        **{"mode": "dpo", "provider": f"mlx-lm-lora-prefplus {__version__}", "rows": "paired", "reference": True},
        "losses": list(load_registry()["dpo"].trainer.losses),
    }
    assert rows["cpo"]["reference"] is False


def test_modes_as_a_table(call):
    done = call("modes")
    assert done.exit_code == 0
    assert "reference  losses" in done.stdout and "cpo" in done.stdout


def test_modes_names_what_is_broken(call, monkeypatch):
    monkeypatch.setattr(manager, "load_registry", lambda: Registry({}, {"bad 1.0": "fell over"}, {"kto": ["a", "b"]}))
    done = call("modes")
    assert "the plugin bad 1.0 is skipped: fell over" in done.stderr
    assert "mode kto is provided by a and by b" in done.stderr


def test_losses_as_json(call):
    rows = json.loads(call("losses", "--json").stdout)
    assert len(rows) == len({(row["mode"], row["name"]) for row in rows})
    assert {row["mode"] for row in rows} >= {"dpo", "cpo", "orpo", "simpo", "kto", "bco"}
    (ipo,) = json.loads(call("losses", "ipo", "--mode", "dpo", "--json").stdout)
    assert list(ipo) == [
        *("mode", "name", "formula", "meaning", "when", "reference", "means", "log_probs", "rows", "columns"),
        *("options", "value", "references"),
    ]
    assert (ipo["formula"], ipo["reference"], ipo["means"]) == ("(Δ − 1/(2β))²", True, True)
    assert ipo["options"][0]["key"] == "beta" and ipo["options"][0]["default"] == 0.1


def test_losses_as_text(call):
    everything = call("losses").stdout
    assert "dpo: pairs, with a reference" in everything and "bco: unpaired rows" in everything
    assert max(len(line) for line in everything.splitlines()) <= 80
    one = call("losses", "plackett_luce").stdout
    assert "e^(βu_j)]" in one  # brackets are not taken for markup
    assert "Data: prompt, responses, scores." in one and "arXiv:2402.01878" in one and "Notation: p is" in one
    assert "train mode cpo" in call("losses", "ipo").stdout
    assert "train mode cpo" not in call("losses", "ipo", "--mode", "dpo").stdout


def test_a_mode_in_place_of_a_loss_lists_its_losses(call):
    shown = call("losses", "dpo")
    assert shown.exit_code == 0 and shown.stdout == call("losses", "--mode", "dpo").stdout
    assert "(train mode kto)" in call("losses", "kto").stdout, "the loss of the same name"


def test_a_misspelt_loss_is_told_the_nearest(call):
    done = call("losses", "simpoo")
    assert done.exit_code == 1 and isinstance(done.exception, UserError)
    assert "did you mean simpo?" in str(done.exception)


def test_presets(call):
    rows = {row["name"]: row for row in json.loads(call("presets", "--json").stdout)}
    assert rows["simpo-llama3"] == {
        **{"name": "simpo-llama3", "mode": "simpo", "source": "arXiv:2405.14734; princeton-nlp/SimPO, README.md"},
        "values": {"loss_type": "simpo", "beta": 2.5, "gamma_beta_ratio": 0.55, "learning_rate": 1e-6},
        "about": "Llama 3 8B Instruct: all weights, cosine schedule, 1 epoch",
    }
    shown = call("presets").stdout
    assert "gamma_beta_ratio 0.55, learning_rate 1e-6" in shown and "starting points" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_quickstart_hands_over(call, monkeypatch, tmp_path):
    seen = []
    stub = SimpleNamespace(run_quickstart=lambda directory: seen.append(directory) or 3)
    monkeypatch.setitem(sys.modules, "mlx_lm_lora_prefplus.quickstart.main", stub)
    assert call("quickstart", str(tmp_path)).exit_code == 3
    assert seen == [tmp_path]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "[ERROR] No space left on device. Free some space on the disk."),
        (NotADirectoryError(20, "Not a directory", "a/b"), "[ERROR] a/b: Not a directory. A part of the path is a"),
    ],
)
def test_a_disk_that_does_not_take_it_is_a_message(monkeypatch, capsys, error, told):
    def fails():
        raise error

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1 and capsys.readouterr().err.startswith(told)


def test_a_user_error_is_a_message(monkeypatch, capsys):
    def app():
        raise UserError("Too bad.")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert (stopped.value.code, capsys.readouterr().err) == (1, "[ERROR] Too bad.\n")


# doctor: what it finds wrong, each with what to do about it

FINE = {"file": None, "active": True, "native": False, "error": ""}


@pytest.fixture
def examined(monkeypatch, tmp_path):
    """A healthy environment that a test makes ill: `probe`'s answer, and the two start-up files."""
    for name in (doctor.PTH, f"{doctor.HOOK}.py"):
        (tmp_path / name).write_text("")
    monkeypatch.delenv("MLX_LM_LORA_PREFPLUS", raising=False)
    monkeypatch.setattr(doctor, "_site_folders", lambda: [tmp_path])
    monkeypatch.setattr(doctor, "_hook", lambda: tmp_path / f"{doctor.HOOK}.py")

    def examine(**probe):
        monkeypatch.setattr(doctor, "_probe", lambda: {**FINE, **probe})
        report = doctor.examine()
        assert all(problem["what"] and problem["do"] for problem in report["problems"])
        return report, " | ".join(problem["what"] for problem in report["problems"])

    return examine


def test_a_healthy_environment(examined, call, monkeypatch):
    report, problems = examined()
    assert (report["active"], problems) == (True, "")
    assert {"python", "mlx", "mlx-lm", "mlx-lm-lora", "transformers", "datasets"} <= set(report["versions"])
    assert report["modes"]["dpo"] == f"mlx-lm-lora-prefplus {__version__}"
    done = call("doctor", "--json")
    assert (done.exit_code, json.loads(done.stdout)["active"]) == (0, True)
    assert "ok: " in call("doctor").stdout


def test_turned_off(examined, monkeypatch, call):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS", "0")
    assert "MLX_LM_LORA_PREFPLUS=0 turns the plugin off" in examined(active=False)[1]
    done = call("doctor")
    assert done.exit_code == 1
    assert "not active" in done.stdout and "do: unset MLX_LM_LORA_PREFPLUS" in done.stdout


def test_started_without_site(examined, monkeypatch):
    monkeypatch.setattr(sys, "flags", SimpleNamespace(no_site=1))
    assert "started with -S" in examined(active=False)[1]


def test_no_pth(examined, tmp_path):
    (tmp_path / doctor.PTH).unlink()
    assert f"{doctor.PTH} is in none of the folders" in examined(active=False)[1]


def test_no_hook(examined, monkeypatch):
    monkeypatch.setattr(doctor, "_hook", lambda: None)
    assert "cannot be imported" in examined(active=False)[1]


def test_a_damaged_hook(examined, monkeypatch, tmp_path):
    (tmp_path / "_damaged_hook_of_a_test.py").write_text("def install(:")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "HOOK", "_damaged_hook_of_a_test")
    assert "cannot be imported (SyntaxError: " in examined(active=False)[1]


def test_hidden_files(examined, monkeypatch):
    monkeypatch.setattr(doctor, "_is_hidden", lambda path: path.suffix == ".pth")
    assert "hidden flag" in examined(active=False)[1]


def test_an_unsupported_host(examined, monkeypatch):
    monkeypatch.setattr(doctor.machine, "installed", lambda name: "6.1.0")
    assert "6.1.0 is installed" in examined(active=False)[1]


def test_no_host(examined, monkeypatch):
    monkeypatch.setattr(doctor.machine, "installed", lambda name: None)
    problems = examined(active=False, error="ModuleNotFoundError: No module named 'mlx_lm_lora'")[1]
    assert "mlx-lm-lora is not installed" in problems and "ModuleNotFoundError" in problems


def test_a_vendored_host(examined, tmp_path):
    assert "instead of the installed copy" in examined(file=str(tmp_path / "mlx_lm_lora/train.py"))[1]


def test_native_discovery_is_as_good(examined):
    report, problems = examined(active=False, native=True)
    assert (report["active"], problems) == (True, "")
    assert "by its own discovery" in "\n".join(doctor.report_lines(report))


def test_a_reason_that_is_not_known(examined):
    assert "the hook is installed but did not run" in examined(active=False)[1]


def test_the_probe_reports_what_a_fresh_interpreter_says(monkeypatch, tmp_path):
    package = tmp_path / "mlx_lm_lora"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text("print('hello')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS", "0")  # the hook may be installed here
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS", "0")  # where we are installed, our hook would have its say
    assert doctor._probe() == {"file": str(package / "train.py"), "active": False, "native": False, "error": ""}
    (package / "train.py").write_text("raise RuntimeError('broken host')")
    assert doctor._probe()["error"] == "RuntimeError: broken host"


# python -m mlx_lm_lora_prefplus


@pytest.mark.slow
@pytest.mark.parametrize(("switch", "known"), [("", True), ("0", False)])
def test_train_without_the_hook(switch, known):
    command = [sys.executable, "-m", "mlx_lm_lora_prefplus", "train", "--train-mode", "dpo", "--loss-type", "nonsense"]
    environment = {**os.environ, "MLX_LM_LORA_PREFPLUS": switch}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == (1 if known else 2)
    assert ("is not a loss of mode dpo" if known else "unrecognized arguments: --loss-type") in done.stderr


def test_other_words_go_to_the_companion():
    done = subprocess.run([sys.executable, "-m", "mlx_lm_lora_prefplus", "--version"], capture_output=True, text=True)
    assert done.stdout == f"{__version__}\n"


def test_cache_is_shown_and_cleared(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path))
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "abcdefghij.arrow").write_bytes(bytes(2_000_000))
    (tmp_path / "tokens" / "abcdefghij.json").write_text(sealed_json({"source": "rows.jsonl", "used": 12}))
    shown = call("cache").stdout.replace("\n", "")
    assert "abcdefgh" in shown and "rows.jsonl" in shown and f"{tmp_path}: 1 files, 2.00 MB in all" in shown
    told = json.loads(call("cache", "--json").stdout)
    assert told["folder"] == str(tmp_path) and told["entries"][0]["rows"] == 12 and not told["cleared"]
    assert "0 files, 0.00 MB would be cleared" in call("cache", "--older-than", "1h").stdout
    assert "1 files, 2.00 MB would be cleared" in call("cache", "--keep", "1.5MB").stdout
    assert "0 files, 0.00 MB cleared" in call("cache", "--clear", "--keep", "2GB", "--older-than", "30d").stdout
    assert "is not an age" in call("cache", "--older-than", "soon").output
    assert "1 files, 2.00 MB cleared" in call("cache", "--clear").stdout
    assert json.loads(call("cache", "--json").stdout)["entries"] == []


def test_the_table_of_the_cache_breaks_no_path(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "abcdefghij.arrow").write_bytes(bytes(2_000_000))
    source = "/home/somebody/projects/preferences/pairs-of-june/train.jsonl"
    (tmp_path / "tokens" / "abcdefghij.json").write_text(sealed_json({"source": source, "used": 12}))
    (line,) = (line for line in call("cache").stdout.splitlines() if "abcdefgh" in line)
    assert line.rstrip().endswith("…/pairs-of-june/train.jsonl") and len(line) <= 80
    assert source in call("cache", "--json").stdout
