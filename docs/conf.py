"""The site: Markdown by MyST, the API reference from the docstrings. ``make docs`` builds it, and every
warning is an error.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

import fastparam

ROOT = Path(__file__).resolve().parents[1]

project = "fastparam"
author = "the fastparam developers"
copyright = "2026, the fastparam developers"
version = release = fastparam.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"fastparam {release}"
html_static_path = ["_static"]
html_css_files = ["width.css"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
# Blocks of a shell or of Python; prompts and outputs of docstrings are not copied.
copybutton_prompt_text = ">>> |\\.\\.\\. "
copybutton_prompt_is_regexp = True

autodoc_typehints = "none"  # the docstrings say what an argument is
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Pages that stand elsewhere in the tree, by their names here.
ELSEWHERE = {
    "../csrc/README.md": "sources.md",
    "../benchmarks/NOTES.md": "constants.md",
    "../CHANGELOG.md": "changelog.md",
    "../CONTRIBUTING.md": "contributing.md",
}


def copy_files(app: Sphinx) -> None:
    """Puts the tables of all saved runs into the site as they are, and the images of raw HTML."""
    results, images = (Path(app.outdir) / name for name in ("results", "images"))
    results.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "benchmarks" / "results").glob("*.md"):
        shutil.copy(path, results / f"{path.stem}.txt")
    shutil.copytree(ROOT / "docs" / "images", images, dirs_exist_ok=True)


def point_into_the_site(app: Sphinx, name: str, source: list[str]) -> None:
    """Rewrites links to files of the repository, which a reader of the source follows there."""
    text = re.sub(
        r"\[([^\]]*)\]\(\.\./benchmarks/results/([\w-]+)\.md\)",
        r'<a href="results/\2.txt">\1</a>',
        source[0],
    )
    # The reader of the site chooses light or dark there, not in the browser.
    text = re.sub(
        r'<picture>\n *<source .*? srcset="(.*?)">\n *<img alt="(.*?)" src="(.*?)">\n</picture>',
        r'<img class="only-light" alt="\2" src="\3"><img class="only-dark" alt="\2" src="\1">',
        text,
    )
    for path, page in ELSEWHERE.items():
        text = text.replace(f"]({path}", f"]({page}")
    source[0] = text


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", copy_files)
    app.connect("source-read", point_into_the_site)
