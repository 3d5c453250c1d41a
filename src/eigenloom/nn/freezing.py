"""Hold queries and keys where they start for some epochs."""

from torch import nn

from eigenloom.errors import ConfigError
from eigenloom.nn.warm_attention import WarmSelfAttention


class FreezeSchedule:
    """Queries and keys of every ``WarmSelfAttention`` in a model stay fixed for the first ``freeze_qk_epochs`` epochs.

    Build the optimizer with all parameters. A frozen one has no gradient at all, so neither momentum nor weight decay
    touches it.
    """

    def __init__(self, freeze_qk_epochs: int):
        """Take the number of epochs.

        Raises:
            ConfigError: it is negative.
        """
        if freeze_qk_epochs < 0:
            raise ConfigError(f"freeze_qk_epochs: {freeze_qk_epochs} is below 0")
        self.freeze_qk_epochs = freeze_qk_epochs

    def start_epoch(self, model: nn.Module, epoch: int) -> bool:
        """Freeze or thaw at the start of an epoch, 0-based, and drop stale gradients; say whether anything switched.

        Under ``DistributedDataParallel`` call it on the wrapped module and, where it returns True, build the wrapper
        again: a wrapper knows the parameters that it was built with.

        Raises:
            ConfigError: ``model`` is such a wrapper, or holds no attention that can be frozen.
        """
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise ConfigError("start_epoch: give the module inside DistributedDataParallel, and wrap it again on True")
        found = [module for module in model.modules() if isinstance(module, WarmSelfAttention)]
        if not found:
            raise ConfigError("start_epoch: the model holds no WarmSelfAttention")
        trained, switched = epoch >= self.freeze_qk_epochs, False
        for module in found:
            switched |= any(parameter.requires_grad != trained for parameter in module.qk_parameters())
            module.set_qk_requires_grad(trained)
            if not trained:
                for parameter in module.qk_parameters():
                    parameter.grad = None
        return switched
