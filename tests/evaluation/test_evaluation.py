"""What an evaluation leaves behind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_gen.cli import commands
from tests.conftest import arguments


@pytest.mark.slow
def test_samples_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = arguments("VAE", tmp_path, 64)
    result = commands.run(words)
    samples = result.with_name("samples.npz")
    content = samples.read_bytes()

    def full_disk(path: Path, **arrays: Any) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left")

    result.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez_compressed", full_disk)
        with pytest.raises(OSError, match="no space left"):
            commands.evaluate([str(result.parents[2])])
    assert samples.read_bytes() == content and not result.exists()
    samples.unlink()
    commands.evaluate([str(result.parents[2])])
    assert result.is_file() and np.load(samples)["images"].shape == (24, 1, 8, 8)
