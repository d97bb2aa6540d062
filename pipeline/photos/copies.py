"""Find copies: photos that are the same image, byte for byte or re-encoded, rescaled or slightly cropped.

Copies in two splits make a score too good, and two copies in test count one answer twice.
"""

import re
from collections.abc import Callable, Hashable, Iterable
from pathlib import PurePosixPath

from pipeline.photos.decoding import HASHED_SIZE, open_upright
from pipeline.photos.source import Photo

import imagehash
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

HASH_SIDE = 16  # so a hash has 256 bits, of the 16 x 16 lowest frequencies of 32 x 32 grey pixels
# Among the 25,000 photos of "Dogs vs. Cats" 39 pairs differ in at most 14 bits, and all of them are copies; the next
# pair, two different photos, differs in 70. Of 609 flowers two edited copies differ in 30 and 38, the next pair in 68.
# Among every 60th of the 25,000, a copy differs in at most 10 bits if it is re-encoded at quality 20, in 4 if it is
# rescaled, in 30 if 1 % of each side is cropped, and in 54 if it is 2 % (in at most 50 in 99 of 100 cases).
MOST_DIFFERENT_BITS = 50
LEAST_SET_BITS = 120  # half of them are set, but for an image without structure
ROWS_AT_ONCE = 1024
ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9a-f]{32}", re.IGNORECASE)  # its augmented copies of a photo


def perceptual_hash(content: bytes) -> bytes:
    """256 bits that change little if a photo is re-encoded, rescaled or slightly cropped (a DCT hash).

    Empty for a photo that shows nothing (all white, say). Raises UnreadablePhoto. Source:
    https://www.hackerfactor.com/blog/index.php?/archives/432
    """
    image = open_upright(content, least_side=HASHED_SIZE)
    bits = imagehash.phash(image, hash_size=HASH_SIDE, highfreq_factor=2).hash
    if bits.sum() < LEAST_SET_BITS:
        return b""
    return np.packbits(bits).tobytes()


def group_copies(photos: list[Photo]) -> list[list[Photo]]:
    """Photos in groups of copies; most groups have one photo. Those of a group are in the order of `photos`."""
    pairs = [*_chain(photos, lambda photo: photo.sha256), *_chain(photos, _roboflow_original), *_similar(photos)]
    first, second = np.array(pairs, dtype=int).reshape(-1, 2).T
    links = coo_matrix((np.ones(len(first)), (first, second)), shape=(len(photos), len(photos)))
    _, group_of = connected_components(links, directed=False)
    groups: dict[int, list[Photo]] = {}
    for photo, number in zip(photos, group_of, strict=True):
        groups.setdefault(number, []).append(photo)
    return list(groups.values())


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


def _similar(photos: list[Photo]) -> Iterable[tuple[int, int]]:
    """Pairs whose perceptual hashes differ in MOST_DIFFERENT_BITS or fewer."""
    yield from _chain(photos, lambda photo: photo.looks or None)
    first: dict[bytes, int] = {}  # of equal hashes only the first: many equal photos would make too many pairs
    for number, photo in enumerate(photos):
        if photo.looks:
            first.setdefault(photo.looks, number)
    if not first:
        return
    numbers = list(first.values())
    packed = np.frombuffer(b"".join(photos[number].looks for number in numbers), dtype=np.uint8)
    signs = np.unpackbits(packed.reshape(len(numbers), -1), axis=1).astype("float32") * 2 - 1
    least = signs.shape[1] - 2 * MOST_DIFFERENT_BITS  # a product is the bits that agree minus those that differ
    for start in range(0, len(signs), ROWS_AT_ONCE):
        products = signs[start : start + ROWS_AT_ONCE] @ signs[start:].T
        for row, column in np.argwhere(products >= least):
            if column > row:
                yield numbers[start + row], numbers[start + column]
