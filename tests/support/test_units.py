"""systemd's files: each setting has its reason, systemd understands them and finds little exposed, and both say the same."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from p2pnn.cli.installation import GROUP, NAME_CHARS_MAX, Layout
from p2pnn.config import BAD_CONFIGURATION, KEYS, SYSTEM_CONFIG, SYSTEM_SOCKET, node_config
from p2pnn.transport.limits import Limits
from p2pnn.values import TOKEN_CREDENTIAL

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS = ROOT / "systemd"
NAMES = ("p2pnn.service", "p2pnn@.service")
EXPOSURE_MAX = 1.5

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing on this machine"
)


def settings(name: str) -> list[tuple[str, str]]:
    """Key and value of each line, in order; a key may stand twice."""
    lines = (UNITS / name).read_text().splitlines()
    return [
        (key, value) for key, equals, value in (line.partition("=") for line in lines if line[:1].isalpha()) if equals
    ]


def flags(name: str) -> dict[str, str]:
    words = dict(settings(name))["ExecStart"].split()
    assert words[:3] == ["/opt/p2pnn/venv/bin/p2pnn", "node", "start"]
    return dict(zip(words[3::2], words[4::2], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_its_reason_above_it(name: str) -> None:
    above = ""
    for line in (UNITS / name).read_text().splitlines():
        if line[:1].isalpha():
            assert re.match(r"# .{15,}", above), f"{name}: no reason above {line}"
        assert not re.match(r"\s*[^#]*\s#", line), (
            f"{name}: systemd takes a comment behind a value for a part of it: {line}"
        )
        above = line


def test_both_units_differ_by_the_names_only() -> None:
    changed = [
        line[1:].partition("=")[0]
        for line in difflib.ndiff(*((UNITS / name).read_text().splitlines() for name in NAMES))
        if line[:2] in ("- ", "+ ") and line[2:3].isalpha()
    ]
    assert {key.strip() for key in changed} == {
        "Description",
        "ExecStart",
        "User",
        "StateDirectory",
        "RuntimeDirectory",
        "LoadCredential",
    }


@pytest.mark.parametrize(("name", "instance"), [("p2pnn.service", ""), ("p2pnn@.service", "b")])
def test_the_unit_puts_things_where_installing_says(name: str, instance: str) -> None:
    at = Layout(instance)
    given = {
        key: value.replace("%i", instance).replace("%S", "/var/lib").replace("%t", "/run")
        for key, value in flags(name).items()
    }
    assert given["--config"] == str(at.configuration)
    assert given["--state-dir"] == str(at.state)
    assert given["--socket"] == str(at.socket)
    assert given["--socket-group"] == dict(settings(name))["Group"] == GROUP
    assert given.get("--name", "") == instance
    found = {key: value.replace("%i", instance) for key, value in settings(name)}
    assert (found["StateDirectory"], found["RuntimeDirectory"]) == (at.state.name, at.socket.parent.name)
    credential, _, source = found["LoadCredential"].partition(":")
    assert credential == TOKEN_CREDENTIAL
    assert source == (f"p2pnn-{instance}.join-token" if instance else "")
    assert "/" not in source, "a path that is missing would keep the service from starting"
    assert found["RestartPreventExitStatus"] == str(BAD_CONFIGURATION)
    assert found["User"] == (
        f"p2pnn-{instance}" if instance else "p2pnnd"
    )  # never the group's name, nor two nodes' alike


def test_a_service_has_descriptors_for_all_its_links() -> None:
    for name in NAMES:
        limits = Limits()
        assert int(dict(settings(name))["LimitNOFILE"]) > 2 * (limits.links_max + limits.handshakes_max)


def test_the_command_line_looks_where_the_service_is() -> None:
    assert Layout().socket == SYSTEM_SOCKET
    assert Layout().configuration == SYSTEM_CONFIG


def test_every_line_of_the_example_can_be_taken(tmp_path: Path) -> None:
    text = (UNITS / "node.toml").read_text()
    whole = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    (tmp_path / "node.toml").write_text(whole)
    config = node_config({}, config=str(tmp_path / "node.toml"), environ={"HOME": "/"})
    assert (config.name, config.quota_bytes, len(config.join)) == ("attic-pc", 20 * 10**9, 1)
    assert set(tomllib.loads(whole)) == set(KEYS) - {
        "state_dir",
        "socket",
        "socket_group",
        "profile_cache",
        "token",
        "token_file",
        "plain",
    }
    assert tomllib.loads(text) == {"listen": "0.0.0.0:7700"}


@pytest.fixture
def runnable(tmp_path: Path) -> Path:
    """The units with a program that exists here, because systemd looks for it."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/p2pnn/venv/bin/p2pnn", sys.executable))
    return tmp_path


@needs_systemd
def test_systemd_understands_every_line(runnable: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(runnable / name) for name in NAMES)], capture_output=True, text=True
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if "p2pnn" in line]
    assert (done.returncode, said) == (0, [])


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_little_is_exposed(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX * 10:.0f}", "--no-pager"]
    done = subprocess.run([*command, str(UNITS / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) <= EXPOSURE_MAX


def test_the_name_of_an_instance_fits_into_that_of_its_user() -> None:
    assert len(dict(settings("p2pnn@.service"))["User"].removesuffix("%i")) + NAME_CHARS_MAX == 31


def test_the_units_are_packed_with_the_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"systemd": "p2pnn/systemd"}
