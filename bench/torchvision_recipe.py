"""torchvision's training recipe for classification, from its references/, re-typed for fine-tuning one network.

Usage, from a folder with params.yaml and photos/{train,validation}/CLASS/: python torchvision_recipe.py WORKERS
A RandomResizedCrop and flip for training, the central 224 of 256 pixels for validation, batches of 32, SGD with
momentum and weight decay, every layer trained. The learning rate is not its 0.1, which is meant for training from
random weights. Trains the first network in params.yaml for EPOCHS epochs and prints a line after each.
"""

import sys
from pathlib import Path

from notebook import accuracy, last_linear, load_network, predict

import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

EPOCHS, BATCH_SIZE = 5, 32
LR, MOMENTUM, WEIGHT_DECAY = 0.001, 0.9, 1e-4
NORMALIZE = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]


def main() -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    name, network = next(iter(params["networks"].items()))
    torch.manual_seed(params["train"]["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = make_loader("train", [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()])
    validation = make_loader("validation", [v2.Resize(256), v2.CenterCrop(224)])
    model = pretrained(name, network["weights"], len(params["classes"])).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for images, labels in train:
            images, labels = images.to(device), labels.to(device)
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        logits, labels, _ = predict(model, validation, device)
        print(f"{name} epoch {epoch}: validation accuracy {accuracy(logits, labels):.6f}", flush=True)


def make_loader(split: str, transforms: list[nn.Module]) -> DataLoader:
    transform = v2.Compose([*transforms, v2.PILToTensor(), *NORMALIZE])
    dataset = datasets.ImageFolder(f"photos/{split}", transform)
    return DataLoader(dataset, BATCH_SIZE, shuffle=split == "train", num_workers=int(sys.argv[1]))


def pretrained(name: str, weights: str, classes: int) -> nn.Module:
    """torchvision's network with its last linear layer replaced."""
    model = load_network(name, weights)
    last, linear = last_linear(model)
    model.set_submodule(last, nn.Linear(linear.in_features, classes))
    return model


if __name__ == "__main__":
    main()
