"""How fast the trained ensemble classifies photos, decoding included, and how fast its networks alone would.

Usage, from the root of a project with trained models: python prediction.py ARCHIVE
Prints photos per second as JSON: `rate`, and `limit` for photos that are already decoded and scaled.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.inference.ensemble import InputPhoto, load_ensemble
from pipeline.networks.predicting import INFERENCE_BATCH_SIZE
from pipeline.photos.decoding import decode
from pipeline.photos.source import PhotoSource

import numpy as np

MAX_PHOTOS = 10 * INFERENCE_BATCH_SIZE


def main() -> None:
    ensemble = load_ensemble()
    with PhotoSource(Path(sys.argv[1])) as source:
        photos = source.photos()[:MAX_PHOTOS]
        photos = [InputPhoto(photo.name, partial(source.read, photo)) for photo in photos]
        images = np.stack([decode(photo.read(), ensemble.image_size, ensemble.resize) for photo in photos])
        batches = np.split(images, range(INFERENCE_BATCH_SIZE, len(images), INFERENCE_BATCH_SIZE))
        ensemble.probabilities(batches[0])  # a warm-up

        start = time.perf_counter()
        for batch in batches:
            ensemble.probabilities(batch)
        limit = len(photos) / (time.perf_counter() - start)

        start = time.perf_counter()
        for _ in ensemble.predict(photos, keep_pixels=False):
            pass
        rate = len(photos) / (time.perf_counter() - start)
    print(json.dumps({"rate": rate, "limit": limit}))


if __name__ == "__main__":
    main()
