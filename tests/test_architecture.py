"""The direction of imports, read from the source, and what the web process really loads.

``worker -> app.core -> minimind (its half without torch)``, ``worker -> minimind``, ``app.<feature> -> app.core``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: the half of minimind that a process without torch may import
TORCH_FREE = {"minimind", "minimind.config", "minimind.options", "minimind.presets", "minimind.errors",
              "minimind.events", "minimind.control", "minimind.run_dir", "minimind.manifest", "minimind.preflight",
              "minimind.tokenizer", "minimind.chat_format", "minimind.chat_template", "minimind.lifeline",
              "minimind.answers",
              "minimind.data", "minimind.data.foreign", "minimind.data.layouts", "minimind.data.starter",
              "minimind.teach", "minimind.teach.teachers", "minimind.teach.address", "minimind.tools"}


def modules(package: str) -> dict[str, Path]:
    """Dotted name and file of every module under ``package``."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Absolute names that a file imports; ``if TYPE_CHECKING`` blocks do not run and do not count."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()

    def visit(node: ast.AST, inside_function: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, (ast.Import, ast.ImportFrom)) and not (inside_function and top_level_only):
                if isinstance(child, ast.Import):
                    names.update(alias.name for alias in child.names)
                else:
                    assert child.level == 0, f"{path}: relative import; write the absolute name"
                    names.add(child.module)
                    names.update(f"{child.module}.{alias.name}" for alias in child.names)
            visit(child, inside_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    visit(tree, False)
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("name, path", [*modules("minimind").items(), ("train", ROOT / "train.py")])
def test_the_core_needs_little(name: str, path: Path) -> None:
    """Only what a bare GPU machine has; wandb, and what makes grammars and GGUF files, is imported where asked for."""
    optional = ("wandb", "llguidance", "gguf")
    allowed = {"minimind", "torch", "numpy", "tokenizers", "safetensors", "pydantic", "jinja2", "flash_attn", *optional,
               *sys.stdlib_module_names}
    wrong = {i for i in imports(path) if i.split(".")[0] not in allowed}
    assert not wrong, f"{name} imports {wrong}: neither the studio nor any web or queue library belongs here"
    eager = {i for i in imports(path, top_level_only=True) if i.split(".")[0] in optional}
    assert not eager, f"{name}: import {eager} where it is used"


@pytest.mark.parametrize("name, path", modules("app").items())
def test_the_web_process_stays_light(name: str, path: Path) -> None:
    wrong = set()
    for used in imports(path):
        if used.split(".")[0] in {"worker", "torch"}:
            wrong.add(used)
        if within(used, "minimind"):
            module = used if (ROOT / (used.replace(".", "/") + ".py")).exists() \
                or (ROOT / used.replace(".", "/")).is_dir() else used.rpartition(".")[0]
            if module not in TORCH_FREE and not within(module, "minimind.data.starter"):
                wrong.add(used)
    assert not wrong, f"{name} imports {wrong}: use app.core, or the half of minimind without torch"


@pytest.mark.parametrize("name, path", [(n, p) for n, p in modules("app").items() if within(n, "app.core")])
def test_app_core_knows_no_feature(name: str, path: Path) -> None:
    wrong = {i for i in imports(path) if within(i, "app") and not within(i, "app.core") and i != "app"}
    assert not wrong, f"{name} imports {wrong}: features use app.core, not the other way round"


@pytest.mark.parametrize("name, path", modules("worker").items())
def test_the_worker_uses_app_core_only(name: str, path: Path) -> None:
    # The command-line doors call the services that own users and tokens.
    allowed = ("app.core", "app.auth.service") if within(name, "worker.cli") else ("app.core",)
    wrong = {i for i in imports(path) if within(i, "app") and i != "app" and not any(within(i, a) for a in allowed)}
    assert not wrong, f"{name} imports {wrong}: a worker stands on app.core and minimind"


@pytest.mark.parametrize("door", ["worker.main", "worker.supervisor", "worker.cli.__main__", "worker.inference"])
def test_doors_import_torch_late(door: str) -> None:
    path = ROOT / (door.replace(".", "/") + ".py")
    assert not any(within(i, "torch") for i in imports(path, top_level_only=True)), \
        f"{door} imports torch at its top: it costs seconds and does not survive a fork"


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_torch_free_half_loads_no_torch() -> None:
    names = sorted(n for n in TORCH_FREE if n in modules("minimind"))
    missing = TORCH_FREE - set(names)
    assert not missing, f"listed but not there: {missing}"
    loads = "; ".join(f"import {n}" for n in names)
    assert run_python(f"{loads}; import sys; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize("door", ["worker.runner", "worker.main", "worker.inference"])
def test_what_is_started_often_loads_no_web_framework(door: str) -> None:
    """It cost each runner a sixth of its start."""
    heavy = ("fastapi", "starlette", "uvicorn", "torch", "numpy")
    assert run_python(f"import {door}, sys; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_the_web_process_loads_no_torch_while_it_answers(tmp_path: Path) -> None:
    """Every page and every list of the API is asked for in a process of its own."""
    code = f"""
import os, sys
os.environ["STUDIO_DATA_DIR"] = {str(tmp_path)!r}
os.environ["STUDIO_LOGIN_TOKEN"] = "a-token-for-this-test-of-32-chars!!"
from worker.database import migrate
migrate()
from app.auth.service import create_token
from app.core.db import transaction
with transaction() as session:
    token = create_token(session, "test")
from starlette.testclient import TestClient
from app.main import create_app
app = create_app()
with TestClient(app, base_url="http://127.0.0.1:8000", headers={{"Authorization": f"Bearer {{token}}"}}) as client:
    documented = app.openapi()["paths"]
    asked = 0
    for path in ["/", *documented]:
        if "{{" in path or (path != "/" and "get" not in documented[path]):
            continue
        status = client.get(path).status_code
        assert status < 500 or status == 503, (path, status)
        asked += 1
    assert asked > 10, asked
print("torch" in sys.modules)
"""
    assert run_python(code) == "False"
