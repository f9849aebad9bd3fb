"""The rules of the house, held to the source itself: which room may import which, and how long a function may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.config import tomllib

PROJECT = Path(__file__).parents[1]
# What each room may import; data flows one way, and nothing imports upwards
MAY_IMPORT = {
    "shards": set(),
    "pipeline": {"shards"},
    "trainer": {"shards", "pipeline"},
    "inference": {"shards", "pipeline", "trainer"},
    "pages": set(),
    "report": {"shards", "pipeline", "trainer", "inference", "pages"},
    "bench": {"shards", "pipeline", "trainer", "pages"},
    "paper": {"shards", "pipeline", "trainer", "inference", "pages", "bench"},
    "demo": {"shards", "pipeline", "trainer", "inference"},
    "cli": {"shards", "pipeline", "trainer", "inference", "report", "bench", "paper", "demo"},
}
MOST_LINES, MOST_ARGUMENTS = 50, 8
HEAVY = {"torch", "nvidia"}


def files(room: str) -> list[Path]:
    return sorted((PROJECT / room).rglob("*.py")) or [PROJECT / f"{room}.py"]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for room in MAY_IMPORT for path in files(room)}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every import of a file, inside functions and for type checkers too: the dotted name and its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in MODULES else node.module), node.lineno


def functions(room: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in files(room):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(PROJECT)}:{node.lineno} {node.name}", node


def test_every_python_file_lies_in_a_room():
    known = {path.relative_to(PROJECT).parts[0].removesuffix(".py") for path in MODULES.values()}
    found = {path.stem for path in PROJECT.glob("*.py")} | {path.parent.name for path in PROJECT.glob("*/__init__.py")}
    assert found - {"tests"} == known


def test_every_room_is_installed():
    tool = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {module_of(path) for path in MODULES.values() if path.name == "__init__.py"}
    assert set(tool["packages"]) == packages and set(tool["py-modules"]) == {path.stem for path in PROJECT.glob("*.py")}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_import_goes_up(room):
    wrong = []
    for path in files(room):
        for name, line in imports(path):
            top = name.partition(".")[0]
            if top in {*MAY_IMPORT, "tests"} - {room} - MAY_IMPORT[room]:
                wrong.append(f"{path.relative_to(PROJECT)}:{line} imports {name}")
    assert not wrong


def test_there_are_no_circles():
    graph = {name: {other for other, _ in imports(path) if other in MODULES} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle of imports: {' -> '.join((*above[above.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_shards_know_neither_torch_nor_dali():
    assert not [name for path in files("shards") for name, _ in imports(path) if name.partition(".")[0] in HEAVY]


@pytest.mark.parametrize("room", [*MAY_IMPORT, "tests"])
def test_a_function_fits_a_screen(room):
    """A longer one says in its docstring why it is one function, in a sentence that begins with "Long:"."""
    sizes = {where: node.end_lineno - node.lineno + 1 for where, node in functions(room)}
    reasons = {where for where, node in functions(room) if "Long:" in (ast.get_docstring(node) or "")}
    assert not {where: lines for where, lines in sizes.items() if lines > MOST_LINES and where not in reasons}


@pytest.mark.parametrize("room", [*MAY_IMPORT, "tests"])
def test_arguments_are_few(room):
    """But for a command's, which click passes by name."""
    wrong = {}
    for where, node in functions(room):
        arguments = node.args
        count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
        count -= bool(arguments.args) and arguments.args[0].arg in ("self", "cls")
        command = any("command" in ast.unparse(decorator) for decorator in node.decorator_list)
        if count > MOST_ARGUMENTS and not command:
            wrong[where] = count
    assert not wrong


def test_one_place_alone_opens_images():
    """There it says which kinds: Pillow would start Ghostscript on others."""
    opening = [path for room in MAY_IMPORT for path in files(room) if "Image.open(" in path.read_text()]
    assert opening == [PROJECT / "shards" / "formats.py"]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_nothing_is_patched_from_outside(room):
    """No path is put before Python's own, and no object's methods are exchanged behind its back."""
    for path in files(room):
        text = path.read_text()
        assert "sys.path" not in text and "__dict__" not in text, path
        imported = {name.rpartition(".")[2] for name, _ in imports(path) if name in MODULES}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assign):
                targets = [target for target in node.targets if isinstance(target, ast.Attribute)]
                patched = [t for t in targets if isinstance(t.value, ast.Name) and t.value.id in imported]
                assert not patched, f"{path}:{node.lineno}: {ast.unparse(node)}"
