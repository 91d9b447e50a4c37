"""However a run is ended, it ends, and the next one makes what an undisturbed one makes."""

from collections.abc import Iterator

import pytest

from tests.end_to_end.endings import Bench, Ending, play

pytestmark = pytest.mark.slow

ENDINGS = [
    Ending("run", True, "SIGINT", "scoring"),
    Ending("run", False, "SIGTERM", "scoring"),
    Ending("run", False, "SIGINT", "training"),
    Ending("run", True, "SIGKILL", "training"),
    Ending("run", True, "SIGTERM", "evaluation"),
    Ending("run", False, "SIGKILL", "evaluation"),
    # Those of one home follow each other, so that they share a server.
    Ending("run", True, "cancel", "training"),
    Ending("ui", True, "cancel", "scoring"),
    Ending("ui", True, "SIGKILL", "training"),
    Ending("ui", False, "cancel", "training"),
    Ending("ui", False, "cancel", "evaluation"),
    Ending("ui", False, "SIGTERM", "scoring"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("endings"))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
def test_a_run_ends_and_the_next_makes_the_same_bytes(bench: Bench, ending: Ending) -> None:
    play(bench, ending)
