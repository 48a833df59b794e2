"""The clock counts images by whole steps, and gives every micro-batch random numbers of its own."""

import torch

from lit_gen.families.clock import Clock, Division, step_seed


def test_images_count_with_the_first_micro_batch_of_a_step() -> None:
    clock, seen = Clock(), []
    for _ in range(6):
        clock.start_batch(num_images=64, num_micro_batches=3)
        seen.append((clock.images_seen, clock.micro_batch, clock.is_whole_step(3)))
    assert seen == [(64, 0, False), (64, 1, False), (64, 2, True), (128, 0, False), (128, 1, False), (128, 2, True)]


def test_a_restored_clock_continues_with_the_same_random_numbers() -> None:
    clock, restored = Clock(seed=3), Clock(seed=3)
    for _ in range(5):
        clock.start_batch(8, 1)
    restored.load_state_dict({"images_seen": 40, "batches_seen": 5, "state_dict": {}})
    assert clock.state_dict() == restored.state_dict() == {"images_seen": 40, "batches_seen": 5}
    numbers = []
    with torch.random.fork_rng():
        for own in (clock, restored):
            own.find_share(1, Division(2))
            own.reseed(torch.device("cpu"))
            numbers.append(torch.rand(4))
        assert torch.equal(*numbers)
        restored.find_share(0, Division(2))
        restored.reseed(torch.device("cpu"))
        assert not torch.equal(torch.rand(4), numbers[0])


def test_seeds_differ_by_seed_stream_and_step() -> None:
    seeds = {step_seed(seed, stream, step) for seed in range(3) for stream in (0, 1, "times") for step in range(3)}
    assert len(seeds) == 27 and all(0 <= seed < 2**63 for seed in seeds)
