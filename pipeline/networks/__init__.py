"""torchvision's and timm's networks: building, training and running them on packed splits."""

import gc

from pipeline.networks.startup import (
    import_torchvision,
    keep_optimizers_from_importing_dynamo,
    without_collecting_garbage,
)

with without_collecting_garbage():
    import_torchvision()  # first, so that importing it in any module of this package is quick
    keep_optimizers_from_importing_dynamo()
gc.freeze()  # modules stay, so that no later search for garbage need look at them
