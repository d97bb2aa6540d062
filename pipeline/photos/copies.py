"""Find copies: photos that are the same image, byte for byte or re-encoded, rescaled or slightly cropped.

Copies in two splits make a score too good, and two copies in test count one answer twice.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from pipeline.core.cores import usable_cores
from pipeline.photos.source import Photo

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

HASH_SIDE = 16  # so a hash has 256 bits, of the 16 x 16 lowest frequencies of 32 x 32 grey pixels
# Among the 25,000 photos of "Dogs vs. Cats" 39 pairs differ in at most 14 bits, and all of them are copies; the next
# pair, two different photos, differs in 70. Of 609 flowers two edited copies differ in 30 and 38, the next pair in 68.
# Among every 60th of the 25,000, a copy differs in at most 10 bits if it is re-encoded at quality 20, in 4 if it is
# rescaled, in 30 if 1 % of each side is cropped, and in 54 if it is 2 % (in at most 50 in 99 of 100 cases).
MAX_DIFFERENT_BITS = 50
MIN_SET_BITS = 120  # about half of them are set, except in an image without structure
ROWS_AT_ONCE, COLUMNS_AT_ONCE = 16, 4096  # so that the hashes being compared stay in a core's cache
MAX_PAIRS = 5_000_000  # kept in memory before they are reduced
ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9a-f]{32}", re.IGNORECASE)  # its augmented copies of a photo


def perceptual_hash(image: Image.Image) -> bytes:
    """256 bits that change little if a photo is re-encoded, rescaled or slightly cropped (a DCT hash).

    `image` has at least HASHED_SIZE pixels a side, or all that the photo has. Empty for a photo that shows nothing (all
    white, say). Source: https://www.hackerfactor.com/blog/index.php?/archives/432
    """
    bits = imagehash.phash(image, hash_size=HASH_SIDE, highfreq_factor=2).hash
    if bits.sum() < MIN_SET_BITS:
        return b""
    return np.packbits(bits).tobytes()


def group_copies(photos: list[Photo]) -> list[list[Photo]]:
    """Photos in groups of copies; most groups have one photo. A group keeps the order of `photos`."""
    links = [*_chain(photos, lambda photo: photo.sha256), *_chain(photos, _roboflow_original)]
    links += _chain(photos, lambda photo: photo.perceptual_hash or None)
    pairs, added = [np.array(links, dtype=int).reshape(-1, 2)], 0
    first = {photo.perceptual_hash: number for number, photo in reversed([*enumerate(photos)]) if photo.perceptual_hash}
    numbers = np.array([*first.values()], dtype=int)
    for similar in similar_hashes([*first]):
        pairs.append(numbers[similar])
        added += len(similar)
        if added > MAX_PAIRS:  # all frames of a video may be similar
            pairs, added = [_fewest(pairs, len(photos))], 0
    groups: dict[int, list[Photo]] = {}
    for photo, number in zip(photos, _group_numbers(pairs, len(photos)), strict=True):
        groups.setdefault(number, []).append(photo)
    return list(groups.values())


def similar_hashes(hashes: list[bytes]) -> Iterator[np.ndarray]:
    """Yield all pairs of hashes that differ in at most MAX_DIFFERENT_BITS, as their indices, int [N, 2], N > 0.

    All pairs are compared, at 1.4 ns of CPU time each: if a fifth of the bits may differ, no exact index rules out
    enough of them. Comparing only three of the four 64-bit words does: they differ in 96 bits on average for different
    photos.
    """
    words = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(-1, HASH_SIDE**2 // 64).T.copy()

    def compare(first: int) -> np.ndarray:
        """Compare the ROWS_AT_ONCE hashes from `first` on with every hash from `first` on."""
        rows, found = words[:, first : first + ROWS_AT_ONCE, None], [np.empty((0, 2), int)]
        for start in range(first, len(hashes), COLUMNS_AT_ONCE):
            columns = words[:, None, start : start + COLUMNS_AT_ONCE]
            different = sum(np.bitwise_count(row ^ column) for row, column in zip(rows[:3], columns[:3], strict=True))
            if different.min() <= MAX_DIFFERENT_BITS:  # pyrefly: ignore[missing-attribute]
                different += np.bitwise_count(rows[3] ^ columns[3])
                pairs = np.argwhere(different <= MAX_DIFFERENT_BITS) + np.array([first, start])
                found.append(pairs[pairs[:, 0] < pairs[:, 1]])
        return np.concatenate(found)

    with ThreadPoolExecutor(usable_cores()) as pool:  # numpy releases Python's lock
        yield from filter(len, pool.map(compare, range(0, len(hashes), ROWS_AT_ONCE)))


def _group_numbers(pairs: list[np.ndarray], count: int) -> np.ndarray:
    """The group number of each photo, int [count], if the photos of each pair are in the same group."""
    first, second = np.concatenate(pairs).T
    links = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _fewest(pairs: list[np.ndarray], count: int) -> np.ndarray:
    """At most `count` pairs that give the same groups: each photo and the first one of its group."""
    _, first, group_of = np.unique(_group_numbers(pairs, count), return_index=True, return_inverse=True)
    return np.stack([first[group_of], np.arange(count)], axis=1)


def _chain(photos: list[Photo], key: Callable[[Photo], Hashable]) -> Iterable[tuple[int, int]]:
    """Pairs that link all photos with an equal key; photos without one (None) are left alone."""
    latest: dict[Hashable, int] = {}
    for number, photo in enumerate(photos):
        value = key(photo)
        if value is not None:
            if value in latest:
                yield latest[value], number
            latest[value] = number


def _roboflow_original(photo: Photo) -> str | None:
    match = ROBOFLOW.fullmatch(PurePosixPath(photo.path).stem)
    return match[1] if match else None
