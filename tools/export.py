"""Export the trained models to ONNX: each network, and the ensemble as one graph, with a script and a model card.

Reads models/, metrics/ and data/prepared/; writes export/. A graph takes one image, already scaled, and returns the
probability of each class; the classes' names are in its metadata. classify.py classifies photos with a graph and
without this project's code. The model card has the expected answer for example.png, a synthetic photo. An ensemble that
only repeats a single network has no graph of its own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse

from pipeline.core.all_params import Params, without_folders
from pipeline.core.command_line import ArgumentParser
from pipeline.core.files import atomic_write
from pipeline.core.paths import NETWORK_PREDICTIONS, packed_split
from pipeline.core.process import extra_packages, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.results import require_ensemble, require_results
from pipeline.core.tool_paths import EXPORT, graph_file


def read_inputs() -> tuple[argparse.Namespace, Params]:
    """The arguments and the params. Raises UserError if they are wrong, or if a result is missing."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also write each graph in int8, calibrated on train photos, and measure its accuracy on validation",
    )
    arguments, params = parser.parse_args(), read_params(Params)
    require_ensemble(params)
    if arguments.int8:
        require_results(packed_split("train"), packed_split("validation"), NETWORK_PREDICTIONS)
    return arguments, params


def main() -> None:
    arguments, params = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.inference.ensemble import Ensemble

    import pandas as pd
    import torch

    with extra_packages("export"):
        from pipeline.export.graphs import REJECTION, expected_answers, graphs_of, write_onnx
        from pipeline.export.int8 import measure, quantise
        from pipeline.export.model_card import model_card
        from pipeline.export.photos import open_photos, photos_to_check
        from pipeline.export.runtimes import compare
        from pipeline.export.script import classify_script

    ensemble = Ensemble(params, torch.device("cpu"), torch.float32)
    graphs = graphs_of(ensemble)
    pixels, example = photos_to_check(ensemble)
    expected = expected_answers(ensemble, pixels)
    train, validation = (open_photos(split, ensemble) if arguments.int8 else None for split in ("train", "validation"))
    differences, costs = {}, {}
    with atomic_write() as write_to:
        for name, graph in graphs.items():
            file = write_to(graph_file(name))
            write_onnx(graph, ensemble.image_size, file)
            differences[name] = compare(name, file, pixels, expected[name])
            if train and validation and name != REJECTION:
                int8_file = write_to(graph_file(f"{name}-int8"))
                quantise(file, train, int8_file)
                costs[name] = measure(name, file, int8_file, ensemble, validation)
        write_to(EXPORT / "example.png").write_bytes(example)
        write_to(EXPORT / "classify.py").write_text(classify_script(ensemble), encoding="utf-8")
        table = pd.DataFrame.from_dict(differences, orient="index")
        answers = {name: expected[name][-1] for name in graphs if name != REJECTION}
        card = model_card(without_folders(params), ensemble, table, len(pixels) - 1, answers, costs)
        write_to(EXPORT / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    written = [*graphs, *(f"{name}-int8" for name in costs)]
    for path in EXPORT.glob("*.onnx"):
        if path not in map(graph_file, written):
            path.unlink()  # left over from an earlier export
    names = ", ".join(graph_file(name).name for name in written)
    print(f"{EXPORT}/: {names}, classify.py, example.png and MODEL_CARD.md")
    print(f"Largest difference between a runtime's answers and the pipeline's, over {len(pixels)} photos:")
    print(table.map("{:.1e}".format).to_string())
    if costs:
        print("Correct on validation, and speed on this computer:")
    for name, cost in costs.items():
        print(f"  {name}: {cost}")


if __name__ == "__main__":
    run_stage(main)
