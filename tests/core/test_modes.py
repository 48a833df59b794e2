import pytest
from torch import nn

from lit_gen.core.modes import evaluating


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_before_returns_also_after_an_error(training):
    module = nn.Sequential(nn.Dropout()).train(training)
    with evaluating(module):
        assert not module.training and not module[0].training
    assert module.training == module[0].training == training
    with pytest.raises(KeyError), evaluating(module):
        raise KeyError
    assert module.training == module[0].training == training
