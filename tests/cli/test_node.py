"""`node` and `peers`: what the daemon says, and bad configuration, which ends with a status of its own."""

import json
from pathlib import Path

import pytest

from p2pnn.cli import main
from p2pnn.config import BAD_CONFIGURATION, NodeConfig
from tests.cli.fake import FakeDaemon

NODE = {
    "node": "5" * 32,
    "name": "attic",
    "version": "0.1",
    "pid": 77,
    "uptime_s": 90.0,
    "address": "127.0.0.1:7700",
    "state_dir": "/var/lib/p2pnn",
    "rss_bytes": 50 << 20,
    "blobs_bytes": 3 << 20,
    "quota_bytes": 0,
    "profile": None,
    "job": None,
    "queue": [],
    "notice": "binds loopback only",
}
PEERS = {
    "peers": [
        {"name": "attic", "address": "127.0.0.1:7700", "state": "self", "reason": "", "rtt_ms": None, "job": None},
        {"name": "desk", "address": "127.0.0.1:7701", "state": "alive", "reason": "", "rtt_ms": 0.25, "job": "d-1"},
        {"name": "", "address": "127.0.0.1:7702", "state": "unreachable", "reason": "refused", "rtt_ms": None},
        {
            "name": "shed",
            "address": "127.0.0.1:7703",
            "state": "suspect",
            "reason": "it answers no probe",
            "since_s": 3.2,
            "by": ["attic", "desk"],
            "profile": {"gflops": 41, "memory_bytes": 6 << 30},
        },
        {"name": "old", "address": "127.0.0.1:7704", "state": "left", "reason": ""},
    ]
}


def test_status(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET node"], daemon["GET peers"] = NODE, PEERS
    assert main(["node", "status"]) == 0
    out, err = capsys.readouterr()
    said = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert said["node"].split() == ["attic", "5" * 32]
    assert said["memory"] == "50 MiB"
    assert said["data"] == "3.0 MiB"
    assert said["machine"] == "not measured yet"
    assert said["job"] == "none"
    assert said["peers"] == (
        "1 alive; 127.0.0.1:7702 unreachable: refused; shed suspect since 3 s, by attic and desk: it answers no probe"
    )
    assert "up 1:30" in said["version"]
    assert err == "binds loopback only\n"
    daemon["GET node"] = NODE | {
        "quota_bytes": 1 << 30, "profile": {"gflops": 41.2, "memory_bytes": 1 << 30}, "job": "d-1", "queue": ["d-2"],
    }  # fmt: skip
    assert main(["node", "status"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["data"] == "3.0 MiB of 1.0 GiB"
    assert said["machine"] == "41 GFLOP/s, 1.0 GiB free"
    assert said["job"] == "d-1, 1 waiting"


def test_status_in_json(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET node"] = NODE
    assert main(["node", "status", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == NODE
    assert err == ""


def test_peers(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["GET peers"] = PEERS
    assert main(["peers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "attic", "desk", "?", "shed", "old"]
    assert lines[2].split() == ["desk", "127.0.0.1:7701", "alive", "0.25", "ms", "d-1"]
    assert "unreachable: refused" in lines[3]
    assert "suspect since 3 s, by attic and desk: it answers no probe" in lines[4]
    assert lines[4].endswith("41 GFLOP/s, 6.0 GiB free")
    assert lines[5].split()[-1] == "left"
    assert main(["peers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == PEERS


def test_stop(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["POST node/stop"] = {}
    assert main(["node", "stop"]) == 0
    assert capsys.readouterr().out == "node a is stopping\n"
    assert len(daemon.bodies("POST node/stop")) == 1


@pytest.mark.parametrize("words", [["node", "status"], ["node", "stop"], ["peers"], ["jobs", "ls"], ["data", "ls"]])
def test_without_a_daemon(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("p2pnn: no daemon answers on ")
    assert "p2pnn node start" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "gone.toml"], "gone.toml"),
        (["--config", "bad.toml"], "lisen"),
        (["P2PNN_QUOTA=much"], "much"),
        (["P2PNN_CONFIG=bad.toml"], "lisen"),
    ],
)
def test_bad_configuration_has_a_status_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("p2pnn.api.serve.run_daemon", lambda config: 0)
    (tmp_path / "bad.toml").write_text("lisen = '127.0.0.1:7700'\n")
    if "=" in words[0]:
        monkeypatch.setenv(*words.pop().split("="))
    assert main(["node", "start", *words]) == BAD_CONFIGURATION == 78
    err = capsys.readouterr().err
    assert err.startswith("p2pnn: ")
    assert said in err
    assert len(err.splitlines()) == 1


BAD_SETTINGS = [
    ('listen = "nowhere:http"', "nowhere:http"),
    ('listen = "0.0.0.0:7700"', "without credentials a node listens on this machine only"),
    ("listen = false", "listen = False is not an address"),
    ('join = ["desk:"]', "desk:"),
    ('join = ["127.0.0.1:0"]', "names port 0"),
    ('name = "a b"', "'a b' cannot be a node's name"),
    ("name = 0", "cannot be a node's name"),
    ('plain = "perhaps"', "is neither true nor false"),
    ('cluster = "' + "x" * 65 + '"', "up to 64 printable characters"),
    ('quota = "much"', "much"),
    ("quota = false", "is not a size"),
    ('log_level = "loud"', "'loud' is not one of"),
    ('state_dir = "/proc/none"', "the state folder /proc/none cannot be made: "),
    ('state_dir = "a\\u0000b"', "holds a zero character"),
    ('socket = "{here}/plain"', "plain exists and is not a socket"),
    ('socket_group = "nobody-has-this"', "there is no group nobody-has-this"),
    ('profile_cache = "~no-such-person/x"', "nobody's home is called so"),
    ("listne = 1", "unknown key 'listne'"),
    ("listen = ", "is not a readable TOML file"),
]
"""A line of node.toml, and what is said of it; whether it is noticed when it is read or when the daemon starts with it."""

TEXTS = [(setting, said) for setting, said in BAD_SETTINGS if '"' in setting and "u0000" not in setting]
"""What the environment can say too: it has only texts, and names only keys that are known."""


@pytest.mark.parametrize(
    ("place", "setting", "said"),
    [("file", *case) for case in BAD_SETTINGS] + [("environment", *case) for case in TEXTS],
)
def test_every_bad_value_of_file_or_environment_ends_with_this_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    setting: str,
    said: str,
) -> None:
    (tmp_path / "plain").write_text("")
    setting = setting.replace("{here}", str(tmp_path))
    key, _, text = setting.partition(" = ")
    if place == "environment":
        monkeypatch.setenv(f"P2PNN_{key.upper()}", text.strip('["]'))
    sound = {"state_dir": str(tmp_path / "state"), "listen": "127.0.0.1:0", "plain": "true"}
    lines = [f'{name} = "{value}"' for name, value in sound.items() if name != key]
    (tmp_path / "node.toml").write_text("\n".join(lines + [setting] * (place == "file")))
    assert main(["node", "start", "--config", str(tmp_path / "node.toml")]) == BAD_CONFIGURATION
    err = capsys.readouterr().err
    assert err.startswith("p2pnn: ")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("way", ["credential", "file", "flag"])
def test_a_token_of_the_configuration_that_cannot_be_used_ends_with_this_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    """As the service does whose credential is there and whose `join` is not: systemd must not start it again and again."""
    token = tmp_path / "p2pnn.join-token"
    token.write_text(f"p2pnn1.{'ab' * 32}.01234567.{'cd' * 16}")
    token.chmod(0o600)
    settings = f'listen = "127.0.0.1:0"\nstate_dir = "{tmp_path}/state"\n'
    if way == "credential":
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    elif way == "file":
        settings += f'token_file = "{token}"\n'
    (tmp_path / "node.toml").write_text(settings)
    flags = ["--token-file", str(token)] if way == "flag" else []
    status = main(["node", "start", "--config", str(tmp_path / "node.toml"), *flags])
    assert status == (2 if way == "flag" else BAD_CONFIGURATION)
    assert "a token needs an address to join by" in capsys.readouterr().err


def test_a_flag_over_a_bad_file_is_the_one_to_blame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "node.toml").write_text(f'plain = true\nstate_dir = "{tmp_path}/state"\nlisten = "0.0.0.0:1"\n')
    assert main(["node", "start", "--config", str(tmp_path / "node.toml"), "--listen", "0.0.0.0:0"]) == 4
    assert "without credentials" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen", "nowhere:http"], "nowhere:http"),
        (["--listen", "127.0.0.1:99999"], "99999"),
        (["--join", "desk:"], "desk:"),
        (["--name", "a b"], "'a b' cannot be a node's name"),
        (["--quota", "much"], "much"),
        (["--preset", "lna"], "did you mean lan?"),
        (["--log-level", "loud"], "'loud' is not one of"),
        (
            ["--socket-group", "nobody-has-this", "--state-dir", "{here}", "--listen", "127.0.0.1:0"],
            "there is no group nobody-has-this",
        ),
        (["--state-dir", "/proc/none", "--listen", "127.0.0.1:0"], "the state folder /proc/none cannot be made: "),
    ],
)
def test_a_bad_flag_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["node", "start", *(word.format(here=tmp_path) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("p2pnn: ")
    assert said in err
    assert len(err.splitlines()) == 1


def test_flags_reach_the_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[NodeConfig] = []

    def run(config: NodeConfig) -> int:
        started.append(config)
        return 7

    monkeypatch.setattr("p2pnn.api.serve.run_daemon", run)
    words = ["--name", "n", "--state-dir", str(tmp_path), "--listen", "127.0.0.1:0", "--join", "127.0.0.1:1"]
    assert main(["node", "start", *words, "--join", "127.0.0.1:2", "--quota", "2 GB", "--cluster", "c"]) == 7
    (config,) = started
    assert (config.name, config.state_dir, config.cluster, config.quota_bytes) == ("n", tmp_path, "c", 2 * 10**9)
    assert [str(address) for address in config.join] == ["127.0.0.1:1", "127.0.0.1:2"]
