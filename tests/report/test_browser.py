"""The page in a real browser, where one is installed: values under the pointer, charts as PNG, no line too wide."""

import base64
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.report.page import page
from mlx_lm_lora_prefplus.report.results.runs import read_runs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path"),
]

ASK = """
<script>
(async () => {
  const figure = document.querySelectorAll("figure")[3], svg = figure.querySelector("svg[data-x]");
  const box = svg.getBoundingClientRect();
  const answer = document.createElement("output");
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width, clientY: box.top }));
  answer.dataset.tip = [...figure.querySelector(".tip").childNodes].map((one) => one.textContent).join("; ");
  svg.dispatchEvent(new PointerEvent("pointerleave"));
  answer.dataset.gone = figure.querySelector(".tip, .pointer") === null;
  answer.dataset.png = await png(figure);
  document.body.style.width = "390px";
  answer.dataset.width = document.body.scrollWidth;
  document.body.append(answer);
})();
</script></body>"""


@pytest.fixture
def answers(tmp_path):
    """answers(folders) → what the browser says of the page of these runs."""

    def answers(*folders: Path) -> dict[str, str]:
        file = tmp_path / "asked.html"
        content = page(read_runs(folders)).encode("utf-8", "replace").decode()
        file.write_text(content.replace("</body>", ASK), encoding="utf-8")
        how = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        for milliseconds in (10_000, 60_000, 300_000):  # of the page's clock, which does not wait for pictures
            command = [str(BROWSER), *how, f"--virtual-time-budget={milliseconds}", "--dump-dom", file.as_uri()]
            seen = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
            if found := re.search(r"<output ([^>]*)>", seen):
                return dict(re.findall(r'data-(\w+)="([^"]*)"', found[1]))
        raise AssertionError("the browser gave no answer")

    return answers


def test_one_run(make, answers):
    said = answers(make(about={}))
    assert said["tip"] == (
        "iteration 100; chosen training: 0.2; rejected training: -0.6; chosen validation: 0.2; "
        "rejected validation: -0.6"
    )
    assert said["gone"] == "true"
    picture = base64.b64decode(said["png"].removeprefix("data:image/png;base64,"))
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height > 460) == (800, True) and len(picture) > 5000
    assert int(said["width"]) <= 390


def test_several_runs_and_hostile_text(make, hostile, answers):
    said = answers(make("one", about={}), hostile)
    assert "one chosen training: 0.2" in said["tip"]
    assert int(said["width"]) <= 390
