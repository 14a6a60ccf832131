"""The documentation site: sphinx-build -W -b html docs OUT (pip install ".[docs]")."""

from importlib.metadata import version as version_of

from pygments.lexers.data import JsonLexer
from sphinx.highlighting import lexers

project = "mlx-lm-lora-prefplus"
release = version = version_of(project)
author = copyright = "the authors of mlx-lm-lora-prefplus"
extensions = ["myst_parser"]
exclude_patterns = ["upstream/*.patch"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"{project} {release}"
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
lexers["jsonl"] = JsonLexer()

LOSS_PAGES = """
```{toctree}
:hidden:
:glob:

losses/*
```
"""


def setup(app):
    """The page of losses is the parent of the page of each, which its table links; GitHub has no use for a toctree."""

    def with_pages(app, name, source):
        if name == "losses":
            source[0] += LOSS_PAGES

    app.connect("source-read", with_pages)
