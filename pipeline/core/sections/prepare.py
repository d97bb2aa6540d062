"""The section `prepare` of params.yaml."""

from typing import Annotated, Literal

from pipeline.core.params import MAX_SIZE, MIN_SIZE, Count, Integer, Section, Seed, SplitSize, Text

from pydantic import Field


class Split(Section):
    """For each split the number of photos, a share of them, or the name of a given split."""

    train: SplitSize
    validation: SplitSize
    test: SplitSize


class Prepare(Section):
    source: Text
    labels: Text
    image_size: Annotated[Integer, Field(ge=MIN_SIZE, le=MAX_SIZE)]
    resize: Literal["stretch", "center_crop"]
    split: Split
    min_photos_per_class: Count | None
    seed: Seed
