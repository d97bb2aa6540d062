"""Assign photos to splits: given splits as the user names them, and the rest by the seed and the photos' bytes alone.

Copies of a photo are always in the same split, and validation and test use one of them.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

from pipeline.core import SPLITS
from pipeline.core.class_names import normal_form
from pipeline.core.errors import UserError, list_some
from pipeline.core.params import ROUNDING
from pipeline.core.sections.prepare import Split
from pipeline.photos.copies import group_copies
from pipeline.photos.labels import folder_of, split_named
from pipeline.photos.packing import SplitOrder
from pipeline.photos.source import Photo

FILL_ORDER = ("test", "validation", "train")  # if there are too few photos, train gets fewer ...
MIN_TRAIN_SHARE = 0.99  # ... but at least this share of what was asked for
NO_CLASS = "no class by its folder, its file name or the table"
CONFLICTING = "the same photo stands under different labels"
COPY = "a copy of a photo in validation or test"
LEFT_OVER = "left over, to keep the classes in proportion"
NOT_NEEDED = "not needed"
NO_ROOM = frozenset({COPY, LEFT_OVER, NOT_NEEDED})  # reasons that no longer hold if other photos are excluded

Group = list[Photo]  # copies of one photo


def exclude_unlabelled(photos: list[Photo]) -> None:
    """Exclude photos without a label."""
    for photo in photos:
        if photo.label is None:
            photo.excluded = photo.excluded or NO_CLASS


def shuffle_groups(photos: list[Photo], seed: int) -> list[Group]:
    """Group copies, exclude those with different labels, and order the groups by the seed and the photos' bytes."""

    def order(photo: Photo) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed} {photo.sha256}".encode()).digest(), photo.name

    groups = []
    for group in group_copies([photo for photo in photos if not photo.excluded]):
        group.sort(key=order)
        for photo in group[1:]:
            photo.copy_of = group[0].name
        if len({photo.label for photo in group}) == 1:
            groups.append(group)
        else:
            for photo in group:
                photo.excluded = CONFLICTING
    return sorted(groups, key=lambda group: order(group[0]))


class Plan:
    """Which split a group may go to, and how many photos of each class each split takes.

    A split that names a folder or a split of the table takes those photos. The others take photos that no split names
    or, if train is named, train's. `quotas` has each split's number of photos per class; None means all named photos.
    A share is a share of the usable groups of copies. A number of photos is divided in the proportion of the readable
    photos in the source, before corrections; or, if a class then has too few because of copies, corrections or
    rounding, in the proportion of the usable groups.
    """

    def __init__(self, split: Split, photos: list[Photo], groups: list[Group], classes: Sequence[str]) -> None:
        self._sizes = dict(split)
        self._names = {name: value for name, value in split if isinstance(value, str)}
        for name, value in self._names.items():
            if not any(is_named(photo, value) for group in groups for photo in group):
                raise UserError(_describe_wrong_name(name, value, groups))
        readable = Counter(photo.found_label for photo in photos if photo.readable and self._is_available([photo]))
        usable = Counter(group[0].label for group in groups if self._is_available(group))
        in_source, in_groups = ([count[label] for label in range(len(classes))] for count in (readable, usable))
        self.quotas = self._divide(in_source, in_groups)
        if self._falls_short(groups):
            self.quotas = self._divide(in_groups, in_groups, is_limited=True)
        self._require_room_for_shares(sum(in_groups))
        self._room = self._full_room()

    def _divide(self, weights: list[int], usable: list[int], is_limited: bool = False) -> dict[str, list[int] | None]:
        """Divide numbers of photos in the proportion of `weights`, and shares in that of `usable`; both are per class.

        With `is_limited`, a number takes no more of a class than earlier splits have left.
        """
        left = usable
        quotas: dict[str, list[int] | None] = dict.fromkeys(FILL_ORDER)
        share, taken = 0.0, 0  # of all splits so far
        for name in FILL_ORDER:
            size = self._sizes[name]
            if isinstance(size, str):
                continue
            if isinstance(size, int):
                parts = apportion(size, weights, left if is_limited else None)
            else:
                share += size
                total = int(share * sum(usable) + ROUNDING) - taken
                parts = apportion(total, usable, left)
                taken += total
            quotas[name] = parts
            if is_limited or isinstance(size, float):
                left = [before - part for before, part in zip(left, parts, strict=True)]
        return quotas

    def _require_room_for_shares(self, usable: int) -> None:
        """Raise UserError if splits with numbers of photos leave too few of the `usable` groups for a share."""
        numbers = {name: size for name, size in self._sizes.items() if isinstance(size, int)}
        shares = {name: sum(quotas) for name, quotas in self.quotas.items() if quotas and self.is_share(name)}
        room = usable - sum(numbers.values())
        if numbers and shares and room < MIN_TRAIN_SHARE * sum(shares.values()):
            named = " and ".join(f"{name} {self._sizes[name]}" for name in shares)
            others = " and ".join(f"{name} {size}" for name, size in numbers.items())
            raise UserError(
                f"params.yaml: prepare.split: {named} of {usable} photos is {sum(shares.values())}, but {others} leave "
                f"{max(0, room)}; lower one of them"
            )

    def _falls_short(self, groups: list[Group]) -> bool:
        """Whether a split with a number of photos gets too few; train may be slightly smaller (MIN_TRAIN_SHARE)."""
        self._room = self._full_room()
        for group in groups:
            if split := self.choose(group):
                self.take(group, split)
        for name, quotas in self.quotas.items():
            size = self._sizes[name]
            if quotas is not None and isinstance(size, int):
                parts = [*zip(quotas, self._room[name], strict=True)]
                filled = min(((quota - room) / quota for quota, room in parts if quota), default=0)
                held = sum(int(filled * quota + ROUNDING) for quota, _ in parts)  # as SplitOrder keeps the proportion
                if held < size * (MIN_TRAIN_SHARE if name == "train" else 1):
                    return True
        return False

    def _full_room(self) -> dict[str, list[int]]:
        return {name: list(quotas) for name, quotas in self.quotas.items() if quotas is not None}

    def choose(self, group: Group) -> str | None:
        """The first split that may have the group and has room for it, or None."""
        claimed = self._claimed_by(group)
        if claimed in ("test", "validation"):
            return claimed
        candidates = [name for name in FILL_ORDER if name in self._room]
        if "train" in self._names:
            if claimed is None:
                return None
            candidates.append("train")
        label = group[0].class_index
        for name in candidates:
            if name not in self._room or self._room[name][label] >= self._places(group, name):
                return name
        return None

    def take(self, group: Group, split: str) -> None:
        """Reduce the split's room by the group."""
        if split in self._room:
            self._room[split][group[0].class_index] -= self._places(group, split)

    def members(self, group: Group, split: str) -> Group:
        """The photos of a group that a split uses: all in train, else one; in a named split, one of its own."""
        if split == "train":
            return group
        named = [photo for photo in group if is_named(photo, self._names[split])] if split in self._names else group
        return named[:1]

    def is_share(self, split: str) -> bool:
        return isinstance(self._sizes[split], float)

    def _places(self, group: Group, split: str) -> int:
        """How much of a split's quota a group takes: a number of photos counts all of them, a share counts groups."""
        return len(self.members(group, split)) if isinstance(self._sizes[split], int) else 1

    def _is_available(self, group: Group) -> bool:
        return self._claimed_by(group) == ("train" if "train" in self._names else None)

    def _claimed_by(self, group: Group) -> str | None:
        for name in FILL_ORDER:
            if name in self._names and any(is_named(photo, self._names[name]) for photo in group):
                return name
        return None


def apportion(total: int, weights: Sequence[int], most: Sequence[int] | None = None) -> list[int]:
    """Divide `total` in the proportion of `weights`, by the largest remainder; no part is larger than in `most`.

    No part is 0 if its weight is not, as long as `total` suffices.
    """
    ideal = [total * weight / max(1, sum(weights)) for weight in weights]
    most = most or [total] * len(weights)
    parts = [min(max(int(part), bool(part)), limit) for part, limit in zip(ideal, most, strict=True)]
    while sum(parts) > total:
        parts[max(range(len(parts)), key=lambda n: (parts[n] > 1, parts[n] - ideal[n]))] -= 1
    while sum(parts) < total and any(part < limit for part, limit in zip(parts, most, strict=True)):
        parts[max(range(len(parts)), key=lambda n: (parts[n] < most[n], ideal[n] - parts[n]))] += 1
    return parts


def is_named(photo: Photo, name: str) -> bool:
    """Whether the photo is in a folder of this name that is not its class, or the table gives it this split."""
    return normal_form(name) in map(normal_form, _given_splits(photo))


def fill_splits(photos: list[Photo], groups: list[Group], plan: Plan) -> dict[str, list[Photo]]:
    """Give each group to the first split with room for it, and exclude the other photos; return each split's photos.

    May be called again after more photos have turned out to be unreadable.
    """
    for photo in photos:
        photo.split, photo.row = "", -1
        if photo.excluded in NO_ROOM:
            photo.excluded = ""
    orders = {split: SplitOrder(split, plan.quotas[split]) for split in FILL_ORDER}
    for group in groups:
        readable = [photo for photo in group if not photo.excluded]
        if not readable or not (split := plan.choose(readable)):
            continue
        plan.take(readable, split)
        used = set(plan.members(readable, split))
        for photo in readable:
            if photo in used:
                orders[split].add(photo)
            else:
                photo.excluded = COPY
    for split, order in orders.items():
        if plan.is_share(split):  # takes what there is
            order.add_waiting()
        for photo in order.waiting():
            photo.excluded = LEFT_OVER
    for photo in photos:
        if not photo.split and not photo.excluded:
            photo.excluded = NOT_NEEDED
    return {split: orders[split].photos for split in SPLITS}


def describe_ignored_splits(photos: list[Photo], split: Split) -> str:
    """A note if the source comes in splits, by folders or the table, but prepare.split names none; else empty."""
    if any(isinstance(value, str) for _, value in split):
        return ""
    given: dict[str, str] = {}  # their names in the source, by split
    for photo in photos:
        if photo.label is not None:
            given |= {stands_for: name for name in _given_splits(photo) if (stands_for := split_named(name))}
    if len(given) < 2:
        return ""
    test = given.get("test", given.get("validation"))
    kept = {
        "train": given.get("train", 0.8),
        "validation": given["validation"] if len(given) == 3 else 0.2,
        "test": test,
    }
    return (
        f"note: the photos come in splits ({', '.join(sorted(given.values()))}), but prepare.split makes new ones of "
        "all of them; to keep theirs: " + " ".join(f"-S prepare.split.{name}={value}" for name, value in kept.items())
    )


def split_id(photos: list[Photo]) -> str:
    """A fingerprint of the splits, which differs if any of them contains a different photo."""
    rows = sorted(f"{photo.split} {photo.row} {photo.sha256}" for photo in photos if photo.split)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def _given_splits(photo: Photo) -> list[str]:
    """The split that the table gives the photo, or else all of its folders except the one that is its class."""
    if photo.given_split:
        return [photo.given_split]
    return [name for depth, name in enumerate(folder_of(photo)) if depth != photo.class_depth]


def _describe_wrong_name(split: str, value: str, groups: list[Group]) -> str:
    """Say why a name in prepare.split does not name a split, and what would."""
    photos = [photo for group in groups for photo in group]
    names = {name for photo in photos for name in _given_splits(photo)}
    found = f"names found: {list_some(sorted(names), most=12)}" if names else "none was found"
    for photo in photos:
        name = "" if photo.class_depth is None else folder_of(photo)[photo.class_depth]
        if normal_form(name) == normal_form(value):
            found = f"the folder {value} is the class {name}"
    return (
        f"params.yaml: prepare.split.{split} is {value!r}; expected a number of photos, a share such as 0.2, or the "
        f"name of a folder or of a split in the table; {found}"
    )
