"""Choose the weights that are kept, explain the choice, and find signs of trouble in training.

A learning curve is a list of the epochs so far, each a dict with `epoch` (0: the fitted head, before any step), `lr`
(the head's learning rate at the epoch's start), `train_loss`, `validation_loss`, `validation_calibrated_loss` (all in
nats), `validation_accuracy` and `temperature`. Weighted means of epoch 0 and the last epoch have such scores, too;
their `epoch` is a text such as `0+3 (1:3)`.
"""

import math
from collections.abc import Sequence

from pipeline.core.sections.train import Train

NOTABLE = 1.2  # the factor by which a loss must rise to be reported; less may be noise
OVERFITTING = 3  # times the train loss: a validation loss above that is reported
# Times the loss of guessing:
NOISE, MATTERS, LEARNED, FORGOTTEN, USELESS, DIVERGED = 0.03, 0.1, 0.4, 0.5, 0.95, 2
REMEDY = "use more photos, stronger augmentation or fewer epochs"


def best_scores(curve: list[dict], params: Train, means: Sequence[dict] = ()) -> dict | None:
    """The scores with the lowest calibrated loss on validation; in a tie, those with the lowest loss.

    With one_cycle only the fitted head, the last epoch and their means are candidates, because in between the learning
    rate is high and scores are noisy. None if there is no candidate yet.
    """
    candidates = [
        scores for scores in curve if params.lr_schedule != "one_cycle" or scores["epoch"] in (0, params.epochs)
    ]
    candidates += means
    return min(
        candidates, key=lambda scores: (scores["validation_calibrated_loss"], scores["validation_loss"]), default=None
    )


def find_trouble(curve: list[dict], classes: int, lr_key: str = "lr") -> str:
    """What is going wrong, as the last epoch of the curve shows, and what to do; empty if nothing is.

    `lr_key` is that of the network's learning rate in params.yaml.
    """
    if divergence := describe_divergence(curve, classes):
        return f"{divergence}; {lr_key} is too high"
    if rise := describe_rise(curve, "train_loss", classes):
        return f"the train loss {rise}; {lr_key} may be too high"
    if rise := describe_rise(curve, "validation_calibrated_loss", classes):
        return f"the calibrated validation loss {rise}, but the train loss has not: the network overfits; {REMEDY}"
    *before, last = curve
    if overfits(last, classes) and not any(overfits(scores, classes) for scores in before):  # said once
        return (
            f"the train loss ({last['train_loss']:.4f}) is far below the calibrated validation loss "
            f"({last['validation_calibrated_loss']:.4f}): the network overfits; {REMEDY}"
        )
    return ""


def describe_rise(curve: list[dict], loss: str, classes: int) -> str:
    """How a loss has risen again, as the curve's last epoch shows; empty if it has not.

    Only epochs since the learning rate was at its highest count, because losses may rise while it does.
    """
    highest = max(scores["lr"] for scores in curve)
    since = next(index for index, scores in enumerate(curve) if scores["lr"] == highest)
    *before, last = curve[since:]
    if not before or last["epoch"] == 0 or last[loss] <= curve[-2][loss]:
        return ""
    lowest = min(before, key=lambda scores: scores[loss])
    if last[loss] <= max(NOTABLE * lowest[loss], lowest[loss] + NOISE * math.log(classes)):
        return ""
    return f"has risen from {lowest[loss]:.4f} in epoch {lowest['epoch']} to {last[loss]:.4f}"


def overfits(scores: dict, classes: int) -> bool:
    """Whether the train loss of an epoch is far below its validation loss, and that is not close to 0.

    Not in the first epoch, in which training sees each photo for the first time.
    """
    loss = scores["validation_calibrated_loss"]
    return scores["epoch"] > 1 and loss > max(OVERFITTING * scores["train_loss"], MATTERS * math.log(classes))


def describe_divergence(curve: list[dict], classes: int) -> str:
    """How the curve's last epoch shows that training has undone what the network had learned; empty if it has not.

    In the first epoch, and as long as the learning rate rises, that takes more: all of it must be lost.
    """
    *before, last = curve
    if last["epoch"] == 0:
        return ""
    guessing = math.log(classes)
    # A random head may begin with a high loss, and learn well.
    counts = bool(before) or last["validation_calibrated_loss"] > USELESS * guessing
    if last["train_loss"] > DIVERGED * guessing and counts:
        return f"the train loss ({describe_loss(last['train_loss'])}) is far above that of guessing ({guessing:.4f})"
    lowest = min((scores["validation_calibrated_loss"] for scores in before), default=guessing)
    has_risen = any(scores["lr"] >= last["lr"] for scores in before)
    most = max((FORGOTTEN if has_risen else USELESS) * guessing, 2 * lowest)
    if lowest < LEARNED * guessing and last["validation_calibrated_loss"] > most:
        return (
            f"the calibrated validation loss has risen from {lowest:.4f} to "
            f"{describe_loss(last['validation_calibrated_loss'])} (guessing: {guessing:.4f})"
        )
    return ""


def describe_scores(scores: dict) -> str:
    """The scores on validation, as text."""
    loss, calibrated = (describe_loss(scores[key]) for key in ("validation_loss", "validation_calibrated_loss"))
    return f"validation loss {loss} ({calibrated} calibrated), validation accuracy {scores['validation_accuracy']:.6f}"


def describe_loss(loss: float) -> str:
    """`0.0512`, or `3.4e+19` if training has diverged."""
    return f"{loss:.4f}" if loss < 1000 else f"{loss:.4g}"


def describe_mean(epoch: str) -> str:
    """What an `epoch` such as `0+3 (1:3)` means."""
    epochs, weighting = epoch.rstrip(")").split(" (")
    return f"the mean of epochs 0 (the fitted head) and {epochs.removeprefix('0+')}, weighted {weighting}"


def explain_choice(curve: list[dict], means: Sequence[dict], classes: int, params: Train, lr: float) -> str:
    """Say what was kept, with its scores and the reason, and perhaps a param to try."""
    best, last = best_scores(curve, params, means), curve[-1]
    assert best is not None  # the last epoch is a candidate
    lowest = describe_loss(best["validation_calibrated_loss"])
    with_head = f"{describe_loss(curve[0]['validation_calibrated_loss'])} with the fitted head"
    at_end = f"{describe_loss(last['validation_calibrated_loss'])} after the last epoch"
    why = "its calibrated validation loss is the lowest"
    if isinstance(best["epoch"], str):
        kept = describe_mean(best["epoch"])
        why += f" ({with_head}, {at_end})"
    elif best["epoch"] == 0:
        diverged = any(describe_divergence(curve[: epochs + 1], classes) for epochs in range(len(curve)))
        kept, why = "the fitted head (epoch 0), without training", f"{why} ({lowest}, and {at_end})"
        why += f"; try {params.key('lr')}={lr / (10 if diverged else 3):.1g}"
    else:
        kept = f"epoch {best['epoch']} of {params.epochs}"
        if best is not last:
            why += f" ({lowest}, and {at_end}); try {params.key('epochs')}={best['epoch']}"
        elif means:
            lowest = min(mean["validation_calibrated_loss"] for mean in means)
            why += f" ({with_head}, {describe_loss(lowest)} with the best mean of both)"
        elif params.lr_schedule == "one_cycle":
            why = "with one_cycle and a random head, only the last epoch is a candidate"
    is_useless = best["validation_calibrated_loss"] > USELESS * math.log(classes)
    return f"kept {kept}: {describe_scores(best)}{', no better than guessing' if is_useless else ''}; {why}"
