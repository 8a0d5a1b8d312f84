"""How many of a test's parameters are run: all, or a part that takes each path through the code."""

from __future__ import annotations

from collections import defaultdict

import pytest

from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.tests.support.code_paths import CHOSEN_IDS

OTHER_IDS = {entry.id for entry in CATALOG} - set(CHOSEN_IDS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--few-samplers",
        action="append",
        default=[],
        metavar="FOLDER",
        help="tests over the catalogue in this folder run one sampler per path through the code",
    )
    parser.addoption(
        "--each-value-once",
        action="store_true",
        help="in those folders each value of a parameter is run, and not every combination of them",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    folders = [config.rootpath / folder for folder in config.getoption("--few-samplers")]
    by_test: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if any(folder in item.path.parents for folder in folders):
            by_test[item.nodeid.partition("[")[0]].append(item)
    once = config.getoption("--each-value-once")
    left_out = {item for runs in by_test.values() for item in superfluous(runs, once)}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def superfluous(runs: list[pytest.Item], once: bool) -> set[pytest.Item]:
    """The runs of one test that can be left out.

    Samplers of the catalogue are left out if CHOSEN_IDS stands for them, but every other value of a
    parameter still occurs. A test that runs none of the chosen samplers runs its own.

    Args:
        once: leave out the combinations too that hold nothing but values seen before.
    """
    chosen = [item for item in runs if not values(item) & OTHER_IDS]
    if not chosen:
        return set()
    kept = [] if once else chosen
    seen = set().union(*map(values, kept))
    for item in (*chosen, *runs):
        if not kept or values(item) - OTHER_IDS - seen:
            kept.append(item)
            seen |= values(item)
    return set(runs) - set(kept)


def values(item: pytest.Item) -> set[str]:
    """The names of an item's parameters, from its id."""
    return set(item.name.partition("[")[2].removesuffix("]").split("-"))
