import pytest


@pytest.fixture(autouse=True)
def warm(warm_processes: None) -> None:
    """What is tested here is the daemon's side; how executors start is tested beside them."""
