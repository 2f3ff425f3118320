"""What the documentation site adds to docs/: pages of the root, a list of decisions, their links.

A hook of MkDocs. Links to what is no page of the site, such as source files, become plain names.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Files of the root, and the pages of the site that they are."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
SOURCE = re.compile(r'(<img src=")docs/')


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=moved(text, ROOT)))
    files.append(File.generated(config, "decisions/index.md", content=decisions()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to pages of the site, or to nowhere."""
    if page.file.src_uri in (*PAGES.values(), "decisions/index.md"):
        return markdown
    return moved(markdown, (DOCS / page.file.src_uri).parent)


def moved(text: str, folder: Path) -> str:
    """The text of a file in this folder, with its links as they are in the site."""

    def link(match: re.Match[str]) -> str:
        bang, shown, target = match.groups()
        place, hash_, anchor = target.partition("#")
        if "://" in target or not place:
            return match[0]
        found = (folder / place).resolve()
        if found.parent == ROOT and found.name in PAGES:
            there = DOCS / PAGES[found.name]
        elif found.is_dir() and found == DOCS / "decisions":
            there = found / "index.md"
        elif found.is_relative_to(DOCS):
            there = found
        else:
            return shown
        start = DOCS if folder == ROOT else folder
        return f"{bang}[{shown}]({os.path.relpath(there, start)}{hash_}{anchor})"

    return SOURCE.sub(r"\1", LINK.sub(link, text))


def decisions() -> str:
    """The list of all decisions, by their titles."""
    lines = ["# Decisions", "", "Each cost an hour: question, choice, why, what we gave up.", ""]
    for file in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        title = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"* [{title}]({file.name})")
    return "\n".join([*lines, ""])
