"""The section `reject` of params.yaml."""

from typing import Annotated

from pipeline.core.params import Number, Section

from pydantic import Field


class Reject(Section):
    share: Annotated[Number, Field(ge=0, le=0.5)]
