"""Export the trained models to ONNX: each network, and the ensemble as one graph, with a model card.

Reads models/, metrics/ and data/prepared/; writes export/. A graph takes one image, already scaled, and returns the
probability of each class; the classes' names are in its metadata. The model card has the Python code that scales a
photo, and the expected answer for example.png, a synthetic photo. An ensemble that only repeats a single network has no
graph of its own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.all_params import Params, without_folders
from pipeline.core.command_line import read_arguments
from pipeline.core.files import atomic_write
from pipeline.core.process import extra_packages, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.results import require_ensemble
from pipeline.core.tool_paths import EXPORT, graph_file


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong, or if a model is missing."""
    read_arguments(__doc__)
    params = read_params(Params)
    require_ensemble(params)
    return params


def main() -> None:
    params = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.inference.ensemble import Ensemble
    from pipeline.photos.decoding import decode
    from pipeline.scores.combining import Combination
    from pipeline.scores.scoring import ENSEMBLE

    import numpy as np
    import pandas as pd
    import torch

    with extra_packages("export"):
        from pipeline.export.graphs import ImageToProbabilities, write_onnx
        from pipeline.export.model_card import model_card
        from pipeline.export.photos import draw_example, encode_png, read_photos
        from pipeline.export.runtimes import compare

    ensemble = Ensemble(params, torch.device("cpu"), torch.float32)
    graphs = {name: ([name], Combination("mean_logits")) for name in ensemble.networks}
    if ensemble.shown_members:
        graphs[ENSEMBLE] = (list(ensemble.networks), ensemble.combination)
    photos = read_photos(ensemble)
    example = encode_png(draw_example())
    pixels = np.concatenate([photos, decode(example, ensemble.image_size, ensemble.resize)[np.newaxis]])
    combined, by_member = ensemble.probabilities(pixels)
    expected = {**by_member, ENSEMBLE: combined}
    differences = {}
    with atomic_write() as write_to:
        for name, (members, combination) in graphs.items():
            networks = [ensemble.networks[member] for member in members]
            normalisations = [ensemble.normalisations[member] for member in members]
            file = write_to(graph_file(name))
            graph = ImageToProbabilities(networks, normalisations, combination, ensemble.image_size)
            write_onnx(graph, ensemble.classes, file)
            differences[name] = compare(name, file, pixels, expected[name])
        write_to(EXPORT / "example.png").write_bytes(example)
        table = pd.DataFrame.from_dict(differences, orient="index")
        example_answers = {
            name: dict(zip(ensemble.classes, probabilities[-1].tolist(), strict=True))
            for name, probabilities in expected.items()
            if name in graphs
        }
        card = model_card(without_folders(params), ensemble, table, len(photos), example_answers)
        write_to(EXPORT / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    for path in EXPORT.glob("*.onnx"):
        if path not in map(graph_file, graphs):
            path.unlink()  # left over from a removed network or ensemble
    print(f"{EXPORT}/: " + ", ".join(graph_file(name).name for name in graphs) + ", example.png and MODEL_CARD.md")
    print(f"Largest difference between a runtime's probabilities and the pipeline's, over {len(pixels)} photos:")
    print(table.map("{:.1e}".format).to_string())


if __name__ == "__main__":
    run_stage(main)
