"""Direction of imports between the packages."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("source")  # each file is parsed once

PACKAGE = Path(__file__).resolve().parent.parent / "dnas"
FILES = sorted(PACKAGE.rglob("*.py"))

# The modules at the top of the package, and its packages, lowest first. Each imports only from the same line or from
# lines above it, also inside functions.
ORDER = [
    ["dnas", "dnas.errors", "dnas.formatting", "dnas.io", "dnas.machine"],
    ["dnas.arch"],
    ["dnas.nn", "dnas.data"],
    ["dnas.training", "dnas.testing"],
    ["dnas.space"],
    ["dnas.study"],
    ["dnas.executors"],
    ["dnas.strategy"],
    ["dnas.batch"],
    ["dnas.cluster", "dnas.export"],
    ["dnas.analysis"],
    ["dnas.figures"],
    ["dnas.ablation"],
    ["dnas.report"],
    ["dnas.reproduce"],
    ["dnas.track"],
    ["dnas.api"],
    ["dnas.cli"],
    ["dnas.__main__"],
]
TOP_MODULES = {"__init__", "__main__", "errors", "io", "formatting", "machine", "export", "testing"}
# The modules that may import each heavy package.
HOMES = {
    "argparse": {"dnas.cli"},
    "torch": {
        "dnas.nn",
        "dnas.data",
        "dnas.training",
        "dnas.testing",
        "dnas.executors",
        "dnas.strategy",
        "dnas.batch",
        "dnas.export",
        "dnas.analysis",
    },
    "optuna": {"dnas.strategy"},
    "matplotlib": {"dnas.figures", "dnas.report", "dnas.cli", "dnas.reproduce"},
    "seaborn": {"dnas.figures", "dnas.cli"},
    "sklearn": {"dnas.data", "dnas.training"},
    "ray": {"dnas.executors"},
    "psycopg": {"dnas.cluster"},
    "fsspec": {"dnas.executors"},
    "triton": {"dnas.nn"},
    "tensorboard": {"dnas.track"},
    "mlflow": {"dnas.track"},
    "wandb": {"dnas.track"},
}


def module_of(path: Path) -> str:
    parts = ["dnas", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def home(module: str) -> str:
    """Return the entry of ORDER that a module belongs to."""
    known = {name for group in ORDER for name in group}
    while module not in known:
        assert "." in module, f"{module} has no place in ORDER"
        module = module.rpartition(".")[0]
    return module


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (module, True if at import time) of each import in a file, without those for type checkers only."""
    tree = parsed(path)
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, id(node) in top))
    return found


def modules_of(path: Path) -> set[str]:
    """Return the modules that a file imports: of `from package import module` the module, not the package."""
    found = set()
    for node in ast.walk(without_type_checking(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found


def without_type_checking(path: Path) -> ast.Module:
    body = [
        node
        for node in parsed(path).body
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    ]
    return ast.Module(body, [])


def test_modules_import_only_from_packages_above_them() -> None:
    rank = {name: number for number, group in enumerate(ORDER) for name in group}
    wrong = [
        f"{module_of(path)} imports {name}"
        for path in FILES
        for name, _ in imports(path)
        if name.split(".")[0] == "dnas" and rank[home(name)] > rank[home(module_of(path))]
    ]
    assert wrong == []


def test_heavy_packages_are_imported_only_by_listed_modules() -> None:
    wrong = [
        f"{module_of(path)} imports {name}"
        for path in FILES
        for name, _ in imports(path)
        if name.split(".")[0] in HOMES and home(module_of(path)) not in HOMES[name.split(".")[0]]
    ]
    assert wrong == []


def test_arch_and_space_import_no_heavy_package() -> None:
    light = [
        *PACKAGE.glob("arch/*.py"),
        PACKAGE / "space" / "space.py",
        PACKAGE / "space" / "parse.py",
        *PACKAGE.glob("study/[cfr]*.py"),
        PACKAGE / "training" / "recipe.py",
    ]
    heavy = {"torch", "optuna", "numpy", "pandas", "matplotlib", "ray"}
    assert not [path.name for path in light for name, top in imports(path) if top and name.split(".")[0] in heavy]


@pytest.mark.slow
def test_a_search_imports_no_more_than_it_needs() -> None:
    """The driver of a search on digits imports no package that it does not need, as each would take a second or more.

    Workers need the compiler, which their optimiser imports, and reports need statistics. The search needs only a file
    of scikit-learn.
    """
    code = """if True:
        import sys
        import dnas.analysis.efficiency, dnas.strategy.driver, dnas.nn
        from dnas.data import load_dataset
        load_dataset("digits")
        assert not {"torch._dynamo", "scipy.stats", "sklearn"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_that_are_imported_late_are_no_modules() -> None:
    """The first import of a module sets the attribute of its package, which would hide a function of the same name."""
    import dnas.analysis

    modules = {path.stem for path in PACKAGE.glob("analysis/*.py")}
    assert not modules & set(dnas.analysis.__all__)


def test_only_listed_modules_are_outside_packages() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP_MODULES


def test_imports_have_no_cycles() -> None:
    """There is no cycle of imports between modules, including imports inside functions."""
    arrows: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        arrows[name] = {other for other in modules_of(path) if other in MODULES and other != name}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a cycle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for other in sorted(arrows[name]):
                walk(other, (*trail, name))
            done.add(name)

    for name in sorted(MODULES):
        walk(name, ())
