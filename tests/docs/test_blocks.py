"""What the pages show runs as shown: every Python block and every command, see `pages`."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, RABBITMQ_PAGE, REPOSITORY, Story, blocks

#: Most blocks that may be left out, over all pages: those that install something or belong to a system's services.
MOST_SKIPPED = 9

#: Have tests of their own: `test_demo.py`, with smaller sizes than the page's, and `tests/rabbitmq/test_page.py`.
_ELSEWHERE = {REPOSITORY / "examples" / "digits" / "README.md", RABBITMQ_PAGE}

_WITH_BLOCKS = [page for page in PAGES if page not in _ELSEWHERE and any(b.language for b in blocks(page.read_text()))]
_NEEDS = re.compile(r"<!-- test: needs (\w+) -->")


@pytest.mark.parametrize("page", _WITH_BLOCKS, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_page_runs_as_it_is_written(page: Path, tmp_path: Path, redis_url: str) -> None:
    """One page is one story in one directory; pages of examples find the example's files there."""
    for module in _NEEDS.findall(page.read_text()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed.")
    folder = tmp_path / "project"
    folder.mkdir()
    if page.is_relative_to(REPOSITORY / "examples"):
        for path in page.parent.glob("*.py"):
            shutil.copy(path, folder)
            copied = folder / path.name
            copied.write_text(copied.read_text().replace("redis://localhost:6379/0", redis_url))
    Story(folder, redis_url).play(page)


def test_few_blocks_are_left_out_and_each_says_why() -> None:
    """A page that cannot be executed is a page that can be wrong."""
    skipped = [
        (f"{page.relative_to(REPOSITORY)}:{block.line}", block.skip_reason)
        for page in PAGES
        for block in blocks(page.read_text())
        if block.skip_reason is not None
    ]
    assert all(reason for _, reason in skipped), skipped
    assert len(skipped) <= MOST_SKIPPED, skipped


def test_every_fence_is_a_block() -> None:
    """A block that the pattern misses would silently not run."""
    for page in PAGES:
        text = page.read_text()
        fences = len(re.findall(r"^ *```", text, re.MULTILINE))
        assert fences == 2 * len(list(blocks(text))), page


def test_every_numbered_example_has_a_page() -> None:
    """An example without a page would not be executed."""
    for folder in (REPOSITORY / "examples").glob("[0-9]*"):
        assert (folder / "README.md") in PAGES, folder
        assert len(list(folder.glob("*.py"))) == 1, folder


@pytest.mark.parametrize(
    "page",
    [
        "```python\nraise SystemExit(3)\n```\n",
        "```sh\nfalse\ntrue\n```\n",
        "<!-- test: exits 1 -->\n```sh\ntrue\n```\n",
        "```sh\necho one\n```\n\n<!-- test: output -->\n```text\ntwo\n```\n",
        "```sh\necho one two\n```\n\n<!-- test: output -->\n```text\ntwo\none\n```\n",
        "<!-- test: server until never -->\n```sh\ntrue\n```\n",
    ],
)
def test_a_page_that_is_wrong_fails(page: str, tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    path = REPOSITORY / "docs" / "not-there.md"
    with pytest.raises(AssertionError, match=r"docs/not-there\.md:1:|docs/not-there\.md:5:"):
        Story(tmp_path, "redis://nowhere").play(path, page)
