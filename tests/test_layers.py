"""Who may import whom: the shape of the code, kept by a test."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "dnas"

# Lowest first. A module imports from those at or above its own line only; `cli` stands last, but for `python -m`.
ORDER = [
    ["dnas", "dnas.errors", "dnas.formatting", "dnas.io"],
    [
        "dnas.arch",
        "dnas.executors.lease",
        "dnas.space.objectives",
        "dnas.executors.shared_storage",
        "dnas.cluster.database",
    ],
    ["dnas.nn", "dnas.data", "dnas.training.distributed"],
    ["dnas.training.recipe", "dnas.training.step", "dnas.search.stopping"],
    ["dnas.space.parse"],
    ["dnas.training.fit", "dnas.study.folder"],
    ["dnas.search.samplers", "dnas.executors"],
    ["dnas.search.state"],
    ["dnas.search.proposals", "dnas.study.config"],
    ["dnas.search.extend", "dnas.study.optuna_mirror", "dnas.search.replay"],
    ["dnas.executors.job"],
    ["dnas.executors.runner"],
    ["dnas.search.retrain"],
    ["dnas.search.driver", "dnas.batch.runs"],
    ["dnas.cluster.worker"],
    ["dnas.training.launch"],
    ["dnas.batch.estimate", "dnas.training.single", "dnas.export", "dnas.study.definition", "dnas.search.doctor"],
    ["dnas.analysis", "dnas.analysis.causal"],
    ["dnas.figures", "dnas.cli.display"],
    ["dnas.analysis.evidence", "dnas.cli.listed"],
    ["dnas.ablation.path", "dnas.ablation"],
    ["dnas.report", "dnas.cli.plots"],
    ["dnas.reproduce"],
    ["dnas.cli"],
    ["dnas.__main__"],
]
# A heavy package, and where it may be imported at all.
HOMES = {
    "torch": {
        "dnas.nn",
        "dnas.data",
        "dnas.training.distributed",
        "dnas.training.step",
        "dnas.training.fit",
        "dnas.executors",
        "dnas.search.replay",
        "dnas.training.launch",
        "dnas.batch.estimate",
        "dnas.training.single",
        "dnas.export",
        "dnas.analysis.causal",
    },
    "optuna": {"dnas.search.samplers", "dnas.study.optuna_mirror"},
    "matplotlib": {"dnas.figures", "dnas.report", "dnas.cli.plots", "dnas.reproduce"},
    "seaborn": {"dnas.figures"},
    "sklearn": {"dnas.data", "dnas.analysis"},
    "ray": {"dnas.executors"},
    "psycopg": {"dnas.cluster.database"},
    "fsspec": {"dnas.executors.shared_storage"},
    "triton": {"dnas.nn"},
}


def module_of(path: Path) -> str:
    parts = ["dnas", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def home(module: str) -> str:
    """The entry of ORDER that a module belongs to."""
    known = {name for group in ORDER for name in group}
    while module not in known:
        assert "." in module, f"{module} has no place in ORDER"
        module = module.rpartition(".")[0]
    return module


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at import time) of each import in a file; those for type checkers only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
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


def test_files_import_only_from_those_above_them() -> None:
    rank = {name: number for number, group in enumerate(ORDER) for name in group}
    wrong = [
        f"{module_of(path)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        for name, at_import in imports(path)
        if at_import and name.split(".")[0] == "dnas" and rank[home(name)] > rank[home(module_of(path))]
    ]
    assert wrong == []


def test_heavy_packages_stay_in_their_homes() -> None:
    wrong = [
        f"{module_of(path)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        for name, _ in imports(path)
        if name.split(".")[0] in HOMES and home(module_of(path)) not in HOMES[name.split(".")[0]]
    ]
    assert wrong == []


def test_arch_and_space_import_no_heavy_package() -> None:
    light = [PACKAGE / "space.py", PACKAGE / "study.py", PACKAGE / "recipe.py", *PACKAGE.glob("arch/*.py")]
    heavy = {"torch", "optuna", "numpy", "pandas", "matplotlib", "ray"}
    assert not [path.name for path in light for name, top in imports(path) if top and name.split(".")[0] in heavy]


def test_a_search_imports_no_more_than_it_needs() -> None:
    """The compiler is the workers' (their optimiser imports it), statistics are the report's, and of scikit-learn a
    search on the digits needs a file: each takes the driver a second or more."""
    code = """if True:
        import sys
        import dnas.analysis.efficiency, dnas.search.driver, dnas.nn
        from dnas.data import load_dataset
        load_dataset("digits")
        assert not {"torch._dynamo", "scipy.stats", "sklearn"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)
