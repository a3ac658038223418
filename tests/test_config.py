"""Configuration: precedence, places, and refusals."""

import os
from pathlib import Path

import pytest

from p2pnn.config import KEYS, Places, client_socket, is_configured, node_config, parse_bytes, unknown
from p2pnn.errors import NotAllowedError, UsageError
from p2pnn.types import Address


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": "/run/user/7"}


def write(tmp_path: Path, text: str) -> None:
    folder = tmp_path / ".config" / "p2pnn"
    folder.mkdir(parents=True)
    (folder / "node.toml").write_text(text)


def test_defaults_are_a_persons_xdg_folders(environ: dict[str, str], tmp_path: Path) -> None:
    config = node_config({}, environ=environ)
    assert config.state_dir == tmp_path / ".local/state/p2pnn"
    assert config.socket == Path("/run/user/7/p2pnn/p2pnn.sock")
    assert (config.listen, config.secured) == (Address("0.0.0.0", 7700), True)
    assert (config.join, config.quota_bytes, config.profile_cache) == ((), 0, None)
    assert config.preset == "lan"
    plain = node_config({"plain": True}, environ=environ)
    assert (plain.listen, plain.secured, plain.preset) == (Address("127.0.0.1", 7700), False, "loopback")
    assert node_config({}, environ=environ | {"P2PNN_PLAIN": "yes"}).secured is False
    assert node_config({"listen": "10.0.0.1:7700"}, environ=environ).preset == "lan"
    assert node_config({"preset": "wan"}, environ=environ).preset == "wan"


def test_flag_over_environment_over_file(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, 'name = "file"\ncluster = "file"\nquota = "2 GiB"\njoin = ["a:1", "b:2"]\n')
    environ |= {"P2PNN_NAME": "environment", "P2PNN_CLUSTER": "environment"}
    config = node_config({"name": "flag", "cluster": None}, environ=environ)
    assert (config.name, config.cluster, config.quota_bytes) == ("flag", "environment", 2 << 30)
    assert config.join == (Address("a", 1), Address("b", 2))
    assert node_config({"join": ["c:3"]}, environ=environ).join == (Address("c", 3),)


def test_unknown_key_is_refused_with_the_nearest(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, "qouta = 5\n")
    with pytest.raises(UsageError, match=r"node\.toml: unknown key 'qouta'; did you mean quota\?"):
        node_config({}, environ=environ)


def test_a_named_file_replaces_the_persons_and_must_exist(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, 'name = "person"\n')
    assert node_config({}, config=os.devnull, environ=environ).name != "person"
    assert node_config({}, environ=environ | {"P2PNN_CONFIG": os.devnull}).name != "person"
    with pytest.raises(UsageError, match="no configuration file"):
        node_config({}, config=str(tmp_path / "none.toml"), environ=environ)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / ".config/p2pnn/node.toml").chmod(0)
    with pytest.raises(NotAllowedError, match=r"node\.toml cannot be read"):
        node_config({}, environ=environ)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("listen", "host:port", "is not an address"),
        ("preset", "lna", "unknown preset 'lna'; did you mean lan?"),
        ("quota", "many", "quota = 'many' is not a size"),
        ("log_level", "loud", "log_level = 'loud' is not one of debug, info, warning, error"),
        ("name", "attic pc", "cannot be a node's name"),
        ("state_dir", 5, "state_dir = 5 is not a text"),
        ("join", 7, "is not a list of addresses"),
        ("socket", "/" + "x" * 120, "longer than the 107 bytes"),
        ("name", 0, "cannot be a node's name"),
        ("name", "x" * 65, "up to 64 letters"),
        ("listen", False, "listen = False is not an address"),
        ("listen", "a b:7700", "listen = 'a b:7700' is not an address"),
        ("listen", "127.0.0.1:99999", "is not an address"),
        ("log_level", 0, "log_level = 0 is not one of"),
        ("quota", False, "quota = False is not a size"),
        ("cluster", "x" * 65, "up to 64 printable characters"),
        ("cluster", "a\tb", "cannot be a mesh's name"),
        ("join", ["127.0.0.1:0"], "join = '127.0.0.1:0' names port 0"),
        ("state_dir", "a\0b", "holds a zero character"),
        ("profile_cache", "~no-such-person/x", "nobody's home is called so"),
        ("socket_group", 5, "socket_group = 5 is not a text"),
    ],
)
def test_bad_values(environ: dict[str, str], key: str, value: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        node_config({key: value}, environ=environ)


def test_a_state_folder_of_its_own_brings_the_socket_along(environ: dict[str, str], tmp_path: Path) -> None:
    config = node_config({"state_dir": str(tmp_path / "b")}, environ=environ)
    assert config.socket == tmp_path / "b" / "p2pnn.sock"
    other = node_config({"state_dir": str(tmp_path / "b")}, environ=environ | {"P2PNN_SOCKET": "/tmp/a/p2pnn.sock"})
    assert other.socket == config.socket, "a terminal that points to another daemon must not decide"
    choice = client_socket(None, environ | {"P2PNN_STATE_DIR": str(tmp_path / "b")})
    assert choice.asked
    assert choice.path == config.socket


def test_whether_a_setting_is_configured(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, 'name = "file"\ncluster = ""\n')
    environ |= {"P2PNN_SOCKET_GROUP": "users"}
    found = {key for key in KEYS if is_configured(key, environ=environ)}
    assert found == {"name", "socket_group"}
    assert node_config({}, environ=environ).socket_group == "users"


@pytest.mark.parametrize("text", ["host:0", "+host:0", "host:http"])
def test_what_cannot_be_advertised_is_refused_before_anything_starts(environ: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError):
        node_config({"advertise": ["good.example", text]}, environ=environ)


def test_a_token_is_one_setting_by_whatever_way_it_comes(environ: dict[str, str], tmp_path: Path) -> None:
    for ways in ({"P2PNN_TOKEN": "t"}, {"P2PNN_TOKEN_FILE": "f"}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}):
        (tmp_path / "p2pnn.join-token").write_text("t")
        for key in ("token", "token_file"):
            assert is_configured(key, environ=environ | ways)
            assert not is_configured(key, environ=environ)
        assert not is_configured("name", environ=environ | ways)


def test_a_configuration_that_everybody_may_read_holds_no_token(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f'token = "p2pnn1.{"ab" * 32}.01234567.{"cd" * 16}"\n')
    path.chmod(0o644)
    with pytest.raises(UsageError, match="which holds a token; take the right to read from others"):
        node_config({}, config=str(path), environ=environ)
    client_socket(None, environ | {"P2PNN_CONFIG": str(path)})  # who only speaks to the daemon has nothing to mend
    path.chmod(0o640)
    assert node_config({}, config=str(path), environ=environ).token


@pytest.mark.parametrize(
    ("host", "refused"),
    [("192.168.1.20", True), ("[2001:db8::1]", True), ("127.0.0.2", False), ("[::1]", False), ("localhost", False)],
)
def test_a_plain_node_joins_on_this_machine_only(environ: dict[str, str], host: str, refused: bool) -> None:
    asked = {"plain": True, "join": [f"{host}:7700"]}
    if not refused:
        assert node_config(asked, environ=environ).join
        return
    with pytest.raises(NotAllowedError, match="on another machine") as caught:
        node_config(asked, environ=environ)
    assert caught.value.setting == "join"


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the users that systemd makes for a service."""

    def unknown(path: str) -> str:
        return path

    monkeypatch.setattr("os.path.expanduser", unknown)
    assert Places.of({}).state == Path("/.local/state/p2pnn")
    assert node_config({"state_dir": str(tmp_path)}, config=os.devnull, environ={}).state_dir == tmp_path


def test_the_clients_socket(environ: dict[str, str]) -> None:
    assert client_socket("/tmp/x.sock", environ).path == Path("/tmp/x.sock")
    assert client_socket("/tmp/x.sock", environ).asked
    assert client_socket(None, environ | {"P2PNN_SOCKET": "/tmp/y.sock"}).asked
    assert not client_socket(None, environ).asked


def test_relative_xdg_paths_are_ignored(tmp_path: Path) -> None:
    places = Places.of({"HOME": str(tmp_path), "XDG_DATA_HOME": "relative", "XDG_STATE_HOME": "/s"})
    assert places.runs == tmp_path / ".local/share/p2pnn/runs"
    assert places.state == Path("/s/p2pnn")
    assert places.runtime is None


@pytest.mark.parametrize(("text", "number"), [(12, 12), ("12", 12), ("1.5 kB", 1500), ("2GiB", 2 << 30), ("0", 0)])
def test_sizes(text: object, number: int) -> None:
    assert parse_bytes(text, "quota") == number


@pytest.mark.parametrize("text", ["", "5 parsecs", "-1", -1, True, "1e99 GB", "nan"])
def test_no_sizes(text: object) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_bytes(text, "quota")


def test_unknown_without_a_near_name_lists_all() -> None:
    assert unknown("no fruit", "zzz", ["fig", "pear"]) == "no fruit 'zzz'; there are fig, pear"
    assert unknown("no fruit", "zzz", []) == "no fruit 'zzz'; there is none"


def test_an_unknown_name_gets_the_near_one_or_a_few() -> None:
    assert unknown("no job", "x", ["safetensors"]) == "no job 'x'; there is only safetensors"
    assert unknown("no job", "x", []) == "no job 'x'; there is none"
    assert unknown("no job", "x", [f"j{n}" for n in range(10)]).endswith(
        "there are j0, j1, j2, j3, j4, j5, j6, j7 and 2 more"
    )
