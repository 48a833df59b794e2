"""`lit-gen score`: scores images that other software made."""

import torch

from lit_gen.cli import help
from lit_gen.cli.commands import print_result
from lit_gen.core.errors import UserError
from lit_gen.data.given import read_given
from lit_gen.evaluation.foreign import Foreign, check_settings, score_foreign
from lit_gen.experiment.real_data import parse_protocol


def score(arguments: list[str]) -> None:
    """Score images like the samples of a run."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError("IMAGES: missing; give a folder or file, as in lit-gen score images.npz --data.source Digits")
    options, keys = help.score_parser().parse_known_args(arguments)
    data, evaluation, num_images = parse_protocol(keys, "score", help.score_parser().names)
    check_settings(evaluation)
    images = read_given(options.images, data, num_images)
    name = options.images.resolve().stem if options.name is None else options.name
    foreign = Foreign(images, name, options.nfe, options.parameters)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result, path, computed = score_foreign(evaluation, foreign, data, options.root, device)
    print_result(result.to_dict(), path, computed)
