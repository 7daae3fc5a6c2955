"""The scripts people and continuous integration start: they parse, find their Python, and pass failures on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [*(ROOT / "scripts" / name for name in ("bench", "check", "ci-packages", "demo", "test")), ROOT / ".ci" / "run"]
BASH = shutil.which("bash") or "bash"


def write_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{BASH}\n{script}\n")
    path.chmod(0o755)


def run_bash(script: str, *, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the functions of scripts/environment at hand, as scripts/* do."""
    environ = {"PATH": path or os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    sourced = f'set -euo pipefail\n. "{ROOT}/scripts/environment"\n{script}'
    return subprocess.run([BASH, "-c", sourced], capture_output=True, text=True, env=environ, check=False)


@pytest.mark.parametrize("script", [*COMMANDS, ROOT / "scripts" / "environment"], ids=lambda path: path.name)
def test_parses(script: Path) -> None:
    result = subprocess.run([BASH, "-n", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_can_be_started_and_stops_at_the_first_fault(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "\nset -euo pipefail\n" in script.read_text()


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH of one folder: the few programs scripts/environment needs, and what the test adds."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("dirname", "sleep", "tail", "cat", "env"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def test_takes_the_newest_python_that_really_runs(programs: Path) -> None:
    """A version manager's name on PATH that only prints an error is passed over, and so is a Python too old."""
    write_program(programs / "python3.13", "echo 'not installed' >&2; exit 127")
    write_program(programs / "python3.12", "exit 0")
    write_program(programs / "python3", "exit 1")
    assert run_bash("find_python", path=str(programs)).stdout.strip() == str(programs / "python3.12")


def test_without_a_new_enough_python_it_says_which_it_needs(programs: Path) -> None:
    write_program(programs / "python3", 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi')
    result = run_bash("python=$(find_python); echo went on", path=str(programs))
    assert result.returncode == 1
    assert "needs Python 3.11 or newer, and found Python 3.9.2" in result.stderr
    assert result.stdout == ""


def test_a_wrong_python_variable_is_not_passed_over(programs: Path) -> None:
    write_program(programs / "python3", "exit 0")
    result = run_bash("find_python", path=str(programs), PYTHON="/no/such/python")
    assert result.returncode == 1
    assert "PYTHON=/no/such/python is no Python 3.11 or newer" in result.stderr


def test_without_the_venv_module_and_rights_it_says_the_line_to_type(programs: Path) -> None:
    """As an ordinary user without sudo: nothing is installed."""
    write_program(programs / "id", "echo 1000")
    write_program(programs / "python3.12", "case $2 in *ensurepip*) exit 1 ;; *version_info*) echo 3.12 ;; esac")
    write_program(programs / "apt-get", f': > "{programs}/touched"')
    result = run_bash(f"ensure_venv_module {programs}/python3.12", path=str(programs))
    assert result.returncode == 1
    assert "Type: sudo apt-get update && sudo apt-get install python3.12-venv" in result.stderr
    assert not (programs / "touched").exists()


def test_root_gets_the_venv_module_installed(programs: Path) -> None:
    write_program(programs / "id", "echo 0")
    write_program(programs / "python3.12", f'case $2 in *ensurepip*) [ -e "{programs}/installed" ] ;; *version_info*) echo 3.12 ;; esac')
    write_program(programs / "apt-get", f'[ "$1" = update ] || {{ [ "${{!#}}" = python3.12-venv ] && : > "{programs}/installed"; }}')
    (programs / "sh").symlink_to(BASH)
    result = run_bash(f"ensure_venv_module {programs}/python3.12; echo went on", path=str(programs))
    assert (result.returncode, result.stdout) == (0, "went on\n"), result.stderr


def test_a_failed_step_shows_the_end_of_its_log_and_ends_the_script(tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    broken = 'broken() { for i in 1 2 3; do echo "detail $i"; done; return 7; }'
    result = run_bash(f'install_log="{log}"; {broken}; step "[1/1] it" broken; echo went on')
    assert result.returncode == 1
    assert result.stdout == ""
    assert "detail 3" in result.stderr
    assert str(log) in result.stderr


def test_a_step_is_one_line_and_its_output_goes_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    result = run_bash(f'install_log="{log}"; step "[1/1] it" echo chatter; echo went on')
    assert (result.returncode, result.stdout) == (0, "went on\n")
    assert result.stderr.startswith("[1/1] it ...")
    assert result.stderr.count("\n") == 1
    assert log.read_text() == "chatter\n"


def test_the_stamp_changes_with_the_pins_and_with_the_place(tmp_path: Path) -> None:
    """So that new pins are installed, and a moved folder gets a new .venv."""
    stamps = set()
    for name, pin in (("a", "torch==1"), ("a", "torch==1"), ("a", "torch==2"), ("b", "torch==2")):
        copy = tmp_path / name
        (copy / "scripts").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "scripts" / "environment", copy / "scripts")
        (copy / "pyproject.toml").write_text("")
        (copy / "constraints.txt").write_text(pin)
        script = f'. "{copy}/scripts/environment"; environment_stamp'
        stamps.add(subprocess.run([BASH, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert len(stamps) == 3


def test_constraints_pin_every_direct_dependency_exactly() -> None:
    """Also for machines other than this one: no local parts (+cpu), no addresses, no markers."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    # A version may begin with an epoch (1!2.0), which is as exact as the rest.
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==([0-9]+!)?[A-Za-z0-9.]+", line)] == []
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(entry for extra in project["optional-dependencies"].values() for entry in extra)]
    names = {re.split(r"[^A-Za-z0-9_-]", entry, maxsplit=1)[0].lower() for entry in wanted} - {"fedmq"}
    assert names - pinned == set()


@pytest.fixture
def ci_copy(tmp_path: Path) -> Path:
    """A folder laid out as continuous integration lays it out, its steps replaced by ones that leave a trace."""
    root = tmp_path / "clone"
    (root / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", root / ".ci" / "run")
    trace = f'echo "$(basename "$0") $FEDMQ_REQUIRE $(cd "$FEDMQ_DATA_DIR" && pwd)" >> "{tmp_path}/trace"'
    for name in ("ci-packages", "check", "test"):
        write_program(root / "scripts" / name, trace)
    write_program(tmp_path / "shared" / "tools" / "docker-engine", trace)
    (tmp_path / "shared" / "data").mkdir()
    return root


def run_ci(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BASH, root / ".ci" / "run"], capture_output=True, text=True, cwd="/", check=False)


def test_ci_runs_every_step_in_order_with_nothing_skipped(ci_copy: Path) -> None:
    assert run_ci(ci_copy).returncode == 0
    data = (ci_copy.parent / "shared" / "data").resolve()
    steps = (ci_copy.parent / "trace").read_text().splitlines()
    assert steps == [f"{name} all {data}" for name in ("docker-engine", "ci-packages", "check", "test")]


@pytest.mark.parametrize("step", ["ci-packages", "check", "test"])
def test_ci_fails_with_any_of_its_steps(ci_copy: Path, step: str) -> None:
    write_program(ci_copy / "scripts" / step, "exit 3")
    assert run_ci(ci_copy).returncode == 3


def test_ci_goes_on_without_a_container_engine(ci_copy: Path) -> None:
    """The tests marked docker then fail by themselves, and say why."""
    write_program(ci_copy.parent / "shared" / "tools" / "docker-engine", "exit 1")
    assert run_ci(ci_copy).returncode == 0
    shutil.rmtree(ci_copy.parent / "shared" / "tools")
    assert run_ci(ci_copy).returncode == 0
