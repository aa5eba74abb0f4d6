"""Follows the links of built pages to other pages, pictures and places in them.

    python docs/check_links.py docs/_build/html

Prints those that lead nowhere, and fails if there are any. Links to other sites are not followed;
pictures, scripts and styles of theirs lead nowhere, since pages are to be read without a network.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, those of them that it loads, and the places in it to lead to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.places = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note what a tag links to, and what it is called."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
                if tag != "a" and ("rel", "canonical") not in attrs:
                    self.loaded.add(value)
            elif name == "id" or (tag == "a" and name == "name"):
                self.places.add(value)


def broken_links(root):
    """Pairs of a page below `root` and a link of its that leads nowhere; and how many links."""
    root = Path(root).resolve()
    paths = [path for path in sorted(root.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    broken = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    broken.append((str(path.relative_to(root)), link))
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            found = target.is_file() and target.is_relative_to(root)
            if found and place and target in pages:
                found = place in pages[target].places
            if not found:
                broken.append((str(path.relative_to(root)), link))
    return broken, sum(len(page.links) for page in pages.values())


def main():
    """Check the pages below a folder."""
    broken, n_links = broken_links(sys.argv[1])
    for page, link in broken:
        print(f"{page}: {link} leads nowhere")
    print(f"{n_links} links, {len(broken)} of them broken")
    sys.exit(bool(broken or not n_links))


if __name__ == "__main__":
    main()
