"""What STYLE says about files and imports, checked by reading the sources."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

import plait

SOURCE = pathlib.Path(__file__).parent.parent / "src" / "plait"
MAX_LINES = 450

# package or module -> what of ours it may import, itself excepted; "everything" for the outermost layer
IMPORTS: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "native": {"errors", "config"},
    "memory": {"errors", "config", "native"},
    "structure_cache": {"errors", "config"},
    "graph": {"errors", "config", "native", "memory", "structure_cache"},  # memory: the orderings' buffers come from the pool
    "segment": {"errors", "graph"},
    "grouped": {"errors"},
    "operators": {"errors", "segment", "grouped"},
    "ir": {"errors", "graph", "segment"},
    "costs": {"errors", "config"},
    "passes": {"errors", "config", "costs", "ir", "segment", "operators"},
    "codegen": {"errors", "config", "native", "graph", "memory", "ir"},
    "capture": {
        "errors",
        "config",
        "structure_cache",
        "graph",
        "memory",
        "segment",
        "operators",
        "costs",
        "ir",
        "passes",
        "codegen",
        "native",
    },
    "sampling": {"errors", "config", "native", "memory", "graph"},
    "loader": {"errors", "sampling"},
    "tools": {"everything"},
    "__init__": {"everything"},
    "__main__": {"everything"},
}

FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]
each_file = pytest.mark.parametrize("path", FILES, ids=NAMES)


def layer_of(path: pathlib.Path) -> str:
    """The row of `IMPORTS` a file belongs to: its first directory, or its own name."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def own_imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(layer, line) of every import of ours, wherever in the file it stands; the package itself is `__init__`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "plait":
            # `from plait import graph` names a module, `from plait import compile` what plait itself exports
            names = [f"plait.{alias.name}" if is_module(alias.name) else "plait" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "plait":
                yield (parts[1] if len(parts) > 1 else "__init__"), node.lineno


def is_module(name: str) -> bool:
    return (SOURCE / f"{name}.py").exists() or (SOURCE / name).is_dir()


def parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


@each_file
def test_imports_go_down(path: pathlib.Path) -> None:
    layer = layer_of(path)
    assert layer in IMPORTS, f"{layer} has no row in the table of imports"
    allowed = IMPORTS[layer] | {layer}

    wrong = [f"line {line}: {name}" for name, line in own_imports(parsed(path)) if name not in allowed]

    assert not wrong or "everything" in allowed, (
        f"{layer} may import {', '.join(sorted(IMPORTS[layer]))}; got {'; '.join(wrong)}"
    )


def test_table_of_imports_has_no_cycle() -> None:
    done: set[str] = set()
    rows = {layer: allowed for layer, allowed in IMPORTS.items() if "everything" not in allowed}
    while rows:
        ready = [layer for layer, allowed in rows.items() if allowed <= done]
        assert ready, f"these wait for each other: {', '.join(rows)}"
        for layer in ready:
            done.add(layer)
            del rows[layer]


@each_file
def test_imports_are_absolute(path: pathlib.Path) -> None:
    relative = [node.lineno for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom) and node.level]

    assert not relative, f"relative imports in lines {relative}"


INITS = [path for path in FILES if path.name == "__init__.py"]


@pytest.mark.parametrize("path", INITS, ids=[str(path.relative_to(SOURCE)) for path in INITS])
def test_init_only_reexports(path: pathlib.Path) -> None:
    """A docstring, imports (now or when a name is asked for), `__all__` and `__version__`."""
    others = [node.lineno for node in parsed(path).body if not is_reexport(node)]

    assert not others, f"{path.parent.name}/__init__.py does more than re-export, in lines {others}"


def is_reexport(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return all(isinstance(target, ast.Name) and target.id in ("__all__", "__version__", "_HOMES") for target in targets)
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING" and all(map(is_reexport, node.body))
    return isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")


@each_file
def test_file_has_one_topic(path: pathlib.Path) -> None:
    num_lines = len(path.read_text().splitlines())

    assert num_lines <= MAX_LINES, f"{num_lines} lines: which two topics are in it?"


@each_file
def test_file_says_what_it_is_for(path: pathlib.Path) -> None:
    assert ast.get_docstring(parsed(path)), "no docstring"


@each_file
def test_no_print_outside_tools(path: pathlib.Path) -> None:
    if layer_of(path) == "tools":
        return
    calls = [
        node.lineno
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]

    assert not calls, f"print in lines {calls}: use logging"


@pytest.mark.parametrize("name", ["utils", "common", "misc", "helpers"])
def test_no_drawer_for_odds_and_ends(name: str) -> None:
    found = [str(path.relative_to(SOURCE)) for path in FILES if name in path.relative_to(SOURCE).with_suffix("").parts]

    assert not found, "a helper lives with its user"


@each_file
def test_only_config_reads_the_environment(path: pathlib.Path) -> None:
    if layer_of(path) in ("config", "tools"):  # tools hand the environment on to the processes they start
        return
    reads = [
        node.lineno
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    ]

    assert not reads, f"os.environ in lines {reads}: ask plait.config"


def test_importing_the_package_does_not_wait_for_pytorch() -> None:
    """`plait --help` answers at once; every public name is found when it is asked for."""
    code = (
        "import plait, sys; assert 'torch' not in sys.modules; [getattr(plait, name) for name in plait.__all__]; "
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'plait' has no attribute 'nothing'"):
        plait.nothing  # noqa: B018
