"""docs/extending.md, run as printed: a method and a codec of one's own, from a run file to its replay."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.archive import Archive
from aggregator.replay import Replay
from federation.errors import SettingsError
from federation.learning.algorithms import ALGORITHMS, Algorithm, Update
from federation.learning.algorithms.fedavg import FedAvg
from federation.learning.algorithms.scaffold import Scaffold
from federation.learning.exchange import capabilities, check_capability
from federation.learning.own_code import capability_of, source_digest
from federation.learning.sets import Sets
from federation.messages import Choice, RoundPlan
from federation.settings import RunSettings, parse_settings
from fedmq.testing import ContractError, check_algorithm
from tests.machines.federation_pair import FederationPair
from tests.machines.test_methods import MethodLearner

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
METHOD, CODEC = "gentle:Gentle", "signs:Signs"
MAX_LINES = 40


def printed() -> dict[str, str]:
    """Return the page's files by name."""
    blocks = re.findall(r"```python\n(# (\w+\.py);.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return {name: text for text, name in blocks}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files, importable."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, text in printed().items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    forget()
    yield folder
    forget()


def forget() -> None:
    """Have modules imported and read anew, as another process would."""
    for name in ("gentle", "signs"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    source_digest.cache_clear()


def federation(folder: Path, **choices: Any) -> FederationPair:
    pair = FederationPair(folder, num_rounds=3, **choices)
    for node in pair.nodes:
        pair.learners[node] = MethodLearner(node)
    return pair


def test_each_is_short() -> None:
    files = printed()
    assert sorted(files) == ["gentle.py", "signs.py"]
    assert all(text.count("\n") <= MAX_LINES for text in files.values())


def test_own_method_and_codec_run_and_repeat_from_their_record(installed: Path, tmp_path: Path) -> None:
    check_algorithm(importlib.import_module("gentle").Gentle)
    pair = federation(tmp_path / "own", method={"name": METHOD, "server_learning_rate": 0.5}, codec={"name": CODEC})
    known = capabilities((METHOD, CODEC))
    pair.start_aggregator()
    for node in pair.nodes:
        pair.start_node(node, capabilities=known)
    pair.run()
    assert pair.aggregator_service.stopped is not None
    assert not pair.aggregator_service.stopped.failed
    archive = Archive(tmp_path / "own" / "out" / "rounds")
    assert len(list(Replay("pair", archive).verify([1, 2, 3]))) == 3
    plan = RoundPlan.model_validate_json(pair.broker.retained["fedmq/v2/pair/rounds/1/plan"])
    assert plan.method.source_sha256 == source_digest(METHOD)
    (installed / "gentle.py").write_text("# another version\n" + printed()["gentle.py"])
    forget()
    with pytest.raises(Exception, match="another source than the one the round was planned with"):
        list(Replay("pair", archive).verify([1]))


@pytest.mark.usefixtures("installed")
def test_gentle_is_scaffold(tmp_path: Path) -> None:
    digests = []
    for name in (METHOD, "scaffold"):
        pair = federation(tmp_path / name.partition(":")[0], method={"name": name})
        pair.start_aggregator()
        for node in pair.nodes:
            pair.start_node(node, capabilities=capabilities((METHOD,)))
        pair.run()
        digests.append(pair.global_digest)
    assert digests[0] == digests[1]


@pytest.mark.usefixtures("installed")
def test_node_without_it_or_with_another_version_sits_out(tmp_path: Path) -> None:
    pair = federation(tmp_path / "own", method={"name": METHOD}, min_nodes=1)
    pair.start_aggregator()
    pair.start_node("n0", capabilities=capabilities((METHOD,)))
    pair.start_node("n1", capabilities=capabilities())
    pair.start_node("n2", capabilities=[*capabilities(), capability_of(METHOD, "0" * 64)])
    pair.run()
    plan = RoundPlan.model_validate_json(pair.broker.retained["fedmq/v2/pair/rounds/1/plan"])
    assert plan.cohort == ["n0"]


def test_a_node_imports_nothing_that_its_owner_has_not_named(tmp_path: Path) -> None:
    """Whatever a plan says."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "trap.py").write_text("raise SystemExit('imported')")
    with pytest.raises(SettingsError, match="not among FEDMQ_EXTENSIONS"):
        check_capability(Choice(name="trap:Trap", source_sha256="0" * 64), Choice(name="float32"), capabilities())
    assert "trap" not in sys.modules


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nowhere_at_all:Thing", "install it here, or add its folder to PYTHONPATH"),
        ("json:JSONDecoder", "is no Algorithm"),
        ("json:Nothing", "can't be used"),
    ],
)
def test_what_can_not_be_used_is_a_sentence(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        parse_settings({"method": {"name": name}})
    assert RunSettings().own_code() == ()


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_fedmqs_own_methods_keep_the_contract(name: str) -> None:
    kind = ALGORITHMS[name]
    settings = {"name": name}
    check_algorithm(kind, **settings)


class Forgetful(Scaffold):
    """Keeps something without saying so."""

    keeps_node_state = False


class Fickle(FedAvg):
    """Depends on something besides its arguments."""

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return another model each time."""
        following: Sets = super().aggregate(sets, updates)
        shift = float(np.random.default_rng().normal())
        return following.with_sets(model=following["model"].map(lambda values: values + shift))


class Careless(FedAvg):
    """Takes updates in any order."""

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the last update's model."""
        return sets.with_sets(model=updates[-1].sets["model"]) if updates else sets


@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        (Forgetful, {"name": "scaffold"}, "keeps_node_state"),
        (Fickle, {"name": "fedavg"}, "other bits"),
        (Careless, {"name": "fedavg"}, "out of node order"),
    ],
)
def test_what_breaks_the_contract_is_named(kind: type[Algorithm], settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ContractError, match=text):
        check_algorithm(kind, **settings)
