"""The section `reject` of params.yaml."""

from typing import Annotated

from pipeline.core.params import Number, Section

from pydantic import Field


class Reject(Section):
    false_rejection_rate: Annotated[Number, Field(gt=0, le=0.5)] | None
