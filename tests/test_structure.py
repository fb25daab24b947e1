"""The structure of the source tree: sizes of files, names of modules, imports, shared code of the tests."""

import graphlib
import re
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("mlx_qwen3", "tests", "benchmarks", "examples", "tools", "scripts")
LONGEST_FILE = 450
SUPPORT = {path.stem for path in (ROOT / "tests" / "support").glob("*.py")} - {"__init__"}

FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TESTS = [path for path in FILES if path.is_relative_to(ROOT / "tests")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_is_longer_than_450_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_no_module_has_a_meaningless_name():
    assert [path for path in FILES if re.fullmatch(r"_?(utils?|common|helpers?|misc|base)", path.stem)] == []


def test_the_package_has_no_import_cycle():
    graph = grimp.build_graph("mlx_qwen3", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules


def test_shared_modules_of_the_tests_are_in_the_support_folder():
    misplaced = [
        path.relative_to(ROOT).as_posix()
        for path in TESTS
        if path.parent.name not in {"support", "typing"}
        and not path.name.startswith("test_")
        and path.name not in {"conftest.py", "__init__.py", "ranks.py"}
    ]
    assert misplaced == []


def test_support_modules_are_imported_in_one_form():
    pattern = re.compile(rf"^\s*(?:import|from) (?:{'|'.join(SUPPORT)})\b", re.M)
    assert [path.name for path in TESTS if pattern.search(path.read_text(encoding="utf-8"))] == []
