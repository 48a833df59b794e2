"""The feature net of an evaluation that does not name one."""

from functools import cache

from lit_gen.core.errors import UserError
from lit_gen.core.processes import from_first, ranks
from lit_gen.metrics.feature_nets.base import FeatureNet
from lit_gen.metrics.feature_nets.efficientnet import EfficientNetLite0, find_weights
from lit_gen.metrics.feature_nets.inception import Inception, NoWeightsError, find_inception


def default_feature_net(image_shape: tuple[int, int, int]) -> FeatureNet:
    """Return Inception; for colour images without its weights, EfficientNetLite0, if that is installed.

    The choice is made once per command, and a line announces any net other than Inception. Collective: the first
    process chooses for all.

    Args:
        image_shape: (C, H, W).

    Raises:
        UserError: If there is none of the two.
    """
    if image_shape[0] != 3:
        return Inception()
    chosen: type[FeatureNet] = from_first(_for_colour() if ranks()[0] == 0 else None)
    return chosen()


@cache
def _for_colour() -> type[FeatureNet]:
    try:
        find_inception()
    except UserError as error:
        if not isinstance(error, NoWeightsError) or find_weights() is None:
            return Inception  # whose constructor raises the error on every process
        reason = str(error).partition(": ")[2].partition(";")[0]
        print(
            f"feature net: EfficientNetLite0, without Inception's weights ({reason}); the distance is "
            "fd_efficientnet_lite0 and not FID",
            flush=True,
        )
        return EfficientNetLite0
    return Inception
