"""The API for classifying photos, and the page built on it, as a FastAPI app."""

import asyncio
import hashlib
import json
import tomllib
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pipeline.core.errors import UserError
from pipeline.core.paths import COMBINATION, REJECTION, model
from pipeline.inference.batching import Batcher
from pipeline.inference.ensemble import Ensemble, Prediction
from pipeline.inference.gate import problem
from pipeline.inference.tables import as_record
from pipeline.inference.uploads import FIELD, MOST_PHOTOS, Uploads
from pipeline.inference.web import SCRIPT, one_of, page
from pipeline.pages.rendering import heat_uri, thumbnail

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

ANSWER_S = 300  # in which the photos of a request must have been classified
SHOWN_SIDE = 320  # pixels
PROJECT = Path(__file__).resolve().parents[2]

Result = TypeVar("Result")


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(Model):
    error: str = Field(description="One line: what is wrong, what was expected.")


class Answer(Model):
    """A photo that was classified."""

    photo: str = Field(description="The name of the file, or `body`.")
    label: str = Field(description="The class with the highest probability.")
    none_of_these: bool = Field(False, description="The photo seems to show none of the classes. Only if that is on.")
    probabilities: dict[str, float] = Field(description="Of each class, from the ensemble.")
    members: dict[str, dict[str, float]] = Field(description="The probabilities from each network.")
    image: str = Field("", description="The photo as the networks saw it, as a data URI. Only with `images`.")
    heat_maps: dict[str, str] = Field({}, description="Where each network looked, as data URIs. Only with `explain`.")


class Unreadable(Model):
    """A photo that could not be read."""

    photo: str = Field(description="The name of the file, or `body`.")
    unreadable: str = Field(description="Why it could not be read.")


class ServedModel(Model):
    networks: list[str]
    method: str = Field(description="How the networks are combined.")
    sha256: str = Field(description="Of the files in models/ together: another value, other answers.")


class Health(Model):
    model: ServedModel
    split: str = Field(description="The fingerprint of the split that the networks were trained with.")
    version: str = Field(description="Of the pipeline.")
    classes: list[str]


PHOTO = {"type": "string", "format": "binary"}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {FIELD: {"type": "array", "items": PHOTO, "minItems": 1, "maxItems": MOST_PHOTOS}},
                "required": [FIELD],
                "additionalProperties": False,
            }
        },
        "application/octet-stream": {"schema": PHOTO | {"minLength": 1}},
        "image/*": {"schema": PHOTO | {"minLength": 1}},
    },
}


DESCRIBED = {  # the errors of POST /predict
    400: "No photos, a malformed form, or a request for another host.",
    403: "The request comes from another site's page.",
    408: "The photos did not arrive in time.",
    413: "The photos are too large.",
    415: "Neither a form with files nor a photo.",
    422: "An unknown query parameter, a wrong value of one, a wrong field in the form, or too many photos.",
    503: "Too many requests or photos are waiting, or the photos took too long.",
}
NEEDS_TOKEN = {401: "The token is missing or wrong."}


def make_app(batcher: Batcher, is_local: bool = True, has_token: bool = False) -> FastAPI:
    """The app: POST /predict answers photos, GET /health describes the model, GET / is the page.

    GET /openapi.json describes the API. Each error is {"error": one line}. `is_local` (only this computer can reach the
    page) and `has_token` say what Gate lets through.
    """
    ensemble, uploads = batcher.ensemble, Uploads()
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    health, html = describe(ensemble, version), page(ensemble, is_local)
    refusals = {400: "A request for another host.", 422: "A query parameter."} | (NEEDS_TOKEN if has_token else {})
    app = FastAPI(
        title="Classify photos",
        description=f"Each photo is classified as {one_of(ensemble.classes)}.",
        version=version,
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if has_token else [],
        exception_handlers=HANDLERS,
    )

    @app.get("/", include_in_schema=False)
    def show_page() -> HTMLResponse:
        return HTMLResponse(html)

    @app.get("/serve.js", include_in_schema=False)
    def script() -> FileResponse:
        return FileResponse(SCRIPT, media_type="text/javascript")

    @app.get("/health", responses=problems(refusals), dependencies=[Depends(refuse_unknown)])
    def which_model() -> Health:
        """Which model answers."""
        return health

    @app.post(
        "/predict",
        response_model=list[Answer | Unreadable],
        responses=problems(DESCRIBED | (NEEDS_TOKEN if has_token else {})),
        openapi_extra={"requestBody": BODY},
        dependencies=[Depends(refuse_unknown)],
    )
    async def predict(
        request: Request,
        explain: Annotated[
            bool, Query(description="Also show where each network looked; takes several times as long.")
        ] = False,
        images: Annotated[bool, Query(description="Also return each photo as the networks saw it.")] = False,
    ) -> Response:
        """Classify one photo, sent as the body, or many, sent as files in the form's field `photos`.

        The answers are in the order of the photos, and as `tools/predict.py --json` gives them.
        """

        def show(prediction: Prediction) -> str:
            record = as_record(prediction, ensemble.can_reject)
            return json.dumps(record | drawn(prediction, images, explain), ensure_ascii=False)

        async with uploads.photos_of(request) as photos:
            answers = await in_time(batcher.predict(photos, show, explain), request)
        return Response(f"[{','.join(answers)}]", media_type="application/json")

    return app


def refuse_unknown(request: Request) -> None:
    """Raise HTTPException if the request has a query parameter that its route does not."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            expected = f"expected {' or '.join(known)}" if known else f"{request.url.path} has none"
            raise HTTPException(422, f"unknown query parameter {name!r}; {expected}")


async def refused(request: Request, error: HTTPException) -> Response:
    path, allowed = request.url.path, (error.headers or {}).get("Allow")
    texts = {
        404: f"there is no {path}; GET /openapi.json describes what there is",
        405: f"{path} does not answer {request.method}; expected {allowed}",
    }
    return problem(error.status_code, texts.get(error.status_code, error.detail), error.headers)


async def wrong_value(_: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    return problem(422, f"{first['loc'][-1]} is {first['input']!r}; expected true or false")


async def not_possible_now(_: Request, error: UserError) -> Response:
    return problem(503, str(error))


async def gone(_: Request, __: ClientDisconnect) -> Response:
    return problem(400, "the client has closed the connection")  # which nobody reads


async def failed(_: Request, __: Exception) -> Response:
    return problem(500, "an error in the server; its log says more")


HANDLERS: dict[Any, Any] = {
    HTTPException: refused,
    RequestValidationError: wrong_value,
    UserError: not_possible_now,
    ClientDisconnect: gone,
    Exception: failed,
}


def problems(statuses: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """The description of the errors with these statuses."""
    return {status: {"model": Problem, "description": text} for status, text in sorted(statuses.items())}


def describe(ensemble: Ensemble, version: str) -> Health:
    digest = hashlib.sha256()
    for path in (*map(model, ensemble.networks), COMBINATION, *([REJECTION] if ensemble.can_reject else [])):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    served = ServedModel(
        networks=list(ensemble.networks), method=ensemble.combination.method, sha256=digest.hexdigest()
    )
    split = ensemble.description["split_id"]
    return Health(model=served, split=split, version=version, classes=ensemble.classes)


def drawn(prediction: Prediction, images: bool, explain: bool) -> dict[str, Any]:
    """The images in an answer."""
    if prediction.pixels is None:
        return {}
    heat_maps = {name: heat_uri(prediction.pixels, heat) for name, heat in prediction.heat_maps.items()}
    return {
        **({"image": thumbnail(prediction.pixels, SHOWN_SIDE)} if images else {}),
        **({"heat_maps": heat_maps} if explain else {}),
    }


async def in_time(answers: Awaitable[Result], request: Request) -> Result:
    """Wait for `answers`, but give up after ANSWER_S, or once the client has closed the connection."""
    work, gone = asyncio.ensure_future(answers), asyncio.ensure_future(disconnection(request))
    try:
        await asyncio.wait({work, gone}, timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            raise ClientDisconnect
        raise HTTPException(503, f"the photos took longer than {ANSWER_S} s; send fewer at once")
    finally:
        work.cancel()
        gone.cancel()


async def disconnection(request: Request) -> None:
    """Wait until the client has closed the connection. The request must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
