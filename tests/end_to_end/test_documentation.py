"""What the pages promise exists: links, commands, options, files; and the first table's figures are those recorded."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from bench import tables
from cli import main

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
ROOMS = ("shards", "pipeline", "trainer", "inference", "pages", "report", "bench", "tests", "docs")
# Options of other programs that the pages name
FOREIGN = {
    *("--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"),  # torchrun
    *("--force-reinstall", "--no-deps", "--no-build-isolation"),  # pip
    "--ignore-zeros",  # GNU tar
    *("--help", "--version"),
}


def name_of(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[list[str]]:
    """The lines of code blocks and the inline code that run our commands, without the program's name.

    Recorded command lines name files that have moved since; only their options count.
    """
    blocks = [line for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    found = []
    for line in [*blocks, *re.findall(r"`([^`\n]+)`", text)]:
        starts = re.match(r"(?:\.venv/bin/)?python cli\.py (.*)|alexnet-dali (.*)", line)
        if starts:
            found.append(shlex.split(starts[1] or starts[2]))
    return found


def options_of(name: str) -> set[str]:
    params = main.commands[name].params if name in main.commands else main.params
    return {
        flag for param in params if isinstance(param, click.Option) for flag in (*param.opts, *param.secondary_opts)
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(other), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_exists_with_its_options(page):
    for name, *words in commands(page.read_text()):
        if name.startswith("-"):
            assert name in FOREIGN
            continue
        assert name in main.commands, f"`{name}` is not a command"
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= options_of(name) | FOREIGN, f"{name}: {flags - options_of(name)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_is_named_exists(page):
    known = {"--check", "--json", *FOREIGN}.union(*map(options_of, main.commands))
    code = re.findall(r"`([^`\n]+)`", page.read_text())
    named = {flag for text in code if "pip" not in text for flag in re.findall(r"(?<!\S)--[a-z][a-z-]+", text)}
    assert named <= known, f"not an option: {sorted(named - known)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_and_module_that_is_named_exists(page):
    text = page.read_text()
    for path in re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w./-]*)`", text):
        assert (PROJECT / path).exists(), f"`{path}` is not there"
    for module in re.findall(rf"python -m ((?:{'|'.join(ROOMS)})[\w.]*)", text):
        assert importlib.util.find_spec(module), f"`{module}` is not a module"


def test_every_file_in_the_drawing_exists():
    drawn = re.findall(r"[\w/]+\.py", (PROJECT / "docs" / "architecture.svg").read_text())
    assert drawn and [name for name in drawn if not [*PROJECT.glob(name), *PROJECT.glob(f"*/{name}")]] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.M)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_speaks_of_what_its_reader_does_not_have(page):
    assert not re.search(r"design page|design\.md|\bissues?\b|\blent\b|\.\./shared", page.read_text(), re.I)


def test_the_hooks_before_a_commit_run_what_make_lint_runs():
    hooks = re.findall(r"entry: python -m (\w+(?: \w+)?)", (PROJECT / ".pre-commit-config.yaml").read_text())
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (PROJECT / "Makefile").read_text(), re.M)[1]
    assert hooks == re.findall(r"bin/(\w+(?: check| format)?)", recipe)


def test_the_readme_shows_every_command():
    text = (PROJECT / "README.md").read_text()
    assert [name for name in main.commands if not re.search(rf"(cli\.py |`|make ){name}\b", text)] == []


def test_the_index_lists_every_page():
    text = (PROJECT / "docs" / "index.md").read_text()
    pages = {page.name for page in (PROJECT / "docs").glob("*.md")} - {"index.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", text))


def test_the_first_screen_has_the_recorded_figures():
    first_screen = (PROJECT / "README.md").read_text().split("```")[0]
    assert f"{tables.BEGIN}\n\n{tables.headline()}\n\n{tables.END}" in first_screen


def test_every_message_under_troubleshooting_is_in_the_code():
    rows = re.findall(r"^\| `(.+?)` \|", (PROJECT / "docs" / "troubleshooting.md").read_text(), re.M)
    trees = [
        ast.parse(path.read_text())
        for room in ("shards", "pipeline", "trainer")
        for path in PROJECT.glob(f"{room}/**/*.py")
    ]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    code = [text for text in texts if isinstance(text, str)]
    missing = [part for row in rows for part in row.split("...") if not any(part in text for text in code)]
    assert len(rows) > 10 and not missing
