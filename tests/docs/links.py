"""Links of built HTML pages, followed with nothing but the standard library."""

from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.anchors = [], {""}

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        for name in ("href", "src"):
            if found.get(name) and tag != "link":
                self.links.append(found[name])
        if tag == "link" and found.get("href") and found.get("rel") in ("stylesheet", "icon", "index", "search"):
            self.links.append(found["href"])


def read(site):
    """path -> page, of every HTML file of a site."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
        pages[path] = page
    return pages


def dead(site):
    """(page, link) of every link that leads nowhere: no such file, no such anchor, or an address that is none."""
    pages = read(site)
    return [
        (str(path.relative_to(site)), link)
        for path, page in pages.items()
        for link in page.links
        if not _leads_somewhere(site, pages, path, link)
    ]


def _leads_somewhere(site, pages, path, link):
    parts = urlsplit(link)
    if parts.scheme in ("http", "https"):
        return "." in parts.netloc or parts.netloc.startswith("localhost")
    if parts.scheme in ("data", "mailto"):
        return True
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    if parts.scheme or not target.is_file() or not target.is_relative_to(site.resolve()):
        return False
    return not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].anchors
