"""Combine the predictions of several networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

from pipeline.core.errors import UserError, list_some
from pipeline.core.files import read_json
from pipeline.core.paths import COMBINATION
from pipeline.core.sections.ensemble import Ensemble

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

FITTED = "fitted_weights"  # the only method that has weights
MEANS = ("mean_logits", "mean_probabilities")  # the methods that have a temperature
METHODS: tuple[str, ...] = get_args(Ensemble.model_fields["method"].annotation)
WEIGHT_DIGITS = 6  # decimal places; rounded before use, so that the weights in combination.json give the same results

softmax_of_rows = partial(softmax, axis=-1)


def votes(logits: np.ndarray) -> np.ndarray:
    """1.0 for the highest logit of each row (the first one in a tie), 0.0 for the others: [N, classes]."""
    return np.eye(logits.shape[-1])[logits.argmax(axis=-1)]


@dataclass(frozen=True)
class Combination:
    """How to combine the members; `method` is a value of ensemble.method.

    `temperature` calibrates the means (see pipeline/scores/calibration.py). Only fitted_weights uses `weights` (by
    network) and `intercepts` (by class, in the order of the labels). `members` are the networks, in the order of the
    logits, if it was read from combination.json.
    """

    method: str
    weights: dict[str, float] = field(default_factory=dict)
    intercepts: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    members: tuple[str, ...] = ()

    def __call__(
        self,
        logits: Sequence[Any],
        softmax: Callable = softmax_of_rows,
        votes: Callable = votes,
        array: Callable = np.array,
    ) -> Any:
        """Combine logits [N, classes], one array or tensor per network, into probabilities [N, classes].

        `softmax`, `votes` (see above) and `array` (of a list) are NumPy's by default; pass others for tensors. Use only
        operations that tensors have too, because tools/export.py runs this in its graphs.
        """
        if self.method == "fitted_weights":
            weighted = (member * weight for member, weight in zip(logits, self.weights.values(), strict=True))
            return softmax(sum(weighted) + array(list(self.intercepts.values())))
        if self.method == "mean_logits":
            return softmax(sum(logits) / (len(logits) * self.temperature))
        mean_probabilities = sum(map(softmax, logits)) / len(logits)
        if self.method == "mean_probabilities":
            scaled = mean_probabilities ** (1 / self.temperature)  # divides their logarithms
            return scaled / scaled.sum(-1)[..., None]
        if self.method == "majority_vote":
            # The share of votes for each class. The mean probabilities count as one more vote, which breaks ties but
            # never overrules a majority. Good for accuracy, less for log loss: shares of votes are not probabilities.
            return (sum(map(votes, logits)) + mean_probabilities) / (len(logits) + 1)
        raise ValueError(f"unknown ensemble method {self.method!r}")


def fit_weights(logits: np.ndarray, labels: np.ndarray, networks: Sequence[str], classes: Sequence[str]) -> Combination:
    """Fit fitted_weights to logits [networks, N, classes] and labels, int [N], by logistic regression.

    Minimises the summed log loss plus half the weights' sum of squares, as scikit-learn does by default: for two
    classes, the weights are LogisticRegression's for the margins. The intercepts, which sum to 0, are not penalised.
    """
    rows = np.arange(len(labels))

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, intercepts = np.split(parameters, [len(networks)])
        combined = np.tensordot(weights, logits, axes=1) + intercepts
        log_probabilities = log_softmax(combined, axis=1)
        loss = weights @ weights / 2 - log_probabilities[rows, labels].sum()
        error = np.exp(log_probabilities)
        error[rows, labels] -= 1
        return loss, np.concatenate([np.tensordot(logits, error, axes=2) + weights, error.sum(axis=0)])

    start = np.append(np.full(len(networks), 1 / len(networks)), np.zeros(len(classes)))  # mean_logits
    options = {"ftol": 0, "gtol": 1e-7, "maxiter": 10_000, "maxfun": 10_000}
    fitted = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    weights, intercepts = np.split(fitted, [len(networks)])
    return Combination(
        "fitted_weights",
        dict(zip(networks, weights.round(WEIGHT_DIGITS).tolist(), strict=True)),
        dict(zip(classes, (intercepts - intercepts.mean()).round(WEIGHT_DIGITS).tolist(), strict=True)),
    )


def repeats_member(method: str, members: Sequence[str]) -> bool:
    """Whether the ensemble only repeats a single member, so that showing both is pointless.

    fitted_weights changes even a single network's probabilities, and majority_vote replaces them with votes.
    """
    return len(members) == 1 and method in MEANS


def read_combination(networks: list[str], classes: list[str]) -> Combination:
    """The combination of `networks`, in any order, scored by the stage `ensemble`.

    Raises UserError if there is none, or it is for other networks or classes.
    """
    content = read_json(COMBINATION)
    members = content.get("members", [])
    if {*members} != {*networks}:
        raise UserError(
            f"{COMBINATION} is for {', '.join(members)}, but params.yaml lists {', '.join(networks)}; "
            "run `dvc repro` to fix this"
        )
    if content.get("classes") != classes:
        raise UserError(
            f"{COMBINATION} is for the classes {list_some(content.get('classes', []))}, but the models are for "
            f"{list_some(classes)}; run `dvc repro` to fix this"
        )
    return Combination(
        content["method"],
        content.get("weights", {}),
        content.get("intercepts", {}),
        content.get("temperature", 1.0),
        tuple(members),
    )
