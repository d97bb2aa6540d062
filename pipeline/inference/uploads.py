"""The photos of a request, read within limits and kept in memory only."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from pipeline.inference.ensemble import InputPhoto
from pipeline.photos.source import printable

import python_multipart  # noqa: F401 (Starlette imports it only when a form arrives)
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

FIELD = "photos"
RAW_NAME = "body"  # what a photo is called that is the whole body of a request
LARGEST_UPLOAD = 2**28  # bytes of a request
LARGEST_TOTAL = 2**30  # bytes of all requests that are being answered
MOST_PHOTOS = 100  # of a request
UPLOAD_S = 60  # in which a request must have arrived

TOO_LARGE = f"the photos are too large; send at most {LARGEST_UPLOAD >> 20} MiB at once"
TOO_MANY = f"too many photos; send at most {MOST_PHOTOS} at once"
NONE_SENT = f"no photos; send at least one, as a file in the form's field {FIELD!r} or as the body of the request"

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the answer says what is wrong with a form


class _FormInMemory(MultiPartParser):
    spool_max_size = LARGEST_UPLOAD + 1  # bytes; larger files would be written to the disk


class Uploads:
    """Reads the photos of requests; knows how many bytes of them are in memory."""

    def __init__(self) -> None:
        self._total = 0

    @asynccontextmanager
    async def photos_of(self, request: Request) -> AsyncIterator[list[InputPhoto]]:
        """The photos of a request, until the block ends. Raises HTTPException if it has none, or exceeds a limit."""
        size = 0

        async def body() -> AsyncGenerator[bytes]:
            nonlocal size
            async for chunk in request.stream():
                size += len(chunk)
                self._total += len(chunk)
                if size > LARGEST_UPLOAD:
                    raise HTTPException(413, TOO_LARGE)
                if self._total > LARGEST_TOTAL:
                    raise HTTPException(503, "too many photos are waiting; try again", {"Retry-After": "1"})
                yield chunk

        try:
            if int(request.headers.get("content-length", 0)) > LARGEST_UPLOAD:
                raise HTTPException(413, TOO_LARGE)
            try:
                async with asyncio.timeout(UPLOAD_S):
                    photos = await _read(request, body())
            except TimeoutError:
                text = f"the photos did not arrive within {UPLOAD_S} s; send fewer at once"
                raise HTTPException(408, text, {"Connection": "close"}) from None
            if not photos:
                raise HTTPException(400, NONE_SENT)
            yield photos
        finally:
            self._total -= size


async def _read(request: Request, body: AsyncGenerator[bytes]) -> list[InputPhoto]:
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, body)
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        text = f"Content-Type is {kind}; expected multipart/form-data, or image/* or application/octet-stream"
        raise HTTPException(415, text)
    content = bytearray()
    async for chunk in body:
        content += chunk
    return [_photo(RAW_NAME, content)] if content else []


async def _read_form(request: Request, body: AsyncGenerator[bytes]) -> list[InputPhoto]:
    parser = _FormInMemory(request.headers, body, max_files=MOST_PHOTOS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if len(parser.items) >= MOST_PHOTOS:
            raise HTTPException(422, TOO_MANY) from None
        raise HTTPException(400, f"the form is malformed: {error.message.rstrip('.')}") from None
    photos = []
    for name, file in form.multi_items():
        if name != FIELD or isinstance(file, str):
            kind = "text" if isinstance(file, str) else "a file"
            raise HTTPException(422, f"the form has {kind} in its field {name!r}; expected files in {FIELD!r}")
        if file.filename:  # a browser sends a file without a name if none is chosen
            photos.append(_photo(printable(file.filename), await file.read()))
    await form.close()
    return photos


def _photo(name: str, content: bytes | bytearray) -> InputPhoto:
    return InputPhoto(name, lambda: bytes(content))
