"""Fit a linear head to the pretrained network's features, so that training starts from a good classifier."""

from pipeline.networks.building import head_of
from pipeline.networks.dataset import Augment, PackedSplit
from pipeline.networks.predicting import predict_features

import torch
from torch import Tensor, nn

MOST_PHOTOS = 1000  # enough for a start; training improves on it
AUGMENTED_VIEWS = 3  # of each photo
REGULARISATION = 0.03  # weight of the penalty on the coefficients, relative to the mean log loss


def fit_head(network: nn.Module, train: PackedSplit, augment: Augment | None, dtype: torch.dtype, title: str) -> float:
    """Set the linear head of `network` to a logistic regression on the features of train's photos.

    Uses the first MOST_PHOTOS photos and at least one of each class: each as it is and, unless `augment` is None, in a
    few augmented views. Returns the log loss on them, in nats. Leaves the network in eval mode. `title`
    labels the progress bar.
    """
    photos = train.sample(MOST_PHOTOS)
    views = [None, *[augment] * AUGMENTED_VIEWS] if augment else [None]
    features = torch.cat([predict_features(network, photos, dtype, title, view) for view in views])
    labels = photos.labels.cpu().repeat(len(views))
    weight, bias = _regress(features, labels)
    linear = head_of(network)[-1]
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return nn.functional.cross_entropy(features.double() @ weight.T + bias, labels).item()


def _regress(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The weight [classes, features] and bias [classes] of a penalised logistic regression."""
    from sklearn.linear_model import LogisticRegression  # here, because it takes a second

    scale = features.std().item()
    strength = 1 / (REGULARISATION * len(features))
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(features / scale, labels)
    weight, bias = torch.from_numpy(fitted.coef_ / scale), torch.from_numpy(fitted.intercept_)
    if len(weight) == 1:  # of two classes it has only the second one's margin over the first
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return weight, bias
