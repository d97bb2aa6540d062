"""The photos of many requests, classified together: decoded by several processes, predicted in batches by a thread."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.core.errors import UserError
from pipeline.inference.decoders import Decoders
from pipeline.inference.ensemble import Ensemble, InputPhoto, Prediction
from pipeline.networks.predicting import inference_batch_size
from pipeline.photos.decoding import UnreadablePhoto

import numpy as np

KILLED = "a process that decodes photos was killed, probably because memory ran out; send fewer photos, or smaller ones"
PATIENCE_S = 0.005  # how long a batch waits for photos that are still being decoded

Shown = TypeVar("Shown")


@dataclass
class _Job:
    """A photo on its way, and what becomes of its prediction."""

    photo: InputPhoto
    explain: bool
    show: Callable[[Prediction], object]
    future: Future = field(default_factory=Future)


class Batcher:
    """Predicts the photos of requests that wait at the same time in common batches.

    A batch starts when it is full, when no other photo is being decoded, or after PATIENCE_S: a photo that comes alone
    waits for nothing. Runs one prediction before it returns, so that the first request is not slower than the others.
    Raises UserError as Ensemble does.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self._batch_size = inference_batch_size(ensemble.device)
        # Photos between the start of their decoding and their prediction: a batch, and the next one. asyncio hands
        # these out in turn, so that one request with many photos does not keep all others waiting.
        self._slots = asyncio.Semaphore(2 * self._batch_size)
        self._decoders = Decoders()
        self._showing = ThreadPoolExecutor(2, "show")
        self._changed = threading.Condition()
        self._decoding = 0
        self._decoded: deque[tuple[_Job, np.ndarray]] = deque()
        blank = np.zeros((ensemble.image_size, ensemble.image_size, 3), np.uint8)
        list(ensemble.predict_images([("", blank)], keep_pixels=False))
        threading.Thread(target=self._run_networks, name="networks", daemon=True).start()

    async def predict(
        self, photos: Sequence[InputPhoto], show: Callable[[Prediction], Shown], explain: bool = False
    ) -> list[Shown]:
        """What `show` makes of each photo's prediction, in order; it is called in another thread.

        With `explain`, predictions have heat maps. Raises what `show` and Ensemble raise.
        """
        futures: list[asyncio.Future[Shown]] = []
        try:
            for photo in photos:
                await self._slots.acquire()
                future = asyncio.wrap_future(self._start(_Job(photo, explain, show)))
                future.add_done_callback(lambda _: self._slots.release())
                futures.append(future)
            return await asyncio.gather(*futures)
        finally:  # without an answer, if the client is gone or one of its photos failed
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the processes and threads, once all photos are predicted; the thread that runs the networks waits on."""
        self._decoders.close()
        self._showing.shutdown()

    def _start(self, job: _Job) -> Future:
        with self._changed:
            self._decoding += 1
        try:
            decoding = self._decoders.decode(job.photo.read(), self.ensemble.image_size, self.ensemble.resize)
        except Exception as error:  # such as too little memory, or a process that cannot be replaced
            decoding = Future()
            decoding.set_exception(error)
        decoding.add_done_callback(lambda decoding: self._pass_on(job, decoding))
        return job.future

    def _pass_on(self, job: _Job, decoding: Future[np.ndarray]) -> None:
        """Pass a decoded photo on to the networks, unless it is unreadable."""
        pixels = None
        try:
            pixels = decoding.result()
        except UnreadablePhoto as reason:
            self._showing.submit(_finish, job, Prediction(job.photo.photo, unreadable=str(reason)))
        except BrokenProcessPool:
            _fail(job, UserError(KILLED))
        except BaseException as error:
            _fail(job, error)
        with self._changed:
            self._decoding -= 1
            if pixels is not None:
                self._decoded.append((job, pixels))
            self._changed.notify()

    def _run_networks(self) -> None:
        """The thread that runs the networks."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._decoded)
                self._changed.wait_for(lambda: len(self._decoded) >= self._batch_size or not self._decoding, PATIENCE_S)
                count = min(len(self._decoded), self._batch_size)
                batch = [self._decoded.popleft() for _ in range(count)]
            wanted = [(job, pixels) for job, pixels in batch if not job.future.cancelled()]
            for explain in (False, True):
                if alike := [(job, pixels) for job, pixels in wanted if job.explain == explain]:
                    self._predict(alike, explain)

    def _predict(self, batch: list[tuple[_Job, np.ndarray]], explain: bool) -> None:
        images = [(job.photo.photo, pixels) for job, pixels in batch]
        try:
            predictions = list(self.ensemble.predict_images(images, explain=explain))
        except BaseException as error:
            for job, _ in batch:
                _fail(job, error)
            return
        for (job, _), prediction in zip(batch, predictions, strict=True):
            self._showing.submit(_finish, job, prediction)


def _finish(job: _Job, prediction: Prediction) -> None:
    """Show a prediction to whoever waits for it."""
    if job.future.set_running_or_notify_cancel():
        try:
            job.future.set_result(job.show(prediction))
        except BaseException as error:
            job.future.set_exception(error)


def _fail(job: _Job, error: BaseException) -> None:
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)
