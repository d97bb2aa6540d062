"""The section `ensemble` of params.yaml."""

from typing import Literal

from pipeline.core.params import Section


class Ensemble(Section):
    method: Literal["mean_logits", "mean_probabilities", "majority_vote", "fitted_weights"]
