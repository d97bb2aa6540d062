"""Fit a linear head to the network's features, so that training starts from a good classifier."""

from typing import cast

from pipeline.networks.building import head_of
from pipeline.networks.dataset import Augment, PackedSplit
from pipeline.networks.predicting import predict_features

import numpy as np
import torch
from torch import Tensor, nn

MAX_PHOTOS = 1000  # enough for a start; training improves on it
AUGMENTED_VIEWS = 3  # of each photo
REGULARISATION = 0.03  # weight of the penalty on the coefficients, relative to the mean log loss


def fit_head(
    network: nn.Module, train: PackedSplit, augment: Augment | None, balanced: bool, dtype: torch.dtype, title: str
) -> float:
    """Set the linear head of `network` to a logistic regression on the features of train's photos.

    Uses the first MAX_PHOTOS photos and at least one of each class: each as it is and, unless `augment` is None, in a
    few augmented views. With `balanced`, all classes count equally, however many photos they have. Returns the log loss
    on the photos and views, in nats, weighted alike. Leaves the network in eval mode. `title` labels the progress bar.
    """
    photos = train.sample(MAX_PHOTOS)
    views = [None, *[augment] * AUGMENTED_VIEWS] if augment else [None]
    features = torch.cat([predict_features(network, photos, dtype, title, view) for view in views])
    labels = photos.labels.cpu().repeat(len(views))
    linear = cast(nn.Linear, head_of(network)[-1])
    device = train.device if train.device.type == "cuda" else torch.device("cpu")  # where float64 is fast
    features, labels = features.to(device, torch.float64), labels.to(device)
    class_weights = photos.balanced_weights().to(device, torch.float64) if balanced else None
    weight, bias = _regress(features, labels, class_weights, linear.out_features)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    by_class = None if class_weights is None else class_weights.cpu()
    return nn.functional.cross_entropy(features.cpu() @ weight.T + bias, labels.cpu(), by_class).item()


def _regress(features: Tensor, labels: Tensor, class_weights: Tensor | None, classes: int) -> tuple[Tensor, Tensor]:
    """The weight [classes, features] and bias [classes] of a penalised logistic regression, float64 on the CPU.

    They minimise the mean log loss of `features` float64 [N, features], scaled to unit variance, plus the squared
    weights times REGULARISATION / 2, as scikit-learn's LogisticRegression does (importing it takes two seconds). For
    two classes it penalises the difference of their weights, which is the same as twice the penalty on both. In the
    mean each photo counts as much as `class_weights` float64 [classes] says; None: all the same.
    """
    from scipy.optimize import minimize  # here, because it takes a quarter of a second

    centre, scale = features.mean(dim=0), features.std()
    scaled = (features - centre) / scale  # centring changes only the bias, and takes fewer iterations
    rows = torch.arange(len(labels), device=labels.device)
    weight_of = None if class_weights is None else class_weights[labels]  # by photo; its mean is 1
    penalty = REGULARISATION * (2 if classes == 2 else 1)

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = _split(torch.from_numpy(parameters).to(features.device), classes)
        log_probabilities = torch.log_softmax(scaled @ weight.T + bias, dim=1)
        losses, error = -log_probabilities[rows, labels], log_probabilities.exp()
        error[rows, labels] -= 1
        if weight_of is not None:
            losses, error = losses * weight_of, error * weight_of[:, None]
        loss = penalty / 2 * weight.square().sum() + losses.mean()
        error /= len(labels)
        gradient = torch.cat([(error.T @ scaled + penalty * weight).flatten(), error.sum(dim=0)])
        return loss.item(), gradient.cpu().numpy()

    start = np.zeros((features.shape[1] + 1) * classes)
    options = {"maxiter": 1000, "gtol": 1e-6, "ftol": 0}
    fitted = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    weight, bias = _split(torch.from_numpy(fitted), classes)
    weight = weight / scale.cpu()
    return weight, bias - weight @ centre.cpu()


def _split(parameters: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Split the flat parameters into weight [classes, features] and bias [classes]."""
    return parameters[:-classes].view(classes, -1), parameters[-classes:]
