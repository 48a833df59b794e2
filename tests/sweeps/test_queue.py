"""The order of the trials that wait, and what one process learns of another."""

import time
from pathlib import Path

from lit_gen.sweeps.estimate import training_of
from lit_gen.sweeps.journal import Journal
from lit_gen.sweeps.locks import Process, TrialLocks
from lit_gen.sweeps.queue import SharedTrials, TrialQueue
from lit_gen.sweeps.trial import Trial


def trial(model: str, nfe: int) -> Trial:
    return Trial(f"{model}{nfe}", {}, [f"--model={model}", f"--sampler.nfe={nfe}"])


def names(queue: TrialQueue, busy: set[frozenset[str]]) -> list[str]:
    return [found.id for found in iter(lambda: queue.pop(busy), None)]


def test_trials_keep_their_order_but_for_busy_trainings() -> None:
    trials = [trial(model, nfe) for nfe in (1, 2) for model in "AB"]
    assert names(TrialQueue(trials), set()) == ["A1", "B1", "A2", "B2"]
    assert names(TrialQueue(trials), {training_of(trials[0])}) == ["B1", "B2", "A1", "A2"]
    assert names(TrialQueue(trials), {training_of(each) for each in trials}) == ["A1", "B1", "A2", "B2"]
    queue = TrialQueue(trials)
    first = queue.pop(set())
    assert first is not None
    queue.push(first)
    assert names(queue, set()) == ["A1", "B1", "A2", "B2"] and not queue


def test_a_long_queue_takes_time_in_proportion() -> None:
    """20,000 trials of one training, and of as many trainings; a quadratic step takes minutes."""
    for trials in ([trial("A", nfe) for nfe in range(20_000)], [trial(f"A{model}", 1) for model in range(20_000)]):
        begin = time.process_time()
        assert len(names(TrialQueue(trials), {training_of(trials[0])})) == 20_000
        assert time.process_time() - begin < 2


def test_two_processes_share_trials_and_hear_of_each_other(tmp_path: Path) -> None:
    trials = [trial(model, 1) for model in "ABC"]

    def process(name: str) -> SharedTrials:
        locks = TrialLocks(tmp_path, process=Process(name, name, 1, 1, name))
        return SharedTrials(trials, Journal(tmp_path / "journal.jsonl", name), locks)

    a, b = process("a"), process("b")
    first, second = a.claim(set()), b.claim(set())
    assert (first, second) == (trials[0], trials[1]) and b.num_elsewhere == 1
    a._journal.append("finished", "A1", result="r")
    a.end(trials[0])
    assert [(event["event"], event["trial"]) for event in b.news(at_once=True)] == [("finished", "A1")]
    assert b.num_elsewhere == 0 and not b.news(at_once=True)
    b.put_back(trials[1])  # interrupted
    assert a.claim(set()) == trials[1]
    a._journal.append("failed", "B1", error="x", again=True)
    a.put_back(trials[1])
    b.news(at_once=True)
    assert b.claim(set()) == trials[1] and b.num_failures == {"B1": 1}, "a failure that is followed by a retry"
    assert a.claim(set()) == trials[2]
    assert b.claim(set()) is None and a.claim(set()) is None
    assert (a.num_elsewhere, b.num_elsewhere) == (1, 1)
    b._journal.append("failed", "B1", error="x")
    b.end(trials[1])
    a.news(at_once=True)
    assert a.num_elsewhere == 0 and not a.is_waiting
