"""Imports and the dependencies in pyproject.toml agree, and mlx-lm is imported only where it is necessary."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {
    "mkdocs-material": {"material"},
    "mlx-lm": {"mlx_lm"},
    "pyyaml": {"yaml"},
    "scikit-learn": {"sklearn"},
}
"""Distribution -> its modules, where they differ from its name with underscores."""
RUN = {
    "import-linter": "[tool.importlinter]",
    "mkdocs-material": "name: material",
    "pyright": "[tool.pyright]",
    "pytest-xdist": "--dist loadfile",
    "ruff": "[tool.ruff]",
}
"""Distributions that are run, not imported -> how `CONFIGURATION` names them."""
CONFIGURATION = ("pyproject.toml", "mkdocs.yml", "scripts/check")
OPTIONAL = {"sklearn": "estimators register with scikit-learn where it is installed"}
"""Modules that the package imports and does not declare as a dependency or an extra of its own."""
UNPUBLISHED = {"llama_cpp": "has to be compiled: its test is skipped without it"}
OURS = {"mlx_qwen3", "tools", "benchmarks", "convert", "tests"}
MLX_LM = ("mlx_qwen3/adapters/", "mlx_qwen3/quantization/", "mlx_qwen3/bench/")
PARTS = ("mlx_qwen3", "convert.py", "examples", "benchmarks", "scripts", "tools", "tests", "docs")


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    """Return the distributions of the dependencies and of extras, including extras of extras."""
    found = {distribution(line) for line in PROJECT["dependencies"]}
    for extra in extras:
        lines = PROJECT["optional-dependencies"][extra]
        found |= {distribution(line) for line in lines} - {"mlx-qwen3"}
        for line in lines:
            if match := re.match(r"mlx-qwen3\[([\w,-]+)\]", line):
                found |= declared(*match[1].split(","))
    return found


def modules(distributions: set[str]) -> set[str]:
    return set().union(*(MODULES.get(name, {name.replace("-", "_")}) for name in distributions))


def imports(source: str) -> Iterator[str]:
    """Yield the name of every module that a source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield from [str(node.args[0].value)] if called in ("import_module", "importorskip") else []


def sources(part: str) -> Iterator[tuple[Path, str]]:
    """Yield every Python file of a part of the project, and every Python block of its documents that is run."""
    if (ROOT / part).is_file():
        yield ROOT / part, (ROOT / part).read_text(encoding="utf-8")
    for path in sorted((ROOT / part).rglob("*.py")):
        yield path, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / part).rglob("*.md")):
        for skipped, code in re.findall(
            r"(only parsed: [^>]*-->\n)?```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL
        ):
            if not skipped:
                yield path, code


@functools.cache
def imported(part: str) -> dict[str, set[str]]:
    """Return the third-party modules that a part of the project imports, with the importing files."""
    local = {path.stem for path in (ROOT / part).rglob("*.py")} | {path.name for path in (ROOT / part).glob("*/")}
    found: dict[str, set[str]] = {}
    for path, source in sources(part):
        for name in imports(source):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names | OURS and not (part == "tests" and top in local):
                found.setdefault(top, set()).add(path.relative_to(ROOT).as_posix())
    return found


def undeclared(part: str, *extras: str) -> dict[str, set[str]]:
    known = modules(declared(*extras))
    return {name: files for name, files in imported(part).items() if name not in known}


def test_the_package_imports_what_it_declares():
    assert undeclared("mlx_qwen3", "server", "parquet").keys() == OPTIONAL.keys()
    assert undeclared("convert.py") == {} == undeclared("examples")


def test_extras_are_imported_only_in_their_own_modules():
    for name, files in undeclared("mlx_qwen3").items():
        if name in modules(declared("server")):
            assert all(file.startswith("mlx_qwen3/server/") for file in files), (name, files)


@pytest.mark.parametrize("part", ["benchmarks", "scripts", "tools", "tests", "docs"])
def test_a_part_of_the_project_imports_what_the_extras_declare(part):
    assert undeclared(part, "dev", "docs", "reference").keys() <= UNPUBLISHED.keys()


def test_every_dependency_is_imported_by_the_package():
    used = imported("mlx_qwen3").keys()
    assert [name for name in sorted(declared()) if not modules({name}) & used] == []


def test_every_distribution_of_an_extra_is_imported_or_run():
    used = set().union(*(imported(part) for part in PARTS))
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in CONFIGURATION)
    configured = {name for name, words in RUN.items() if words in text}
    unused = {name for name in declared(*PROJECT["optional-dependencies"]) if not modules({name}) & used}
    assert unused == configured == set(RUN)


def test_mlx_lm_is_imported_only_for_its_layers_quantizers_and_programs():
    files = imported("mlx_qwen3")["mlx_lm"]
    assert all(file.startswith(MLX_LM) for file in files), files


def test_the_version_is_defined_in_one_place():
    import mlx_qwen3

    assert PROJECT["dynamic"] == ["version"]
    pattern = re.compile(rf"\b{re.escape(mlx_qwen3.__version__)}\b")
    files = [path for path in (ROOT / "mlx_qwen3").rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))]
    assert files == [ROOT / "mlx_qwen3" / "__init__.py"]


def test_actions_of_workflows_are_pinned_by_commit():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for used in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), (path.name, used)


def test_the_project_has_metadata_for_a_package_index():
    assert {"Documentation", "Source", "Issues", "Changelog"} <= PROJECT["urls"].keys()
    assert "Programming Language :: Python :: 3.14" in PROJECT["classifiers"]
    assert {"qwen3", "mlx"} <= set(PROJECT["keywords"])
