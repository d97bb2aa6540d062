"""Hash photos: their bytes, and what they look like."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from pipeline.photos.copies import perceptual_hash
from pipeline.photos.decoding import UnreadablePhoto
from pipeline.photos.source import Photo, PhotoSource

from tqdm import tqdm

HASHED_AT_ONCE = 16  # photos per task: starting one takes time, and a signal waits for the running ones


def hash_photos(source: PhotoSource, photos: list[Photo], pool: ThreadPoolExecutor) -> None:
    """Set the hashes of each photo, and exclude photos that cannot be read."""

    def set_hashes(some: list[Photo]) -> int:
        for photo in some:
            try:
                content = source.read(photo)
                photo.sha256 = hashlib.sha256(content).hexdigest()
                if photo.label is not None:  # others are in no split, readable or not
                    photo.looks = perceptual_hash(content)
            except UnreadablePhoto as reason:
                photo.readable = False
                photo.excluded = photo.excluded or str(reason)
        return len(some)

    tasks = [photos[first : first + HASHED_AT_ONCE] for first in range(0, len(photos), HASHED_AT_ONCE)]
    with tqdm(total=len(photos), desc="hashing", unit=" photos", disable=None) as bar:
        for done in pool.map(set_hashes, tasks):
            bar.update(done)
