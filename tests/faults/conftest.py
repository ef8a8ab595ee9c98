"""Faults on purpose, many times over: how many were injected and how many survived is printed at the end.

Not part of the ordinary tests (`make faults` runs them); EXITWISE_FAULTS=short injects fewer of each.
"""

import os
import random

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if "faults" in item.path.parts:
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def count():
    """How many to inject: the first number, or the second in the short form."""
    return lambda whole, short: short if os.environ.get("EXITWISE_FAULTS") == "short" else whole


@pytest.fixture
def report(request):
    """Note a line of the table, and hold the figures against each other."""

    def note(fault, injected, survived):
        request.node.user_properties.append(("fault", f"{fault}: injected {injected}, survived {survived}"))
        assert injected == survived > 0

    return note


@pytest.fixture
def dice(request):
    """Random numbers, from a seed that the table's reader can set again."""
    return random.Random(os.environ.get("EXITWISE_FAULTS_SEED", request.node.name))


def pytest_terminal_summary(terminalreporter):
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, [])]
    lines = [value for each in reports if each.when == "call" for key, value in each.user_properties if key == "fault"]
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.line(line)
