"""Which classes have too few test photos for a meaningful recall, and whether classes are unequal in size.

Numbers of photos and recalls are mappings with an entry for each class.
"""

from collections.abc import Iterable, Mapping

from pipeline.core.errors import list_some

# With fewer, a single photo changes a class's recall by more than 10 points, and even a recall of 100 % has a 95 %
# interval that reaches down to 70 % or less.
FEW_TEST_PHOTOS = 10
# The share of the photos that would need another class for all classes to be equal. Accuracy and balanced accuracy
# differ by at most this share of the difference between the best and the worst class's recall.
UNEQUAL_SHARE = 0.05
# Classes are very unequal if the largest has more than this many times the photos of the rarest: with two classes, if
# one has less than 20 % of the photos.
VERY_UNEQUAL = 4


def few_to_test_on(photos: Mapping[str, int]) -> dict[str, int]:
    """The classes with fewer than FEW_TEST_PHOTOS test photos and their numbers, the smallest first."""
    few = {name: count for name, count in photos.items() if count < FEW_TEST_PHOTOS}
    return dict(sorted(few.items(), key=lambda item: item[1]))


def describe_few(photos: Mapping[str, int]) -> str:
    """`fewer than 10 test photos of owl (1), cat (4)`, for people; empty if every class has enough."""
    few = few_to_test_on(photos)
    named = list_some(f"{name} ({count})" for name, count in few.items())
    return f"fewer than {FEW_TEST_PHOTOS} test photos of {named}" if few else ""


def are_unequal(photos: Iterable[int]) -> bool:
    """Whether classes with these numbers of photos are unequal, by more than UNEQUAL_SHARE of all photos.

    Classes that differ by one photo are equal, because a split of equal classes may not divide evenly.
    """
    photos = list(photos)
    mean = sum(photos) / len(photos)
    surplus = sum(count - mean for count in photos if count > mean)
    return max(photos) - min(photos) > 1 and surplus > UNEQUAL_SHARE * sum(photos)


def rarest_class(photos: Mapping[str, int]) -> str | None:
    """The class with the fewest photos, the first by name of equals, if the classes are very unequal; else None."""
    rarest = min(photos, key=lambda name: (photos[name], name))
    return rarest if max(photos.values()) > VERY_UNEQUAL * photos[rarest] else None


def needs_weights(trained_on: Mapping[str, int], recall: Mapping[str, float]) -> bool:
    """Whether train.class_weights=balanced may help: the rarest class is recognised less often than the average one."""
    rarest = rarest_class(trained_on)
    return rarest is not None and recall[rarest] < sum(recall.values()) / len(recall)


def describe_unequal(
    trained_on: Mapping[str, int], photos: Mapping[str, int], recall: Mapping[str, float], to_balance: str
) -> str:
    """What matters if the classes in train are very unequal, for people; empty if they are not.

    `photos` are those that the recall was measured on; `to_balance` is the param that would have the classes count
    equally in training, empty if they did.
    """
    if not (rarest := rarest_class(trained_on)):
        return ""
    correct = round(recall[rarest] * photos[rarest])
    advice = f"; try {to_balance}=balanced" if to_balance and needs_weights(trained_on, recall) else ""
    return (
        f"balanced accuracy {sum(recall.values()) / len(recall):.4f}, recall of the rarest class, {rarest}, "
        f"{recall[rarest]:.4f} ({correct} of {photos[rarest]}){advice}"
    )
