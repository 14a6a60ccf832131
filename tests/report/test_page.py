"""The page as a parser sees it: whole, closed, nothing from outside, nothing let out of its place."""

import re
from html.parser import HTMLParser

import pytest

from mlx_lm_lora_prefplus.report.page import page
from mlx_lm_lora_prefplus.report.runs import read_runs

from .conftest import HOSTILE, report

VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Elements with their attributes, the text of each kind, and whether every tag is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]

    def text(self):
        return "".join(text for tag, text in self.texts if tag not in ("script", "style"))


def rendered(*folders):
    return Page(page(read_runs(folders)))


def check_closed_in(seen):
    """No script but ours, no handler, and no address but those within the page."""
    assert len(seen.all("script")) == 1 and not seen.all("img") and not seen.all("link") and not seen.all("iframe")
    for _, attributes in seen.found:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "srcset", "action")]
    style, script = ("".join(text for tag, text in seen.texts if tag == name) for name in ("style", "script"))
    assert not re.search(r"url\(|@import|https?:", style)
    assert set(re.findall(r"https?://[^\"]+", script)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"fetch\(|XMLHttp|innerHTML|eval\(|import\(", script)
    (policy,) = (one["content"] for one in seen.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


def test_one_run(make):
    seen = rendered(make(about={}))
    check_closed_in(seen)
    text = seen.text()
    assert "It worked: validation accuracy 90 % [85, 93] of 200 rows" in text
    titles = ["Objective (loss)", "Accuracy", "Margin", "Rewards", "Log-probs", "Gradient norm", "Learning rate"]
    charts = [one["data-title"] for one in seen.all("figure")]
    assert charts == [*titles, "Speed", "Peak memory", "entropy", "logps"]
    assert "What differs" not in text
    assert "nan" not in page(read_runs([make("other", about={})])).split("<script>")[0].lower()


def test_training_and_validation_stand_in_one_chart(make):
    names = [one["data-name"] for one in rendered(make(about={})).all("g")]
    assert names[:2] == ["training", "validation"]
    assert {"chosen training", "rejected training", "chosen validation", "rejected validation"} <= set(names)


def test_several_runs_lie_over_one_another(make):
    about = {"versions": {"mlx": "1"}, "settings": {"beta": {"value": 0.1, "source": "trainer default"}}}
    other = {**about, "settings": {"beta": {"value": 0.3, "source": "command line"}}, "reference_digest": "ab" * 32}
    seen = rendered(make("one", about=about), make("two", about=other))
    check_closed_in(seen)
    first = [one["data-name"] for one in seen.all("g")][:4]
    assert first == ["one training", "two training", "one validation", "two validation"]
    assert {one["class"] for one in seen.all("g")} == {"c0", "c1"}
    assert re.search(r"What differs.*beta.*0\.1.*0\.3", seen.text(), re.S)
    assert re.search(r"What differs.*content of the reference.*abababab", seen.text(), re.S)


def test_more_runs_than_colours(make):
    seen = rendered(*(make(f"run{place}", about={}) for place in range(10)))
    assert {one["class"] for one in seen.all("g")} == {f"c{place}" for place in range(8)}


@pytest.mark.parametrize("lines", [[report(1)], [report(1, "valid")], [{"iteration": 3, "split": "train", "x": 1}]])
def test_a_run_of_one_report(make, lines):
    seen = rendered(make(lines=lines))
    check_closed_in(seen)
    assert "no run.json" in seen.text()


def test_hostile_text_stays_text(hostile):
    seen = rendered(hostile)
    check_closed_in(seen)
    assert seen.text().count(HOSTILE) >= 15


def test_a_hostile_folder_name(make):
    name = HOSTILE.replace("/", "")
    seen = rendered(make(name, about={}), make("other", about={}))
    check_closed_in(seen)
    assert name in seen.text()


def test_odd_types_in_the_record_do_no_harm(make):
    for place, about in enumerate(
        [
            {"settings": [1], "data": "x", "versions": None, "summary": {}, "warnings": 3, "iters": "many"},
            {"settings": {"a": None, "b": {"value": None}, "c": 3}, "data": {"train": 3}, "versions": {"a": [1]}},
        ]
    ):
        check_closed_in(rendered(make(f"run{place}", about=about)))


def test_samples_side_by_side(make):
    sample = {"prompt": "Why?", "reference": "Once upon a time"}
    samples = [{"iteration": 1, "policy": "Once", **sample}, {"iteration": 100, "policy": "Because.", **sample}]
    text = rendered(make(about={}, samples=samples)).text()
    order = ["Why?", "Before", "Once upon a time", "After: iteration 100", "Because.", "Earlier evaluations (1)"]
    assert re.search(".*".join(map(re.escape, order)), text, re.S)


def test_data_and_settings(make):
    split = {
        **{"source": "train.jsonl", "kind": "paired", "shape": "strings", "read": 1000, "used": 990, "truncated": 4},
        **{"prompt_tokens": 5000, "chosen_tokens": 3000, "rejected_tokens": 2000, "dropped": {"chosen = rejected": 10}},
    }
    settings = {
        "beta": {"value": 0.2, "source": "command line"},
        "seed": {"value": 0, "source": "host default"},
        "lora_parameters": {"value": {"rank": 8}, "source": "config a.yaml"},
    }
    about = {"data": {"train": split}, "settings": settings, "summary": ["Objective: sigmoid (beta 0.2)"], "iters": 400}
    text = rendered(make(about=about)).text()
    for part in ("1,000", "990", "1.50", "10 left out, chosen = rejected", '{"rank": 8}', "config a.yaml", "of 400"):
        assert part in text
    assert "Defaults (1)" in text
