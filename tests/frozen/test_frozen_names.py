"""Names that users and stored files see are those of the frozen state."""

import pytest

from tests.frozen import snapshot


def test_the_graph_defines_the_same_names_code_versions_and_partitions() -> None:
    assert snapshot.graph() == snapshot.read("graph")


def test_every_command_and_every_option_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in snapshot.HOMES:
        monkeypatch.delenv(name, raising=False)
    assert snapshot.commands() == snapshot.read("commands")
