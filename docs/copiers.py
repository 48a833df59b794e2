"""Write images of copiers of the digits: what a model that repeats its training images would sample.

python docs/copiers.py FOLDER RUN    writes copies.npz, noisy_copies.npz and mixture.npz, 1000 images each

copies are training images drawn at random, noisy_copies have Gaussian noise of 6 of 255 grey levels, and mixture holds
300 training images among 700 samples of a run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import lit_gen
from lit_gen.core.files import write_arrays
from lit_gen.data import Digits, ImageDataModule


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the files")
    parser.add_argument("run", type=Path, help="a run on the digits")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    chosen = np.random.default_rng(0)
    train = np.array(ImageDataModule(Digits()).images("train"))
    copies = train[chosen.integers(len(train), size=1000)]
    noisy = np.rint(copies + chosen.normal(0, 6, copies.shape)).clip(0, 255).astype(np.uint8)
    samples = lit_gen.load(options.run).sample(700).numpy()
    mixture = np.concatenate([copies[:300], samples])
    for name, images in {"copies": copies, "noisy_copies": noisy, "mixture": mixture}.items():
        write_arrays(options.folder / f"{name}.npz", images=images)


if __name__ == "__main__":
    main()
