"""What a repository's stages have predicted, for comparison with its tools."""

import pandas as pd
from projects import Repository
from scipy.special import expit

CLOSE = 0.02  # between probabilities of a photo in different batches, where networks compute in bfloat16


def predicted_by(repository: Repository) -> pd.DataFrame:
    """A row for each test photo: a column of probabilities of dog for each network, and `ensemble`."""
    predictions = pd.read_csv(repository.root / "metrics/predictions.csv")
    test = predictions[predictions["split"] == "test"]
    members = test.assign(p=expit(test["logit_dog"] - test["logit_cat"])).pivot(
        index="photo", columns="network", values="p"
    )
    ensemble = pd.read_csv(repository.root / "metrics/ensemble_predictions.csv").set_index("photo")
    return members.assign(ensemble=ensemble["probability_of_dog"])
