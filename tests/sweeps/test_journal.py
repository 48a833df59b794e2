import threading
import time

import pytest

from lit_gen.core.errors import UserError
from lit_gen.sweeps import journal as module
from lit_gen.sweeps.journal import Journal, outcomes, read_journal


def written(path, *events):
    journal = Journal(path, "someone")
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


def test_several_writers_keep_whole_lines_and_read_each_other(tmp_path):
    path = tmp_path / "journal.jsonl"
    journals = [Journal(path, f"w{n}") for n in range(3)]

    def write(journal):
        for number in range(20):
            journal.append("started", f"{journal.writer}-{number}", filler="x" * 3000)

    threads = [threading.Thread(target=write, args=[journal]) for journal in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    news = journals[0].news()
    assert len(news) == 60 and {event["by"] for event in news} == {"w0", "w1", "w2"}
    assert news == read_journal(path) and journals[0].news() == []
    with path.open("ab") as file:
        file.write(b'{"event": "finished", "tri')  # a writer that was killed
    assert journals[0].news() == []
    journals[1].append("finished", "a")
    assert [event["trial"] for event in journals[0].news()] == ["a"] and len(read_journal(path)) == 61


def test_a_writer_that_was_stopped_with_the_lock_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_OF_PATIENCE", 0.1)
    path = tmp_path / "journal.jsonl"
    stopped, other = Journal(path, "stopped"), Journal(path, "other")
    with stopped.locked():
        other.append("finished", "a")
    assert [event["trial"] for event in read_journal(path)] == ["a"]


def test_reading_on_takes_time_in_proportion(tmp_path):
    """20,000 trials, one event each, with a look after every hundred; reading all each time takes minutes."""
    path = tmp_path / "journal.jsonl"
    journal, found = Journal(path, "someone"), 0
    begin = time.process_time()
    for start in range(0, 20_000, 100):
        with path.open("a") as file:
            file.writelines(f'{{"event": "finished", "trial": "{start + n}", "result": "r"}}\n' for n in range(100))
        found += len(journal.news())
    assert found == 20_000 and time.process_time() - begin < 2
