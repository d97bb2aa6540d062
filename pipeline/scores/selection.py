"""Choose the weights that are kept, explain the choice, and find signs of trouble in training.

A learning curve is a list of the epochs so far, each a dict with `epoch` (0: the fitted head, before any step), `lr`
(the head's learning rate at the epoch's start), `train_loss`, `validation_loss`, `validation_calibrated_loss` (all in
nats), `validation_accuracy` and `temperature`. The mean of epoch 0 and the last epoch has such scores, too; its `epoch`
is a text such as `0+3`.
"""

import math

from pipeline.core.sections.train import Train

NOTABLE = 1.2  # the factor by which a loss must rise to be reported; less may be noise
LEARNED, FORGOTTEN, USELESS, DIVERGED = 0.4, 0.5, 0.95, 2  # times the loss of guessing


def best_scores(curve: list[dict], params: Train, mean: dict | None = None) -> dict | None:
    """The scores with the lowest calibrated loss on validation; in a tie, those with the lowest loss.

    With one_cycle only the fitted head, the last epoch and their mean are candidates, because in between the learning
    rate is high and scores are noisy. None if there is no candidate yet.
    """
    candidates = [
        scores for scores in curve if params.lr_schedule != "one_cycle" or scores["epoch"] in (0, params.epochs)
    ]
    candidates += [mean] if mean else []
    return min(
        candidates, key=lambda scores: (scores["validation_calibrated_loss"], scores["validation_loss"]), default=None
    )


def find_trouble(curve: list[dict], classes: int) -> str:
    """What is going wrong, as the last epoch of the curve shows, and what to do; empty if nothing is."""
    *before, last = curve
    if divergence := describe_divergence(curve, classes):
        return f"{divergence}; lr is too high"
    if not before or last["lr"] > before[-1]["lr"]:  # losses may rise while the learning rate does
        return ""
    previous = before[-1]
    if last["train_loss"] > NOTABLE * previous["train_loss"]:
        return f"the train loss has risen from {previous['train_loss']:.4f}; lr may be too high"
    if last["validation_calibrated_loss"] > NOTABLE * previous["validation_calibrated_loss"]:
        return (
            f"the calibrated validation loss has risen from {previous['validation_calibrated_loss']:.4f} to "
            f"{last['validation_calibrated_loss']:.4f}, but the train loss has not: the network overfits; use fewer "
            "epochs, more photos or stronger augmentation"
        )
    return ""


def describe_divergence(curve: list[dict], classes: int) -> str:
    """How the curve's last epoch shows that training has undone what the network had learned; empty if it has not."""
    *before, last = curve
    if last["epoch"] == 0:
        return ""
    guessing = math.log(classes)
    if last["train_loss"] > DIVERGED * guessing:
        return f"the train loss ({last['train_loss']:.4g}) is far above that of guessing ({guessing:.4g})"
    lowest = min((scores["validation_calibrated_loss"] for scores in before), default=guessing)
    if lowest < LEARNED * guessing and last["validation_calibrated_loss"] > max(FORGOTTEN * guessing, 2 * lowest):
        return (
            f"the calibrated validation loss has risen from {lowest:.4f} to {last['validation_calibrated_loss']:.4f} "
            f"(guessing: {guessing:.4f})"
        )
    return ""


def describe_scores(scores: dict) -> str:
    """The scores on validation, as text."""
    return (
        f"validation loss {scores['validation_loss']:.4f} ({scores['validation_calibrated_loss']:.4f} calibrated), "
        f"validation accuracy {scores['validation_accuracy']:.6f}"
    )


def explain_choice(curve: list[dict], mean: dict | None, classes: int, params: Train, lr: float) -> str:
    """Say what was kept, with its scores and, unless it is the last epoch, the reason and perhaps a param to try."""
    best, last = best_scores(curve, params, mean), curve[-1]
    assert best is not None  # the last epoch is a candidate
    scores = describe_scores(best)
    if best["validation_calibrated_loss"] > USELESS * math.log(classes):
        scores += ", no better than guessing"
    if best is last:
        return f"kept epoch {best['epoch']} of {params.epochs}: {scores}"
    if best is mean:
        return (
            f"kept the mean of epochs 0 (the fitted head) and {last['epoch']}: {scores}; its calibrated "
            f"validation loss is the lowest ({curve[0]['validation_calibrated_loss']:.4f} with the fitted head, "
            f"{last['validation_calibrated_loss']:.4f} after epoch {last['epoch']})"
        )
    losses = (
        f"{best['validation_calibrated_loss']:.4f}, and {last['validation_calibrated_loss']:.4f} after the last epoch"
    )
    if best["epoch"] > 0:
        return (
            f"kept epoch {best['epoch']} of {params.epochs}: {scores}; its calibrated validation loss is the lowest "
            f"({losses}); try train.epochs={best['epoch']}"
        )
    diverged = any(describe_divergence(curve[: epochs + 1], classes) for epochs in range(len(curve)))
    return (
        f"kept the fitted head (epoch 0), without training: {scores}; its calibrated validation loss is lower "
        f"({losses}); try lr={lr / (10 if diverged else 3):.1g}"
    )
