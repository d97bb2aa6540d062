"""Fold BatchNorm into the convolution before it, if its statistics and weights do not change."""

from collections.abc import Callable

from pipeline.networks.building import Head

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """Return `network` in eval mode with each BatchNorm folded into the convolution before it.

    `network` keeps its BatchNorm, and is set to eval mode, too. The result shares all other layers with it: use it
    before `network` changes. The output is the same up to rounding. A network with nothing to fold, or whose code
    cannot be traced, is returned as is.
    """
    network.eval()
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    return _fold(network, lambda layer: True) or network


def fold_frozen_batchnorm(network: nn.Module) -> nn.Module:
    """Return `network` with BatchNorm folded where neither it nor the convolution before it is trained.

    Call it after `set_training`. The result shares all other layers with `network`, so training one trains the other.
    The output is the same up to rounding. A network with nothing to fold, or whose code cannot be traced, is returned
    as is.
    """
    if not any(_is_fixed(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        return network
    return _fold(network, _is_fixed) or network


def _is_fixed(layer: nn.Module) -> bool:
    """Whether training leaves the layer unchanged."""
    is_trained = any(parameter.requires_grad for parameter in layer.parameters())
    return not is_trained and not (layer.training and isinstance(layer, nn.BatchNorm2d))


def _fold(network: nn.Module, may_fold: Callable[[nn.Module], bool]) -> fx.GraphModule | None:
    """The graph of `network` with each BatchNorm folded that `may_fold`, like the convolution before it.

    None if its code cannot be traced, because it depends on the values or sizes of images.
    """
    try:
        folded = fx.GraphModule(network, _Tracer().trace(network))
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError):
        return None
    layers = dict(folded.named_modules())
    for node in list(folded.graph.nodes):
        before = node.args[0] if node.op == "call_module" else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        name = str(before.target)
        convolution, batchnorm = layers[name], layers[node.target]
        is_pair = isinstance(convolution, nn.Conv2d) and isinstance(batchnorm, nn.BatchNorm2d)
        if is_pair and may_fold(convolution) and may_fold(batchnorm):
            folded.set_submodule(name, fuse_conv_bn_eval(convolution.eval(), batchnorm))
            if activation := [*batchnorm.children()]:  # of timm's BatchNormAct2d, which calls them in this order
                folded.set_submodule(node.target, nn.Sequential(*activation))
            else:
                node.replace_all_uses_with(before)
                folded.graph.erase_node(node)
    folded.delete_all_unused_submodules()
    folded.recompile()
    type(folded).__call__ = nn.Module.__call__  # torch.fx's prints a traceback of each error that it raises
    return folded


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A Head's autocast cannot be traced; BatchNorm is recognised below, also timm's with an activation.
        return isinstance(m, Head | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)
