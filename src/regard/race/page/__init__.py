"""``report.html``: one file that opens offline, made from the content of ``results.json``."""

from regard.race.page.render import render as render
