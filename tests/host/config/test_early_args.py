"""Finding the mode before there is a parser."""

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.config.early_args import Request, check_mode, requested_mode, scan
from mlx_lm_lora_prefplus.host.config.parsers import option_strings

OPTIONS = ("--train", "--train-mode", "--config", "--model")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], (None, None)),
        (["--train-mode", "dpo"], ("dpo", None)),
        (["--train-mode=dpo"], ("dpo", None)),
        (["--train-m", "dpo"], ("dpo", None)),
        (["--train-m=dpo"], ("dpo", None)),
        (["--train-mode", "dpo", "--train-mode", "sft"], ("sft", None)),
        (["--train-mode"], (None, None)),
        (["--train-mode", "--train"], (None, None)),
        (["--model", "dpo", "--train"], (None, None)),
        (["-c", "a.yaml"], (None, "a.yaml")),
        (["-ca.yaml"], (None, "a.yaml")),
        (["-c=a.yaml"], (None, "a.yaml")),
        (["--config=a=b.yaml", "--train-mode", "cpo"], ("cpo", "a=b.yaml")),
        (["--conf", "a.yaml"], (None, "a.yaml")),
        (["--", "--train-mode", "dpo"], (None, None)),
    ],
)
def test_scan(words, found):
    assert scan(words, OPTIONS) == Request(*found)


def test_scan_agrees_with_argparse(plain_host):
    parser = plain_host.build_parser()
    words = ["--train-m", "dpo", "--mod", "m", "-cx.yaml", "--batch", "3", "--conf=y.yaml", "--train"]
    parsed = parser.parse_args(words)
    found = scan(words, option_strings(parser))
    assert found == Request(parsed.train_mode, parsed.config) == Request("dpo", "y.yaml")


def test_the_file_is_asked_only_where_the_command_line_is_silent():
    def read(path):
        return {"train_mode": "cpo"}

    assert requested_mode(Request("sft", "x"), read) == "sft"
    assert requested_mode(Request(None, "x"), read) == "cpo"
    assert requested_mode(Request(None, None), read) is None


def test_a_file_that_cannot_be_read_says_nothing_here():
    def read(path):
        raise UserError("no such file")

    assert requested_mode(Request(None, "x"), read) is None
    assert requested_mode(Request("dpo", "x"), read) == "dpo"
    assert requested_mode(Request(None, "x"), lambda path: {"train_mode": ["dpo"]}) is None


def test_a_file_from_which_no_mode_can_be_known_is_refused():
    def unreadable(path):
        raise UserError("line 2, column 1: found character")

    modes = ("sft", "dpo")
    with pytest.raises(UserError, match="line 2"):
        check_mode(Request(None, "x"), unreadable, modes)
    for mode in ("DPO", ["dpo"]):
        with pytest.raises(UserError, match=r"config x\) is not a mode; did you mean dpo\? Choose from: sft, dpo\."):
            check_mode(Request(None, "x"), lambda path, mode=mode: {"train_mode": mode}, modes)
    check_mode(Request("sft", "x"), unreadable, modes)
    check_mode(Request(None, None), unreadable, modes)
    check_mode(Request(None, "x"), lambda path: {"train_mode": "sft"}, modes)
    check_mode(Request(None, "x"), lambda path: {}, modes)


def test_a_misspelt_mode_on_the_command_line_is_one_line_with_the_nearest():
    with pytest.raises(UserError, match=r"^train_mode: 'dopo' \(command line\) is not a mode; did you mean dpo\? .*"):
        check_mode(Request("dopo", None), lambda path: {}, ("sft", "dpo"))
