# SPDX-License-Identifier: Apache-2.0
"""TICO is for tests and for those who ask for it: one module imports it, and nothing imports that one by default.

That everything else works without it is tests/unit/cli/test_evaluate.py, on a bundle of files.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOOR = "pyquant.verify.runtimes.tico"
ASKED = {  # who imports the door, within a function that a user's choice of TICO leads to
    "pyquant/cli/verify.py": "structure_faults",
    "pyquant/verify/runtimes/__init__.py": "Runtime",  # for its type only
}


def imports(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every module that a file imports, by statement or by a call with its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value, node


def test_one_module_imports_tico_and_none_imports_it_when_it_is_loaded() -> None:
    seen = 0
    for path in sorted((ROOT / "pyquant").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        seen += 1
        found = {name for name, _ in imports(tree)}
        assert not any(name.split(".")[0] == "tico" for name in found), f"{where} imports tico by name"
        if any(name.startswith(DOOR) for name in found):
            assert where in ASKED, f"{where} imports {DOOR}"
            assert {node.names[0].name for name, node in imports(tree) if name == DOOR} == {ASKED[where]}
            own = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            loaded = {name for name, _ in imports(ast.Module(own, []))}
            assert not any(name.startswith(DOOR) for name in loaded), f"{where} imports {DOOR} when it is loaded"
    assert seen > 100
    door = (ROOT / "pyquant" / "verify" / "runtimes" / "tico.py").read_text(encoding="utf-8")
    assert 'package: str = "tico.circle.runtime"' in door, "the one place that names the package"


def test_only_the_extras_tico_and_test_bring_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert [line.split(" = ")[0] for line in lines if re.search(r'"tico\b', line)] == ["tico"]
    users = [line.strip() for line in lines if re.search(r'"pyquant-circle\[.*\btico\b', line)]
    assert users == ['"pyquant-circle[demo,images,report,tico]",'], "the extra of the tests"
