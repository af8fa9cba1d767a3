"""The site: ``sphinx-build -W --keep-going -n docs site``."""

import sys
from pathlib import Path

from regard.race.machine import installed

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "regard"
author = "The regard developers"
copyright = author
release = version = installed("regard") or "from source"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "regard_docs",
]
exclude_patterns = ["_ext", "build"]
templates_path = []

myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # stored outputs; tests/examples runs the notebooks

autodoc_typehints = "none"  # shapes stand in the docstrings
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    "Returns",  # plain text: what stands before a colon there is a shape, not a type
    ("Attributes", "Args"),  # several names may share a line in both
]
nitpicky = True

html_theme = "furo"
html_title = "regard"
html_static_path = ["_static"]
html_css_files = ["pictures.css"]
html_js_files = [("filter.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5fa5", "color-brand-content": "#0b5fa5"},
    "dark_css_variables": {"color-brand-primary": "#7cc0f5", "color-brand-content": "#7cc0f5"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
