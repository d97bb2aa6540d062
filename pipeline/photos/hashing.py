"""Hash photos, their bytes and what they look like, and note their sizes."""

import hashlib
from collections.abc import Sequence

from pipeline.photos.copies import perceptual_hash
from pipeline.photos.decoding import HASHED_SIZE, UnreadablePhoto, open_upright_with_size
from pipeline.photos.source import Photo, PhotoSource
from pipeline.photos.workers import in_batches, results_of

from tqdm import tqdm


def hash_photos(source: PhotoSource, photos: list[Photo]) -> None:
    """Set the hashes and the size of each photo, and exclude photos that cannot be read.

    A JPEG is decoded here at the smallest size that suffices, and again later for its pixels. Decoding once would
    change the hash, and all pixels would have to be kept until the splits are known.
    """

    def hash_batch(batch: Sequence[Photo]) -> list[tuple[str, bytes, tuple[int, int] | None, str]]:
        return [_hashes(source, photo) for photo in batch]

    batches = in_batches(photos)
    with (
        results_of(hash_batch, batches) as results,
        tqdm(total=len(photos), desc="hashing", unit=" photos", disable=None) as bar,
    ):
        for batch, hashes in zip(batches, results, strict=True):
            for photo, (photo.sha256, photo.perceptual_hash, photo.size, unreadable) in zip(batch, hashes, strict=True):
                if unreadable:
                    photo.readable, photo.excluded = False, photo.excluded or unreadable
            bar.update(len(batch))


def _hashes(source: PhotoSource, photo: Photo) -> tuple[str, bytes, tuple[int, int] | None, str]:
    """The SHA-256 of a photo's bytes, its perceptual hash, its size, and why it cannot be read; each may be empty."""
    sha256, perceptual, size = "", b"", None
    try:
        content = source.read(photo)
        sha256 = hashlib.sha256(content).hexdigest()
        if photo.label is not None:  # others are in no split, readable or not
            image, size = open_upright_with_size(content, least_side=HASHED_SIZE)
            perceptual = perceptual_hash(image)
    except UnreadablePhoto as reason:
        return sha256, perceptual, size, str(reason)
    return sha256, perceptual, size, ""
