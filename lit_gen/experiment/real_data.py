"""Parse the data and the features or protocol that a command line names, for verbs that need no model.

The keys are those of an experiment: `data.source` and its parts, `data.num_val`; and `feature_net`, or `evaluation`.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_gen.core.errors import UserError
from lit_gen.data.module import ImageDataModule
from lit_gen.evaluation.protocol import Evaluation
from lit_gen.experiment import key_help
from lit_gen.experiment.arguments import is_config, normalise_arguments
from lit_gen.experiment.build import build
from lit_gen.experiment.files import check_argument
from lit_gen.experiment.messages import one_line
from lit_gen.experiment.trust import check_parsed, keys_alone
from lit_gen.metrics.feature_nets import FeatureNet, default_feature_net


class RealData(NamedTuple):
    """Real images, and the features that they are compared by."""

    data: ImageDataModule
    feature_net: Callable[[], FeatureNet] | None

    def net(self) -> FeatureNet:
        """Return the feature net, or the default one of the data.

        Raises:
            UserError: If it cannot be built, or does not suit the data.
        """
        if not self.data.source.quantised:
            raise UserError(
                f"data.source: {self.data.name} holds points, which have no reference statistics; choose images"
            )
        with keys_without_evaluation():
            net = default_feature_net(self.data.image_shape) if self.feature_net is None else self.feature_net()
        if net.dtype.is_floating_point:
            raise UserError(f"feature_net: {net.name} features are not of images; choose another class")
        return net


def parse_real_data(arguments: Sequence[str], verb: str, options: Sequence[str] = ()) -> RealData:
    """Return the data and the feature net of a command line.

    Args:
        arguments: The words that give keys.
        verb: The verb that they are of, for messages.
        options: Options of the verb that are not keys.

    Raises:
        UserError: If a key does not exist or does not accept its value.
    """
    parser = _parser()
    parser.add_argument("--feature_net", type=Callable[[], FeatureNet] | None, default=None)
    built = _built(parser, {ImageDataModule: "data"}, arguments, verb, options, "--data.source and --feature_net")
    return RealData(built.data, built.feature_net)


ALL = 2**40
"""Number of samples of an evaluation that takes all images that there are."""


def parse_protocol(
    arguments: Sequence[str], verb: str, options: Sequence[str] = ()
) -> tuple[ImageDataModule, Evaluation, int | None]:
    """Return the data and the protocol of a command line, and the number of samples if it is given.

    Args and errors are those of `parse_real_data`.
    """
    parser = _parser()
    parser.add_class_arguments(Evaluation, "evaluation")
    parser.set_defaults({"evaluation.num_samples": ALL})
    groups = {ImageDataModule: "data", Evaluation: "evaluation"}
    built = _built(parser, groups, arguments, verb, options, "--data.source and --evaluation")
    num_samples = built.evaluation.num_samples
    return built.data, built.evaluation, None if num_samples == ALL else num_samples


def _parser() -> LightningArgumentParser:
    parser = LightningArgumentParser(parser_mode="omegaconf+", exit_on_error=False, prog="lit-gen", allow_abbrev=False)
    parser.add_class_arguments(ImageDataModule, "data")
    return parser


def _built(
    parser: LightningArgumentParser,
    groups: dict[type, str],
    arguments: Sequence[str],
    verb: str,
    options: Sequence[str],
    instead: str,
) -> Namespace:
    """Return the objects of the keys of a command line."""
    if text := key_help.find(parser, arguments, verb):
        print(text)
        raise SystemExit(0)
    words = normalise_arguments(arguments)
    for word in words:
        if is_config(word):
            raise UserError(f"--config: lit-gen {verb} reads no configuration; give {instead}")
        check_argument(word)
    try:
        with contextlib.redirect_stderr(io.StringIO()), keys_alone():
            config = parser.parse_args(words)
        check_parsed(parser, config, ())
        return build(parser, config, groups)
    except (ArgumentError, ValueError) as error:
        raise UserError(one_line(error, parser, options)) from None


@contextlib.contextmanager
def keys_without_evaluation() -> Iterator[None]:
    """Name the feature net in errors as these verbs do: `feature_net`, not `evaluation.feature_net`."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("feature_net: evaluation.", "evaluation.")  # `build` puts the key before it
        raise type(error)(text.replace("evaluation.feature_net", "feature_net")) from None
