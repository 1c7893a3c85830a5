"""`pytest tests/sim --seed=N` runs the simulator with that seed alone; `--seeds=N` with the first N."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="the one seed that tests/sim is to run")
    parser.addoption("--seeds", type=int, default=None, help="how many seeds tests/sim is to run")
