"""Sphinx configuration: `make docs`."""

from __future__ import annotations

from sphinx.pycode import ModuleAnalyzer

import mmrobust

project = "mmrobust"
author = "The mmrobust authors"
copyright = author
version = release = mmrobust.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
# What scripts write for a set of results is included by a page, and is no page itself.
exclude_patterns = ["_build", "results/*/**"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# A reference that leads nowhere is an error, save those to other projects: no page here needs the network to build.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(torch|collections|numpy)\..*|Tensor|optional|.*\.T")]

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"mmrobust {release}"

_analyze = ModuleAnalyzer.analyze


def _analyze_without_overloads(self: ModuleAnalyzer) -> None:
    """Overloads are for type checkers; a page shows the signature with its defaults."""
    _analyze(self)
    self.overloads.clear()


ModuleAnalyzer.analyze = _analyze_without_overloads  # type: ignore[method-assign]
