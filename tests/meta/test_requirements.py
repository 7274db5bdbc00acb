"""The workspace holds together: members, versions, metadata; no file names a machine."""

import re
import tomllib
from urllib.parse import urlsplit

import pytest
from rnn_lab.discovery.distributions import OWN

from .source import MEMBERS, ROOT, files, shown, text_of

HOSTS = {"www.apache.org", "arxiv.org", "github.com"}
"""Hosts that text may link to."""
LOCKS = {"uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock", "pixi.lock", "conda-lock.yml", "requirements.lock"}
ABSOLUTE = re.compile(r"(?<![\w.~$}\])-])/(?:home|root|Users|work|mnt|opt|data|scratch|var|srv|tmp)/[\w.-]+")
DRIVE = re.compile(r"\b[C-Z]:\\[A-Z]\w\w")
ADDRESS = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
URL = re.compile(r"\b(?:https?|ssh|git|ftp)://[^\s\"'`)>]+")
LOCAL = {"127.0.0.1", "0.0.0.0"}


def project(member):
    return tomllib.loads((ROOT / member / "pyproject.toml").read_text())["project"]


def requirement_name(text):
    return re.split(r"[ @=<>~!\[;]", text, maxsplit=1)[0]


def test_requirements_list_every_member():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.strip()]
    assert sorted(lines) == sorted(f"-e ./{member}" for member in MEMBERS)


def test_development_requirements_build_on_them():
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert lines[0] == "-r requirements.txt"
    tools = {"pytest", "pytest-xdist", "ruff", "mypy", "hatchling"}
    oracles = {"flash-linear-attention", "transformers"}
    assert tools | oracles <= {requirement_name(line) for line in lines[1:]}


def test_setup_installs_what_runs_and_then_what_tests():
    make = (ROOT / "Makefile").read_text()
    assert re.search(r"^run: \$\(VENV\)/\.ready$", make, re.MULTILINE), "`make run` needs no tools"
    assert re.search(r"^setup: \$\(VENV\)/\.ready-dev$", make, re.MULTILINE)
    plain, tested = re.findall(r"pip install .* -r (\S+)$", make, re.MULTILINE)
    assert (plain, tested) == ("requirements.txt", "requirements-dev.txt")
    assert re.search(r"^TRITON \?= triton==\d", make, re.MULTILINE)
    assert "\"$(TRITON); sys_platform == 'linux'\"" in make


def test_versions_are_equal():
    versions = {member: project(member)["version"] for member in [".", *MEMBERS]}
    assert len(set(versions.values())) == 1, versions
    (version,) = set(versions.values())
    assert f'__version__ = "{version}"' in (ROOT / "core/rnn_lab/__init__.py").read_text()
    for member in MEMBERS:
        for line in project(member)["dependencies"]:
            if requirement_name(line).startswith("rnn-lab"):
                assert line.endswith(f"=={version}"), f"{member}: {line}"


@pytest.mark.parametrize("member", [".", *MEMBERS])
def test_every_member_describes_itself(member):
    table = project(member)
    assert table["readme"] == "README.md"
    assert table["license"] == "Apache-2.0"
    assert table["requires-python"] == project(".")["requires-python"]
    assert table["description"]
    readme = (ROOT / member / "README.md").read_text()
    assert len(readme.splitlines()) > 5, f"{member}: the README says nothing"


def test_the_root_depends_on_every_member():
    wanted = {f"{project(member)['name']} @ {{root:uri}}/{member}" for member in MEMBERS}
    assert set(project(".")["dependencies"]) == wanted


def test_the_lab_knows_its_own_distributions():
    assert set(OWN) == {project(member)["name"] for member in [".", *MEMBERS]}


def test_entry_points_are_named_like_their_folders():
    for member in MEMBERS:
        if member.startswith("plugins/"):
            family = member.removeprefix("plugins/")
            assert project(member)["entry-points"]["rnn_lab"] == {family: f"rnn_lab_{family}"}


def test_no_lock_file():
    assert not [shown(path) for path in files() if path.name in LOCKS]


def names_of_machines(line):
    """Absolute paths, foreign hosts and addresses in a line of text."""
    hosts = {urlsplit(url).hostname for url in URL.findall(line)} - HOSTS - LOCAL - {None}
    addresses = [address for address in ADDRESS.findall(line) if address not in LOCAL]
    return [*ABSOLUTE.findall(line), *DRIVE.findall(line), *hosts, *addresses]


def test_no_file_names_a_machine():
    found = [
        f"{shown(path)}:{number} {' '.join(wrong)}"
        for path in files()
        if path.name != "test_requirements.py"
        for number, line in enumerate((text_of(path) or "").splitlines(), 1)
        if (wrong := names_of_machines(line))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "torch @ file:///home/me/torch.whl",
        'Path("/root/x")',
        r"C:\Users\me",
        "at 10.0.0.7",
        "https://pypi.local/simple",
    ],
)
def test_names_of_machines_are_seen(line):
    assert names_of_machines(line)


def test_what_is_no_machine_is_let_pass():
    assert not names_of_machines("a/home/b https://arxiv.org/abs/1 127.0.0.1 2.13.0 $TMPDIR/opt/x ~/.cache/var/x")
