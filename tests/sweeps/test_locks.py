"""Locks of trials between processes, of which all but one are fakes: other machines, other clocks, holders that die."""

import errno
import json
import os
from pathlib import Path

import pytest

from lit_gen.core.errors import UserError
from lit_gen.sweeps.locks import Process, TrialLocks, start_of

LOST, SIGNS = 60.0, 3.0


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def full(*_: object) -> int:
    """Fail as on a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def machine(folder: Path, name: str, clock: Clock | None = None, pid: int = 1, started: int | None = 1) -> TrialLocks:
    """Return the locks of a process on a machine of that name; it gives signs of life only when told to."""
    folder.mkdir(exist_ok=True)
    system = Process.this().system if name == "here" else name
    return TrialLocks(
        folder, LOST, SIGNS, Process(name, system, pid, started, f"{name}-{pid}-{id(clock)}"), clock or Clock()
    )


def watch(locks: TrialLocks, clock: Clock, seconds: float) -> dict[str, str]:
    """Look every second for a number of seconds, and return what the locks show then."""
    found = locks.of_others()
    for _ in range(int(seconds)):
        clock.now += 1
        found = locks.of_others()
    return found


def test_one_process_has_a_trial_at_a_time(tmp_path: Path) -> None:
    a, b = machine(tmp_path, "a"), machine(tmp_path, "b")
    assert a.acquire("t") and not b.acquire("t") and not a.acquire("t")
    assert b.acquire("u")
    assert a.of_others() == {"u": "b"} and b.of_others() == {"t": "a"}
    a.release("t")
    assert b.of_others() == {} and b.acquire("t")


def test_a_holder_that_gives_signs_keeps_its_trial_however_long_it_takes(tmp_path: Path) -> None:
    clock = Clock()
    a, b = machine(tmp_path, "a"), machine(tmp_path, "b", clock)
    assert a.acquire("t")
    for _ in range(100):
        a.give_signs()
        assert watch(b, clock, 20) == {"t": "a"} and not b.acquire("t")
    assert a.lost() == []


def test_a_holder_without_a_sign_is_lost_after_the_stated_time_of_the_watcher(tmp_path: Path) -> None:
    clock = Clock()
    a, b = machine(tmp_path, "a"), machine(tmp_path, "b", clock)
    assert a.acquire("t")
    assert watch(b, clock, LOST - 1) == {"t": "a"} and not b.acquire("t")
    assert watch(b, clock, 1) == {} and b.acquire("t")
    assert [path.name for path in tmp_path.iterdir()] == ["t.2"]
    a.give_signs()  # it was only stopped, and wakes up
    assert a.lost() == ["t"]
    a.release("t")
    assert [path.name for path in tmp_path.iterdir()] == ["t.2"] and not a.acquire("t")
    b.give_signs()
    assert b.lost() == []


def test_a_watcher_that_was_stopped_itself_does_not_count_that_time(tmp_path: Path) -> None:
    clock = Clock()
    a, b = machine(tmp_path, "a"), machine(tmp_path, "b", clock)
    assert a.acquire("t")
    b.of_others()
    clock.now += 3600
    assert b.of_others() == {"t": "a"} and not b.acquire("t")


def test_of_several_that_take_over_one_does(tmp_path: Path) -> None:
    clock = Clock()
    a, others = machine(tmp_path, "a"), [machine(tmp_path, name, clock) for name in "bcd"]
    assert a.acquire("t")
    for other in others:
        other.of_others()
    for _ in range(int(LOST) + 1):
        clock.now += 1
        for other in others:
            other.of_others()
    assert [other.acquire("t") for other in others] == [True, False, False]


def test_a_view_of_the_folder_from_before_a_takeover_gives_no_second_lock(tmp_path: Path, monkeypatch) -> None:
    """c saw that a is lost, was stopped, and goes on when b has taken over, ended, and d begins anew."""
    clock = Clock()
    a, b, c, d = (machine(tmp_path, name, clock) for name in "abcd")
    assert a.acquire("t")
    watch(b, clock, LOST)
    old, seen = c._files_of("t"), tmp_path / "t.1"
    watch(c, clock, LOST)
    assert b.acquire("t")
    b.release("t")
    assert d.acquire("t")
    views = iter([old])
    monkeypatch.setattr(c, "_files_of", lambda trial: next(views, None) or TrialLocks._files_of(c, trial))
    assert seen.exists() and not c.acquire("t"), "t.1 is now the lock of d"
    d.give_signs()
    assert d.lost() == []


@pytest.mark.skipif(not Process.this().system, reason="this system does not show its processes")
def test_on_the_same_machine_a_dead_process_is_lost_at_once(tmp_path: Path) -> None:
    alive, start = os.getpid(), start_of(os.getpid())
    assert start is not None and start_of(2**22 + 1) is None
    b = machine(tmp_path, "here", pid=alive, started=start)
    for pid, started, lost in (
        (alive, start, False),
        (2**22 + 1, 5, True),
        (alive, start - 1, True),
        (alive, None, False),
    ):
        a = machine(tmp_path, "here", Clock(), pid, started)
        assert a.acquire("t")
        assert (b.of_others() == {}) == lost and b.acquire("t") == lost
        a.give_signs()
        a.release("t")
        b.release("t")
    elsewhere = machine(tmp_path, "a", pid=2**22 + 1)
    assert elsewhere.acquire("t") and not b.acquire("t"), "the id of a process of another machine says nothing"


def test_the_locks_of_lost_holders_alone_are_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this process, and of others that give signs, stay."""
    clock = Clock()
    gone, alive, b = machine(tmp_path, "a"), machine(tmp_path, "c"), machine(tmp_path, "b", clock)
    assert gone.acquire("t") and gone.acquire("u") and alive.acquire("v") and b.acquire("w")
    b.clear()
    assert len(list(tmp_path.iterdir())) == 4, "nobody is lost at the first look"
    for _ in range(int(LOST)):
        alive.give_signs()
        watch(b, clock, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        b.clear()
    assert len(list(tmp_path.iterdir())) == 4, "a full disk does not fail the sweep"
    b.clear()
    alive.give_signs()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.1", "w.1"] and alive.lost() == b.lost() == []
    gone.give_signs()
    assert sorted(gone.lost()) == ["t", "u"], "it was only stopped, and gives its trials up"


@pytest.mark.parametrize("content", [b"", b"{", b"3", json.dumps({"host": "a"}).encode()])
def test_a_lock_that_is_not_whole_is_taken_over_after_the_stated_time(tmp_path: Path, content: bytes) -> None:
    clock = Clock()
    b = machine(tmp_path, "b", clock)
    (tmp_path / "t.1").write_bytes(content)
    assert watch(b, clock, LOST - 1) == {"t": "another process"}
    assert watch(b, clock, 1) == {} and b.acquire("t")


def test_a_context_gives_signs_by_itself_and_lets_go_at_its_end(tmp_path: Path) -> None:
    a = TrialLocks(tmp_path / "locks", between_signs=0.01)
    with a:
        assert a.acquire("t")
        (path,) = (tmp_path / "locks").iterdir()
        first = path.read_bytes()
        assert any(path.read_bytes() != first for _ in range(100_000))
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = machine(tmp_path, "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(UserError, match="free some space"):
            a.acquire("t")
    assert list(tmp_path.iterdir()) == [] and a.acquire("t")


@pytest.mark.skipif(not Process.this().system, reason="this system does not show its processes")
def test_a_process_of_another_user_that_proc_hides_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    a, b = machine(tmp_path, "here", pid=2**22 + 1), machine(tmp_path, "here", pid=os.getpid())
    assert a.acquire("t")
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", forbidden)
        assert not b.acquire("t")
    assert b.acquire("t")
