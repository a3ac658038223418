"""The steps of a service, as lines: what is done on a fresh machine, beside others, again, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnn.cli.installation import Layout, Origin, Present, free_port, install, leave, remove
from p2pnn.errors import UsageError

ORIGIN = Origin(source="/src/p2 pnn", units=Path("/src/systemd"), python="/usr/bin/python3.11")
PIP = "/opt/p2pnn/venv/bin/python -I -m pip install --quiet --disable-pip-version-check --no-input --upgrade '/src/p2 pnn'"
BUILD = ["/usr/bin/python3.11 -I -m venv /opt/p2pnn/venv", PIP]
PLAIN = Present(
    units=frozenset({"p2pnn.service"}),
    unit=True,
    environment=True,
    configuration=True,
    state=True,
    ports=frozenset({7700}),
)


def lines(steps: list[object]) -> list[str]:
    return [step.line for step in steps]  # type: ignore[attr-defined]


def test_a_fresh_machine() -> None:
    steps = install(Layout(), ORIGIN, Present(), "ada")
    assert lines([*steps]) == [
        *BUILD,
        "groupadd --system --force p2pnn",
        "usermod --append --groups p2pnn ada",
        "install -D --mode=0644 /src/systemd/p2pnn.service /etc/systemd/system/p2pnn.service",
        "install -D --mode=0644 /src/systemd/node.toml /etc/p2pnn/node.toml",
        "systemctl daemon-reload",
        "systemctl enable --now p2pnn.service",
    ]
    assert all(step.why for step in steps)
    assert not any("usermod" in line for line in lines([*install(Layout(), ORIGIN, Present(), None)]))


def test_again_keeps_the_configuration_and_starts_again_what_runs() -> None:
    present = Present(frozenset({"p2pnn.service", "p2pnn@b.service"}), True, True, True, True, frozenset({7700, 7710}))
    assert lines([*install(Layout(), ORIGIN, present, None)]) == [
        *BUILD,
        "groupadd --system --force p2pnn",
        "install -D --mode=0644 /src/systemd/p2pnn.service /etc/systemd/system/p2pnn.service",
        "systemctl daemon-reload",
        "systemctl enable --now p2pnn.service",
        "systemctl try-restart p2pnn.service p2pnn@b.service",
    ]


def test_a_node_beside_another_gets_its_own_port_and_disturbs_nobody() -> None:
    present = Present(units=PLAIN.units, environment=True, ports=PLAIN.ports)
    assert lines([*install(Layout("b"), ORIGIN, present, None)]) == [
        "groupadd --system --force p2pnn",
        "install -D --mode=0644 /src/systemd/p2pnn@.service /etc/systemd/system/p2pnn@.service",
        "install -D --mode=0644 /src/systemd/node.toml /etc/p2pnn/b/node.toml",
        "sed --in-place 's/^listen = .*/listen = \"0.0.0.0:7710\"/' /etc/p2pnn/b/node.toml",
        "systemctl daemon-reload",
        "systemctl enable --now p2pnn@b.service",
    ]


def test_back_keeps_what_a_person_may_miss() -> None:
    gone = [
        "systemctl disable --now p2pnn.service",
        "rm --force /etc/systemd/system/p2pnn.service",
        "systemctl daemon-reload",
        "rm --recursive --force /opt/p2pnn/venv",
        "rmdir --ignore-fail-on-non-empty /opt/p2pnn",
    ]
    assert lines([*remove(Layout(), PLAIN, purge=False)]) == gone
    assert lines([*remove(Layout(), PLAIN, purge=True)]) == [
        *gone,
        "rm --recursive --force /var/lib/private/p2pnn /var/lib/p2pnn",
        "rm --force /etc/p2pnn/node.toml",
        "rmdir --ignore-fail-on-non-empty /etc/p2pnn",
    ]


@pytest.mark.parametrize(
    ("others", "kept"),
    [
        ({"p2pnn.service"}, ["/opt/p2pnn/venv"]),
        ({"p2pnn@c.service"}, ["/opt/p2pnn/venv", "/etc/systemd/system/p2pnn@.service"]),
        (set(), []),
    ],
)
def test_what_others_still_use_stays(others: set[str], kept: list[str]) -> None:
    present = Present(units=frozenset({"p2pnn@b.service", *others}), unit=True, environment=True)
    found = lines([*remove(Layout("b"), present, purge=False)])
    assert found[0] == "systemctl disable --now p2pnn@b.service"
    for path in ("/opt/p2pnn/venv", "/etc/systemd/system/p2pnn@.service"):
        assert any(line.startswith("rm ") and line.endswith(path) for line in found) is (path not in kept)


def test_state_can_be_purged_later() -> None:
    present = Present(state=True)
    with pytest.raises(
        UsageError, match=r"there is no service p2pnn@b\.service on this machine; /var/lib/p2pnn-b is kept"
    ):
        remove(Layout("b"), present, purge=False)
    found = lines([*remove(Layout("b"), present, purge=True)])
    assert found == ["rm --recursive --force /var/lib/private/p2pnn-b /var/lib/p2pnn-b"]
    with pytest.raises(UsageError, match="there is no service"):
        remove(Layout("b"), Present(), purge=True)


def test_what_a_broken_installation_left_can_be_removed() -> None:
    assert (
        lines([*remove(Layout(), Present(environment=True), purge=False)])[0]
        == "rm --recursive --force /opt/p2pnn/venv"
    )


def test_before_that_it_leaves_by_its_own_program() -> None:
    program = "/opt/p2pnn/venv/bin/p2pnn node drain"
    found = [leave(Layout("b"), force, for_good).line for for_good in (True, False) for force in (False, True)]
    assert found == [
        f"{program} --leave --socket /run/p2pnn-b/p2pnn.sock",
        f"{program} --leave --force --socket /run/p2pnn-b/p2pnn.sock",
        f"{program} --socket /run/p2pnn-b/p2pnn.sock",
        f"{program} --force --socket /run/p2pnn-b/p2pnn.sock",
    ]


def test_places() -> None:
    plain, b = Layout(root=Path("/r")), Layout("b", Path("/r"))
    assert (str(plain.socket), str(b.socket)) == ("/r/run/p2pnn/p2pnn.sock", "/r/run/p2pnn-b/p2pnn.sock")
    assert (str(plain.configuration), str(b.configuration)) == ("/r/etc/p2pnn/node.toml", "/r/etc/p2pnn/b/node.toml")
    assert (str(plain.state), str(b.private_state)) == ("/r/var/lib/p2pnn", "/r/var/lib/private/p2pnn-b")


@pytest.mark.parametrize("name", ["../x", "a b", "-x", ".", "a/b", "a@b", "a.b", "x" * 26, "ä"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a service"):
        Layout(name)


def test_ports() -> None:
    assert [free_port(frozenset(taken)) for taken in ((), (7700,), (7700, 7710, 7730), (7710,))] == [
        7700,
        7710,
        7720,
        7700,
    ]
