"""The script that classifies photos with an exported graph, and without this project's code."""

from pipeline.inference.ensemble import Ensemble
from pipeline.pages.rendering import render
from pipeline.photos.decoding import CENTER_CROP_SHARE


def classify_script(ensemble: Ensemble) -> str:
    """classify.py, which decodes and scales a photo to the same pixels as `decode`, in at most 30 lines."""
    return render(
        "classify.py.jinja",
        size=ensemble.image_size,
        crop_share=CENTER_CROP_SHARE if ensemble.resize == "center_crop" else None,
        threshold=ensemble.rejection.threshold if ensemble.rejection else None,
    )
