import pytest

from lit_gen.core.errors import UserError
from lit_gen.sweeps.journal import Journal, outcomes, read_journal


def written(path, *events):
    journal = Journal(path)
    for event, trial in events:
        journal.append(event, trial, note="ü")


def test_the_last_outcome_of_each_trial_counts(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert read_journal(path) == []
    written(path, ("started", "a"), ("failed", "a"), ("started", "b"))
    written(path, ("started", "a"), ("finished", "a"))
    assert [(e["event"], e["trial"]) for e in read_journal(path)] == [
        ("started", "a"),
        ("failed", "a"),
        ("started", "b"),
        ("started", "a"),
        ("finished", "a"),
    ]
    assert {trial: event["event"] for trial, event in outcomes(read_journal(path)).items()} == {"a": "finished"}


def test_a_line_torn_at_any_byte_costs_that_line_alone(tmp_path):
    path = tmp_path / "journal.jsonl"
    written(path, ("finished", "a"))
    whole = path.read_bytes()
    written(path, ("finished", "b"))
    both = path.read_bytes()
    for end in range(len(whole), len(both) + 1):
        path.write_bytes(both[:end])
        kept = ["a", "b"] if end >= len(both) - 1 else ["a"]
        assert [event["trial"] for event in read_journal(path)] == kept
        written(path, ("started", "c"))
        assert [event["trial"] for event in read_journal(path)] == [*kept, "c"]
        assert path.read_bytes().count(b"\n") == len(kept) + 1


@pytest.mark.parametrize("damage", [b"{", b"3", b'{"event": "started"}'])
def test_damage_elsewhere_is_named(tmp_path, damage):
    path = tmp_path / "journal.jsonl"
    written(path, ("finished", "a"), ("finished", "b"))
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(first + b"\n" + damage + b"\n" + second + b"\n")
    with pytest.raises(UserError, match=r"journal.jsonl: line 2 is damaged"):
        read_journal(path)
