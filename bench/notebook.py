"""The recipe of compare.py as it is usually written in a notebook.

Usage, from a folder with params.yaml and photos/{train,validation,test}/CLASS/: python notebook.py WORKERS
An ImageFolder and a DataLoader with worker processes, float32, torchvision's pretrained network with a two-layer head,
and the usual training loop. It reads `classes`, `networks`, `lr`, and from `train` the batch size, epochs, head width,
dropout and seed; the head and every BatchNorm are trained. Two common mistakes are fixed, in the notebook's favour:
`eval()` is called before predicting, and the last weights are used directly instead of being saved and loaded again.
Prints one line of JSON per network, and one for the mean of their logits.
"""

import json
import sys
import time
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms


def main() -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    train = params["train"]
    size = params["prepare"]["image_size"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    photos = {split: make_dataset(split, size) for split in ("train", "validation", "test")}
    loaders = {
        split: DataLoader(
            dataset, batch_size=train["batch_size"], shuffle=split == "train", num_workers=int(sys.argv[1])
        )
        for split, dataset in photos.items()
    }
    logits_sum = torch.zeros(())
    for name, network in params["networks"].items():
        torch.manual_seed(train["seed"])
        model = pretrained(name, network["weights"], len(params["classes"]), train["head_width"], train["dropout"])
        model = model.to(device)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=float(params["lr"]))
        criterion = nn.CrossEntropyLoss()
        train_seconds = 0
        for epoch in range(1, train["epochs"] + 1):
            start = time.perf_counter()
            model.train()
            running_loss = 0
            for images, labels in loaders["train"]:
                images, labels = images.to(device), labels.to(device)
                optimizer.zero_grad()
                loss = criterion(model(images), labels)
                loss.backward()
                optimizer.step()
                running_loss += loss.item()
            train_seconds += time.perf_counter() - start
            logits, labels, _ = predict(model, loaders["validation"], device)
            print(f"{name} epoch {epoch}: validation accuracy {accuracy(logits, labels):.6f}", file=sys.stderr)
        logits, labels, test_seconds = predict(model, loaders["test"], device)
        logits_sum = logits_sum + logits
        result = {
            "network": name,
            "train_rate": train["epochs"] * len(photos["train"]) / train_seconds,
            "inference_rate": len(labels) / test_seconds,
            "accuracy": accuracy(logits, labels),
        }
        print(json.dumps(result), flush=True)
    print(json.dumps({"network": "ensemble", "accuracy": accuracy(logits_sum, labels)}))


def make_dataset(split: str, size: int) -> datasets.ImageFolder:
    """The photos of a split, squeezed to `size` pixels a side."""
    steps = [
        transforms.Resize((size, size)),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    return datasets.ImageFolder(f"photos/{split}", transforms.Compose(steps))


def pretrained(name: str, weights: str, classes: int, head_width: int, dropout: float) -> nn.Module:
    """torchvision's network with a new head; everything else except BatchNorm is frozen."""
    model = load_network(name, weights)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(True)
    last, linear = last_linear(model)
    head = nn.Sequential(
        nn.Linear(linear.in_features, head_width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(head_width, classes)
    )
    model.set_submodule(last, head)
    return model


def load_network(name: str, weights: str) -> nn.Module:
    """torchvision's network with the `weights` of params.yaml."""
    if not weights.endswith(".pth"):
        return models.get_model(name, weights=None if weights == "none" else weights)
    model = models.get_model(name)
    model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    return model


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """The name of the output layer, and the layer."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def predict(model: nn.Module, loader: DataLoader, device: torch.device) -> tuple[Tensor, Tensor, float]:
    """Logits and labels of all photos, and the seconds it took."""
    start = time.perf_counter()
    model.eval()
    logits, labels = [], []
    with torch.no_grad():
        for images, batch_labels in loader:
            logits.append(model(images.to(device)).cpu())
            labels.append(batch_labels)
    return torch.cat(logits), torch.cat(labels), time.perf_counter() - start


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


if __name__ == "__main__":
    main()
