"""How long a sweep still takes, against what it takes."""

import pytest

from lit_gen.core.progress import Step
from lit_gen.sweeps import estimate as module
from lit_gen.sweeps.estimate import SHARE_OF_EVALUATION, Estimate, training_of
from lit_gen.sweeps.trial import Trial


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed, to be set."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def trials(num_models: int, num_samplers: int) -> list[Trial]:
    return [
        Trial(f"{model}-{sampler}", {}, [f"--model={model}", f"--sampler={sampler}"])
        for model in range(num_models)
        for sampler in range(num_samplers)
    ]


def test_trials_of_a_training_differ_in_sampler_evaluation_and_tracking_alone() -> None:
    words = ["--model=EDM", "--budget.num_images=5"]
    more = ["--sampler=Heun", "--sampler.nfe=4", "--evaluation.seed=3", "--wandb.project=p"]
    assert training_of(Trial("a", {}, [*words, *more])) == training_of(Trial("b", {}, words))
    assert training_of(Trial("a", {}, [*words, "--ema.decay=0.9"])) != training_of(Trial("b", {}, words))


def test_nothing_is_known_before_the_first_images(clock: list[float]) -> None:
    estimate = Estimate(trials(3, 2), jobs=2)
    assert estimate.seconds_left() is None
    estimate.started(trials(3, 2)[0])
    clock[0] += 5
    estimate.stepped(trials(3, 2)[0], Step("training", 0, 1000, 0.0))
    assert estimate.seconds_left() is None


def test_before_a_trial_has_finished_the_running_one_tells(clock: list[float]) -> None:
    """Of 4 models one at a time: 10 s to begin, and a training of 100 images at 2 images/s."""
    waiting = trials(4, 1)
    estimate = Estimate(waiting, jobs=1)
    estimate.started(waiting[0])
    clock[0] += 20
    estimate.stepped(waiting[0], Step("training", 20, 100, 2.0))
    assert estimate.seconds_left() == pytest.approx(40 + 3 * 60)
    clock[0] += 15  # and no news
    assert estimate.seconds_left() == pytest.approx(25 + 3 * 60)


def test_trials_that_share_a_training_cost_what_an_evaluation_costs(clock: list[float]) -> None:
    """Two models with five samplers each: 100 s for the first trial of a model, 4 s for each other."""
    waiting = trials(2, 5)
    estimate = Estimate(waiting, jobs=1)
    for index, trial in enumerate(waiting):
        estimate.started(trial)
        seconds = 100.0 if index % 5 == 0 else 4.0
        clock[0] += seconds
        estimate.ended(trial, seconds)
        if index == 0:
            assert estimate.seconds_left() == pytest.approx(100 + 8 * SHARE_OF_EVALUATION * 100)
        if index == 1:
            assert estimate.seconds_left() == pytest.approx(100 + 7 * 4)
        if index == 7:
            assert estimate.seconds_left() == pytest.approx(2 * 4)
    assert estimate.seconds_left() == 0


def test_jobs_share_the_work_and_wait_for_the_last(clock: list[float]) -> None:
    waiting = trials(4, 1)
    estimate = Estimate(waiting, jobs=2)
    for trial, seconds_left in zip(waiting[:2], (30.0, 50.0), strict=True):
        estimate.started(trial)
        estimate.stepped(trial, Step("training", 0, round(10 * seconds_left), 10.0))
    assert estimate.seconds_left() == pytest.approx((30 + 50 + 2 * 40) / 2)
    for trial in waiting[2:]:
        estimate.started(trial)
        estimate.stepped(trial, Step("training", 0, 10, 10.0))
    for trial in waiting[2:]:
        estimate.ended(trial, 1.0)
    estimate.ended(waiting[0], 30.0)
    assert estimate.seconds_left() == pytest.approx(50), "one job alone is at work"


def test_a_trial_that_failed_tells_nothing_of_the_others(clock: list[float]) -> None:
    waiting = trials(3, 1)
    estimate = Estimate(waiting, jobs=1)
    for trial, seconds in zip(waiting[:2], (40.0, None), strict=True):
        estimate.started(trial)
        clock[0] += seconds or 1.0
        estimate.ended(trial, seconds)
    assert estimate.seconds_left() == pytest.approx(40)
