"""The printed tree: as text, in notebooks and by rich; names are only ever text."""

from __future__ import annotations

from html.parser import HTMLParser
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.records import Exactness
from genops_ctx.core.tree import ContextTree
from tests.strategies import printable

EXACT, ESTIMATED = (Exactness.EXACT,), (Exactness.EXACT, Exactness.ESTIMATED)
TREE = ContextTree(
    "support",
    12_500_000,
    1_234,
    3,
    refused=1,
    unpriced=1,
    exactness=ESTIMATED,
    limits=(5_000_000_000, 1_000_000_000),
    children=(
        ContextTree(
            "triage", 2_500_000, 1_000, 1, exactness=EXACT, children=(ContextTree("deep", 0, 0, 0),), hidden=4
        ),
        ContextTree("answer", 10_000_000, 234, 2, exactness=ESTIMATED),
    ),
)


def rendered(tree: ContextTree, width: int = 200) -> str:
    """As rich prints it to a file."""
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width, color_system=None).print(tree)
    return out.getvalue().rstrip("\n")


def test_as_text() -> None:
    assert str(TREE).splitlines() == [
        "support  $0.0125 + unknown of $5.00 of $1.00 · 3 calls · 1,234 tokens · estimated · 1 refused",
        "├─ triage  $0.0025 · 1 call · 1,000 tokens · exact",
        "│  ├─ deep  $0.00 · 0 calls · 0 tokens",
        "│  └─ and 4 more  counted above",
        "└─ answer  $0.01 · 2 calls · 234 tokens · estimated",
    ]


def test_one_token_is_one_token() -> None:
    assert ContextTree("x", 1, 1, 1).summary == "$0.000000001 · 1 call · 1 token · exact"


def test_the_last_child_before_hidden_ones_is_not_the_last_branch() -> None:
    tree = ContextTree("x", 0, 0, 0, children=(ContextTree("y", 0, 0, 0),), hidden=2)
    assert [line[:2] for line in str(tree).splitlines()] == ["x ", "├─", "└─"]


def test_rich_prints_the_same_lines() -> None:
    assert rendered(TREE) == str(TREE)


NAMES = [
    "[red]x[/red]",
    "[/]",
    "[bold",
    "a]b",
    "x\\",
    "\\[x]",
    ":warning:",
    "[link=http://x]y[/link]",
    "[[]]",
    "1.5",
]


@pytest.mark.parametrize("name", NAMES)
def test_rich_reads_no_markup_in_names(name: str) -> None:
    tree = ContextTree(name, 0, 0, 0, children=(ContextTree(name, 0, 0, 0),))
    assert rendered(tree) == str(tree)


@given(printable)
def test_rich_prints_any_name_as_it_is(name: str) -> None:
    tree = ContextTree(name, 0, 0, 0)
    assert rendered(tree) == str(tree)


def test_rich_makes_names_bold() -> None:
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=200, force_terminal=True, color_system="standard").print(
        ContextTree("job", 0, 0, 0)
    )
    assert out.getvalue().startswith("\x1b[1mjob\x1b[0m  $0.00")


class Page(HTMLParser):
    """Reads a page as a browser does: which tags open and close, and what text is in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.names: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert attrs == []
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "b":
            self.names.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "b":
            self.names[-1] += data


def test_as_html() -> None:
    page = Page(TREE._repr_html_())
    assert page.names == ["support", "triage", "deep", "answer"]
    assert "and 4 more" in TREE._repr_html_()


@given(st.lists(printable, min_size=1, max_size=4))
def test_html_holds_names_as_text_only(names: list[str]) -> None:
    tree = ContextTree(names[0], 0, 0, 0, children=tuple(ContextTree(name, 0, 0, 0) for name in names[1:]))
    page = Page(tree._repr_html_())
    assert page.names == names
    assert set(page.tags) == {"ul", "li", "b"}


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a&b", "\"><img src=x onerror='x'>", "</b></li>"]
)
def test_html_of_names_that_mean_harm(name: str) -> None:
    assert Page(ContextTree(name, 0, 0, 0)._repr_html_()).names == [name]
