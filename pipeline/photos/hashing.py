"""Hash photos, to find those that are byte-for-byte equal."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from pipeline.photos.decoding import UnreadablePhoto
from pipeline.photos.source import Photo, PhotoSource

from tqdm import tqdm

HASHED_AT_ONCE = 64  # photos per task, because starting a task takes longer than hashing a photo


def hash_photos(source: PhotoSource, photos: list[Photo], pool: ThreadPoolExecutor) -> None:
    """Set the `sha256` of each photo; exclude those that cannot be read."""

    def set_hashes(chunk: list[Photo]) -> int:
        for photo in chunk:
            try:
                photo.sha256 = hashlib.sha256(source.read(photo)).hexdigest()
            except UnreadablePhoto as reason:
                photo.excluded = photo.excluded or str(reason)
        return len(chunk)

    chunks = [photos[first : first + HASHED_AT_ONCE] for first in range(0, len(photos), HASHED_AT_ONCE)]
    with tqdm(total=len(photos), desc="hashing", unit=" photos", disable=None) as bar:
        for done in pool.map(set_hashes, chunks):
            bar.update(done)
