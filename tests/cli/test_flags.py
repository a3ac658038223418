"""The help of `train` and `plan`: complete, with defaults that are the true ones."""

import re

import pytest

from p2pnn import zoo
from p2pnn.cli import flags, main
from p2pnn.cli.jobfile import FLAGS, RATES
from p2pnn.cli.request import Request

NOT_FLAGS = {"name", "model", "arguments", "data", "inputs", "pins"}


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_the_help_names_every_network_and_shows_how(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert set(flags.NETWORKS) == set(zoo.names())
    for name in zoo.names():
        assert re.search(rf"^  {name} ", out, re.MULTILINE), name
    assert f"p2pnn {verb} lenet5 --data ~/mnist --epochs 3" in out


def test_the_defaults_in_the_help_are_those_of_a_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for flag, path in FLAGS.items():
        if flag in NOT_FLAGS:
            continue
        value: object = Request()
        for key in path:
            value = getattr(value, key)
        text = re.search(rf"--{flag.replace('_', '-')} \S+ (.*?)(?= --[a-z-]+ [A-Za-z|]+ |$)", words)
        assert text, flag
        if isinstance(value, int | float) and value:
            assert f"[default: {value:g}" in text[1], flag
        elif isinstance(value, str) and value and flag != "parallel":
            assert f"[default: {value}]" in text[1], flag
    assert all(f"{rate:g} for" in words for rate in RATES.values())
