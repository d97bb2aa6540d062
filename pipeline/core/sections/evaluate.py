"""The section `evaluate` of params.yaml."""

from pipeline.core.params import Section

from pydantic import StrictBool


class Evaluate(Section):
    test_time_flip: StrictBool
