"""What the meta tests read: the members of the workspace, their modules, and the text files of the tree."""

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
MEMBERS = ["core", "cli", *(f"plugins/{name}" for name in FAMILIES)]
PACKAGES = {
    "rnn_lab": ROOT / "core" / "rnn_lab",
    "rnn_lab_cli": ROOT / "cli" / "rnn_lab_cli",
    **{f"rnn_lab_{name}": ROOT / "plugins" / name / f"rnn_lab_{name}" for name in FAMILIES},
}
_WRITTEN_BY_TOOLS = {".git", ".venv", "__pycache__", "runs", "build", "dist"}


@cache
def modules() -> dict[str, Path]:
    """Dotted name and file of every module of every member."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def files() -> list[Path]:
    """Files that belong to the project: those git knows or would add, or all where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        names = [ROOT / name for name in done.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = [path for path in ROOT.rglob("*") if _WRITTEN_BY_TOOLS.isdisjoint(path.relative_to(ROOT).parts)]
    return sorted(path for path in names if path.is_file())


def text_of(path: Path) -> str | None:
    """Content of a text file; None for anything else."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def shown(path: Path) -> str:
    """Path within the tree."""
    return path.relative_to(ROOT).as_posix()
