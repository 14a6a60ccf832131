"""The page as a parser sees it: whole, closed, nothing from outside, nothing let out of its place."""

import ast
import inspect
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.report.drawing.charts import COUNTERS, further_charts
from mlx_lm_lora_prefplus.report.page import page
from mlx_lm_lora_prefplus.report.results import verdict
from mlx_lm_lora_prefplus.report.results.runs import RunRecord, read_runs
from tests.paths import DOCS

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
    assert (
        "Accuracy is 90 % of 200 validation rows (95 % interval 85 to 93 %), compared with 50 % before training" in text
    )
    titles = ["Loss", "Accuracy", "Margin", "Rewards", "Log-probability", "Gradient norm", "Learning rate"]
    charts = [one["data-title"] for one in seen.all("figure")]
    assert charts == [*titles, "Speed", "Peak memory", "entropy", "logps"]
    assert "Settings that differ" not in text
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
    assert re.search(r"Settings that differ.*beta.*0\.1.*0\.3", seen.text(), re.S)
    assert re.search(r"Settings that differ.*weights of the reference \(digest\).*abababab", seen.text(), re.S)


def about_run(mode="dpo", rows=200, **settings):
    """A record of a run; `settings` are set on the command line, and their default is 1."""
    known = {
        **{"train_mode": {"value": mode, "source": "command line", "default": "sft"}},
        **{"model": {"value": "/home/me/models/tiny", "source": "command line"}},
        **{"data": {"value": "/home/me/pets", "source": "config a.yaml", "default": "data"}},
        **{key: {"value": value, "source": "command line", "default": 1} for key, value in settings.items()},
    }
    data = {"valid": {"kind": "paired", "used": rows}}
    return {"started": "2026-11-22T02:55:02+00:00", "settings": known, "data": data, "versions": {"mlx": "1"}}


def test_the_title_says_mode_model_data_and_date(make):
    seen = rendered(make(about=about_run()))
    assert ("h1", "DPO of models/tiny on me/pets, 22 November 2026") in seen.texts
    assert ("title", "DPO of models/tiny on me/pets, 22 November 2026 – preference tuning") in seen.texts


def test_warnings_stand_above_the_charts(make):
    lines = [report(1, "valid"), {"iteration": 5, "warning": "kl_growing", "text": "far away"}, report(9, "valid")]
    order = [one["id"] for one in rendered(make(lines=lines, about=about_run())).all("section")]
    assert order.index("warnings") < order.index("curves")


def test_an_error_that_ended_the_run_decides_the_verdict(make):
    lines = [report(1, "valid"), {"iteration": 2, "warning": "stopped", "text": "The loss is not finite."}]
    text = rendered(make(lines=lines, about=about_run())).text()
    assert (
        "It stopped with an error." in text
        and text.count("The loss is not finite.") == 2
        and "Iteration 2, stopped: The loss is not finite." in text
    )


def test_the_verdict_counts_the_warnings_and_says_what_to_do(make):
    lines = [report(1, "valid"), {"iteration": 5, "warning": "kl_growing", "text": "far away"}, report(100, "valid")]
    seen = rendered(make(lines=lines, about={**about_run(), "warnings": ["train: chosen is longer."]}))
    assert "Warnings: 1 at the start, 1 during training (kl_growing). See below." in seen.text()
    assert "Iteration 5, kl_growing: far away" in seen.text() and "Next: read a few answers" in seen.text()
    assert any(tag == "code" and text.startswith("mlx_lm_lora.prefplus export /") for tag, text in seen.texts)


LOSS = {"loss": 1.314, "nll_loss": 6.2}


@pytest.mark.parametrize(
    ("mode", "settings", "words"),
    [
        ("dpo", {"sft_weight": 0.1}, "0.1 × the {} (sft_weight): in the first validation, 0.1 × 6.2 = 0.62 of 1.31."),
        ("dpo", {"sft_weight": 0.1, "sft_normalization": "sequence"}, "0.1 × the {} (sft_weight)."),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]}, "0.5 × the {} (sft): in the first"),
        ("cpo", {"cpo_alpha": 1.0}, "1 × the {} (cpo_alpha): in the first validation, 1 × 6.2 = 6.2 of 1.31."),
        ("orpo", {}, "1 × the {}."),
        ("dpo", {"sft_weight": 0.0}, None),
        ("simpo", {}, None),
        ("kto", {}, None),
        ("dpo", {"sft_weight": "much"}, None),
    ],
)
def test_the_nll_in_the_loss_is_explained(make, mode, settings, words):
    """A DPO loss starts at 0.693 without it."""
    lines = [report(1, "valid", **LOSS), report(100, "valid", nll_loss=5.0)]
    text = rendered(make(lines=lines, about=about_run(mode, **settings))).text()
    if words is None:
        assert "It includes" not in text
    else:
        assert "It includes " + words.format("negative log-likelihood of the chosen completions") in text


def test_of_several_runs_those_with_nll_are_named(make):
    folders = make("one", about=about_run(sft_weight=0.1)), make("two", about=about_run(sft_weight=0.0))
    assert "Different losses have different scales. one: It includes 0.1 ×" in rendered(*folders).text()


def test_the_rule_names_each_verdict(make):
    text = rendered(make(about=about_run())).text()
    heads = {node.value for node in ast.walk(ast.parse(inspect.getsource(verdict))) if isinstance(node, ast.Constant)}
    heads = {head for head in heads if isinstance(head, str) and re.fullmatch(r"(It|No|Too) [\w ]+(, but)?", head)}
    assert len(heads) == 8
    for head in heads:
        assert f"{head}: " in text, head


def test_what_a_reader_cannot_know_is_explained_or_left_out(make):
    summary = ["Reference: the base model, 3 of 9 rows from the cache", "Engine: the prompt once", "Objective: sigmoid"]
    text = rendered(make(about={**about_run(), "summary": summary, "reference_digest": "ab" * 32})).text()
    settings, versions = text.split("Versions and files")
    assert "the base model" in settings and "from the cache" not in text
    assert "the prompt once" not in settings and "abab" not in settings
    assert "The engine is the method" in versions and "the prompt once" in versions and "abab" in versions


def test_a_run_without_samples_says_how_to_get_them(make):
    assert "sample_prompts: 4" in rendered(make(about=about_run())).text()


def test_each_chart_says_how_to_read_it():
    documented = re.findall(r"^\| (`.*?) \|", (DOCS / "metrics.md").read_text("utf-8"), re.M)
    names = {name for cell in documented[:24] for name in re.findall(r"`([\w/]+)`", cell)}
    names = {name for name in names if name not in COUNTERS} - {"iteration", "split", "warning", "text"}
    assert {"entropy", "logits/chosen", "loss", "kl"} <= names
    run = RunRecord("a", Path("a"), {1: dict.fromkeys(names, 1.0)}, {}, [], [], {}, [])
    assert [chart.title for chart in further_charts([run]) if not chart.about] == []


def test_settings_that_differ_from_the_default_come_first(make):
    text = rendered(make(about=about_run(beta=2, iters=1))).text()
    assert re.search(r"Different from the default.*beta21command line.*Equal to the default \(1\).*iters1", text)


def test_the_difference_of_two_runs_has_an_interval(make):
    worse = [report(1, "valid"), report(100, "valid", **{"rewards/accuracies": 0.7})]
    text = rendered(make("one", about=about_run()), make("two", about=about_run("cpo"), lines=worse)).text()
    assert "two minus one−20 points−28 to −12A clear difference" in text
    assert "no results per row" in text


def test_runs_on_different_rows_are_not_subtracted(make):
    text = rendered(make("one", about=about_run()), make("two", about=about_run(rows=10))).text()
    assert "Not compared, because the runs were validated on different rows" in text
    assert "one and two." in text and "two minus one" not in text


def test_a_setting_that_only_one_mode_has_differs_only_if_it_was_changed(make):
    runs = [make("one", about=about_run(delta=1, gamma=3)), make("two", about=about_run("cpo"))]
    differ = rendered(*runs).text().split("Settings that differ")[1].split("Curves")[0]
    assert "gamma" in differ and "delta" not in differ


def test_data_that_runs_share_are_shown_once(make):
    text = rendered(make("one", about=about_run()), make("two", about=about_run())).text()
    assert text.count("rows read") == 1


def test_a_long_name_is_shortened_in_tables_only(make):
    name = "a" * 60 + "z" * 60
    text = rendered(make(name, about=about_run()), make("two", about=about_run(beta=2))).text()
    assert name in text and "a" * 20 + "…" + "z" * 20 in text.split("Comparison")[-1]


def test_the_verdict_is_a_sentence_with_its_reason(make):
    fallen = {"logps_per_token/chosen": -4.0}
    text = rendered(make(lines=[report(1, "valid"), report(100, "valid", **fallen)], about=about_run())).text()
    assert (
        "It learns, but the chosen completions are much less probable (−2.50 nats per token), so read samples." in text
    )


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
    order = [
        "Why?",
        "Before training",
        "Once upon a time",
        "After training: iteration 100",
        "Because.",
        "Earlier completions (1)",
    ]
    assert re.search(".*".join(map(re.escape, order)), text, re.S)


def test_many_samples_are_folded_after_the_fifth(make):
    samples = [{"iteration": 9, "prompt": f"p{n}", "policy": "same", "reference": "same"} for n in range(12)]
    text = rendered(make(about={}, samples=samples)).text()
    assert text.index("p4") < text.index("More prompts (7)") < text.index("p5")
    assert "iteration 9, same text as before" in text


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
    for part in (
        "1,000",
        "990",
        "1.50",
        "10 rows left out, chosen = rejected",
        '{"rank": 8}',
        "config a.yaml",
        "of 400",
    ):
        assert part in text
    assert "Equal to the default (1)" in text
