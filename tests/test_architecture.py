"""The rules that the layout rests on, read from the source: who imports whom, what stays light, what is documented."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tuning", "urg", "data_pipeline", "cluster")
MAY_IMPORT = {  # besides itself; data flows the other way
    "tuning": {"urg", "data_pipeline"},
    "urg": {"data_pipeline"},
    "data_pipeline": set(),
    "cluster": set(),
}
ONLY_IN = {
    "mlflow": {"urg/tracking/mlflow_run.py"},
    "deepspeed": {"urg/training/engine.py", "urg/training/checkpoints.py"},
}
HEAVY = ("ray", "deepspeed", "mlflow", "torch", "transformers", "datasets")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
_COMMAND = re.compile(r"^(if __name__ == .__main__.:|run_command\()", re.M)
COMMANDS = [path for path in MODULES if _COMMAND.search(path.read_text())]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imported(tree):
    """The top-level names of all imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module.split(".")[0]


def forbidden_imports(name, source):
    """The imports in the file `name` that the layout forbids."""
    package = name.split("/")[0]
    outside = set(PACKAGES) - {package} - MAY_IMPORT[package] | {"tests", "."}
    outside |= {library for library, files in ONLY_IN.items() if name not in files}
    return sorted(set(imported(ast.parse(source))) & outside)


def undocumented(source):
    """The module, public functions and public classes (not methods) without a docstring."""
    tree = ast.parse(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return ["(module)"] * (not ast.get_docstring(tree)) + [node.name for node in public if not ast.get_docstring(node)]


def unannotated(source):
    """function.argument (or function.return) for each that has no annotation."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = node.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            for argument in filter(None, arguments):
                if argument.annotation is None and argument.arg not in ("self", "cls"):
                    yield f"{node.name}.{argument.arg}"
            if node.returns is None:
                yield f"{node.name}.return"


def project_files():
    """The text files that are tracked, or would be."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if listed.returncode:
        pytest.skip("not a git checkout: which files are the project's is not known")
    for name in filter(None, listed.stdout.split("\0")):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in data:
            yield name, data.decode("utf-8", errors="replace")


def loaded_by(script):
    """Which of the heavy libraries a fresh interpreter has loaded after `script`."""
    script += f"\nprint('loaded:', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:], done.stdout


def test_the_packages_are_there():
    found = {package: sum(name_of(path).startswith(f"{package}/") for path in MODULES) for package in PACKAGES}
    assert all(found.values()), found
    assert (ROOT / "urg" / "tracking" / "mlflow_run.py") in MODULES
    assert COMMANDS


def test_the_rules_find_what_breaks_them():
    assert forbidden_imports("data_pipeline/x.py", "def f():\n    from urg.model import URG") == ["urg"]
    assert forbidden_imports("urg/x.py", "import mlflow.tracking\nfrom deepspeed import zero") == [
        "deepspeed",
        "mlflow",
    ]
    assert forbidden_imports("cluster/x.py", "import data_pipeline\nfrom . import y") == [".", "data_pipeline"]
    assert forbidden_imports("tuning/x.py", "import urg, data_pipeline, cluster") == ["cluster"]
    assert forbidden_imports("urg/tracking/mlflow_run.py", "import mlflow") == []
    assert undocumented("class A: pass\ndef _b(): pass") == ["(module)", "A"]
    assert list(unannotated("def f(self, a, *b, c: int) -> None: ...")) == ["f.a", "f.b"]
    assert list(unannotated("class A:\n    def f(self): ...")) == ["f.return"]
    assert machine_paths("see /" + "work/main, or cd /" + "home/ann/x") == ["/" + "work/", "/" + "home/ann/"]
    assert machine_paths("../work/x http://a.org/" + "home/b /home/ray/x s3://b/" + "root/x") == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    assert forbidden_imports(name_of(path), path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_names_have_docstrings(path):
    assert undocumented(path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_argument_is_annotated(path):
    assert list(unannotated(path.read_text())) == []


def test_files_are_named_after_their_subject():
    assert [name_of(path) for path in MODULES if path.stem in ("utils", "util", "common", "helpers", "misc")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_light(package):
    assert loaded_by(f"import sys, {package}")[0] == []


@pytest.mark.parametrize("path", COMMANDS, ids=name_of)
def test_help_answers_without_the_heavy_libraries(path):
    module = name_of(path).removesuffix(".py").replace("/", ".")
    loaded, shown = loaded_by(f"""
import runpy, sys
sys.argv = [{module!r}, "--help"]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
""")
    assert loaded == []
    assert "--" in shown


def machine_paths(text):
    """Absolute paths into somebody's own folders. Ray's images have /home/ray."""
    return re.findall(r"(?<![\w.:/~*$}-])/(?:work|root|Users/\w+|home/(?!ray\b)\w+)/", text)


def test_no_paths_of_one_machine():
    found = {name: machine_paths(text) for name, text in project_files()}
    assert len(found) > 20
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_no_code_of_others_is_trusted():
    word = "trust_remote" + "_code"
    off = re.compile(rf"{word}\s*[=:]\s*(?!False|false)")
    assert [name for name, text in project_files() if name != name_of(Path(__file__)) and off.search(text)] == []
