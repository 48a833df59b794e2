"""The batches that each process computes."""

import pytest
import torch

from lit_gen.evaluation import shares


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_each_batch_belongs_to_one_process_and_is_that_of_a_single_one(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[dict[int, torch.Tensor]] = []
    for rank in range(world_size):
        monkeypatch.setattr(shares, "ranks", lambda rank=rank: (rank, world_size))
        with shares.shared_batches("test", 23, 5) as batches:
            held.append({batch.start: torch.tensor(batch) for batch in batches})
    assert shares.in_order(held).tolist() == list(range(23))
    assert all(first % 5 == 0 and len(batch) <= 5 for share in held for first, batch in share.items())
    assert {len(share) for share in held} <= {-(-5 // world_size), 5 // world_size}
