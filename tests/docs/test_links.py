"""Links between pages resolve, and nothing names a place of the machine that it was written on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, REPOSITORY

_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

#: Homes and work folders of the machines that built this project, and the place of this very copy.
_MACHINE = re.compile("|".join(("/" + r"root/\w", r"(?<!\w)/" + r"work/\w", re.escape(f"{REPOSITORY}/"))))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_internal_links_resolve(page: Path) -> None:
    """The file exists, and the heading that the link names."""
    for target in _LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} does not exist"
        if anchor:
            anchors = {_anchor(heading) for heading in _HEADING.findall(found.read_text())}
            assert anchor in anchors, f"{target}: {found.name} has {sorted(anchors)}"


def test_every_page_of_the_docs_is_reachable_from_the_readme() -> None:
    """A page that nothing links to is never read."""
    reached: set[Path] = set()
    to_read = [REPOSITORY / "README.md", REPOSITORY / "docs/index.md"]
    while to_read:
        page = to_read.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for target in _LINK.findall(page.read_text()):
            path = target.partition("#")[0]
            if path and "://" not in path:
                found = (page.parent / path).resolve()
                to_read.append(found / "README.md" if found.is_dir() and (found / "README.md").exists() else found)
    assert not set(PAGES) - reached


def test_the_index_begins_as_the_readme() -> None:
    """There is one text that says what this is and for whom."""
    texts = [(REPOSITORY / name).read_text().split("\n\n")[:2] for name in ("README.md", "docs/index.md")]
    assert texts[0] == texts[1]


def test_no_file_names_a_path_of_a_build_machine() -> None:
    """Neither code nor documentation."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    named = []
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if path.is_file() and (text := _text(path)) is not None:
            named += [f"{name}: {found.group()}" for found in _MACHINE.finditer(text)]
    assert not named


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return None


def _anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    words = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
