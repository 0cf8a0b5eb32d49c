"""Prints the comparison's table at the end, and writes it where `--table` says."""

import pathlib

import pytest

LINES = pytest.StashKey[list]()
HEADER = ("attack", "images", "ours", "peers", "verdict", "seconds: ours (+ compile)")


def pytest_addoption(parser):
    parser.addoption("--table", help="write the table as markdown to this file")
    parser.addoption("--images", type=int, default=256, help="at most that many")


def pytest_configure(config):
    config.stash[LINES] = []


def as_markdown(lines):
    rows = [HEADER, ("---",) * len(HEADER), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash[LINES]
    if not lines:
        return
    table = as_markdown(lines)
    terminalreporter.write(f"\n{table}\n")
    if config.option.table:
        pathlib.Path(config.option.table).write_text(table)


@pytest.fixture
def table(request):
    """Rows so far."""
    return request.config.stash[LINES]
