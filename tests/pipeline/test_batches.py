"""Batches: augmentation, compared with torchvision's of single photos, and splits that are larger than memory."""

import json
import os
import struct
import threading
from concurrent.futures import Future
from pathlib import Path

import evaluate
import train
from pipeline.networks import dataset, reading
from pipeline.networks.augmentation import Augmentation, crop, crop_together, draw_boxes
from pipeline.networks.dataset import PackedSplit, open_split
from pipeline.networks.devices import free_memory
from pipeline.networks.normalisation import IMAGENET
from tests.support.projects import Project, copy_of

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

SIDE = 64


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth images, as photos are: uint8 [12, 3, SIDE, SIDE] in channels_last format."""
    noise = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(noise, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)
    return (255 * smooth).to(torch.uint8).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("crop_scale", [0.05, 0.35, 0.9])
def test_boxes_are_distributed_as_those_of_random_resized_crop(crop_scale: float) -> None:
    from torchvision.transforms import v2  # takes more than a second, so only in the process that needs it

    torch.manual_seed(1)
    transform, image = v2.RandomResizedCrop(SIDE, scale=(crop_scale, 1)), torch.zeros(3, SIDE, SIDE)
    drawn = [transform.make_params([image]) for _ in range(3000)]
    expected = torch.tensor([[box[key] for key in ("left", "top", "width", "height")] for box in drawn])
    boxes = draw_boxes(30_000, SIDE, crop_scale)
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2:].min() >= 1
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= SIDE
    for measure in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3]):
        assert ks_2samp(measure(boxes).numpy(), measure(expected).numpy()).pvalue > 0.001


@pytest.mark.parametrize("size", [24, 64, 80])
def test_crops_are_those_of_torchvision(images: Tensor, size: int) -> None:
    from torchvision.transforms.v2 import functional

    torch.manual_seed(1)
    boxes = draw_boxes(len(images), SIDE, 0.2)
    mirrored = torch.arange(len(images)) % 3 == 0
    expected = []
    for image, (left, top, width, height), flip in zip(images, boxes.tolist(), mirrored.tolist(), strict=True):
        image = functional.resized_crop(image, top, left, height, width, [size, size], antialias=True)
        expected.append(functional.horizontal_flip(image) if flip else image)
    result = crop(images, boxes, mirrored, size)
    # Mirroring before scaling instead of afterwards may round differently.
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=1)
    assert torch.equal(result[~mirrored], torch.stack(expected)[~mirrored])
    together = crop_together(images, boxes, mirrored, size)  # what a GPU computes
    torch.testing.assert_close(together, result, rtol=0, atol=1)
    for images_out in (result, together):
        assert images_out.dtype == torch.uint8
        assert images_out.is_contiguous(memory_format=torch.channels_last)


def test_each_photo_has_a_box_of_its_own_and_the_same_one_again_from_the_same_seed(images: Tensor) -> None:
    same = images[:1].repeat(40, 1, 1, 1)
    augment = Augmentation(SIDE, crop_scale=0.3, flips=True)
    torch.manual_seed(1)
    first, second = augment(same), augment(same)
    torch.manual_seed(1)
    assert torch.equal(augment(same), first)
    assert not torch.equal(first, second)
    assert len({tuple(image.flatten().tolist()) for image in first}) == len(same)


def test_without_crops_photos_are_only_scaled_and_half_of_them_mirrored(images: Tensor) -> None:
    torch.manual_seed(1)
    same = images[:1].repeat(200, 1, 1, 1)
    flipped = Augmentation(SIDE, crop_scale=1.0, flips=True)(same)
    mirrored = [torch.equal(image, images[0].flip(-1)) for image in flipped]
    assert all(
        is_mirrored or torch.equal(image, images[0]) for is_mirrored, image in zip(mirrored, flipped, strict=True)
    )
    assert 70 < sum(mirrored) < 130
    plain = Augmentation(SIDE, crop_scale=1.0, flips=False)(images)
    assert torch.equal(plain, images)


@pytest.mark.slow
def test_splits_too_large_for_memory_give_the_same_results(
    prepared_small: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for share in (dataset.MAX_SHARE_OF_FREE_MEMORY, 0):
        project = copy_of(prepared_small, tmp_path / f"share{share > 0}")
        project.params["networks"] = {"resnet18": {"weights": "none"}}
        project.params["train"] |= {"augment": "crop_and_flip", "head_width": 8, "epochs": 1}
        project.write_params()
        monkeypatch.setattr(dataset, "MAX_SHARE_OF_FREE_MEMORY", share)
        monkeypatch.chdir(project.root)
        monkeypatch.setattr("sys.argv", ["train.py", "resnet18"])
        train.main()
        monkeypatch.setattr("sys.argv", ["evaluate.py"])
        evaluate.main()
        results.append(project.results())
    fitted, large = results
    assert large.keys() == fitted.keys()
    assert {path for path in fitted if fitted[path] != large[path]} == set()


def test_a_split_waits_for_its_copy_before_the_first_use(images: Tensor) -> None:
    pixels = images.permute(0, 2, 3, 1)
    copying: Future[Tensor] = Future()
    packed = PackedSplit(copying, torch.zeros(len(pixels)), {})
    assert len(packed) == len(pixels)  # needs no pixels
    threading.Timer(0.1, copying.set_result, [pixels]).start()
    assert torch.equal(packed.images(torch.arange(2)), IMAGENET(images[:2]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_split_is_copied_to_a_gpu_in_the_background(prepared_small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "COPIED_AT_ONCE", 10_000)  # bytes, so that it takes several parts
    path = prepared_small.root / "data/prepared/train.safetensors"
    on_cpu, on_gpu = (open_split(path, torch.device(*device)) for device in (("cpu",), ("cuda", 0)))
    assert on_gpu.pixels.device == torch.device("cuda", 0)
    assert torch.equal(on_gpu.pixels.cpu(), on_cpu.pixels)


def test_a_split_may_be_larger_than_the_machines_memory(tmp_path: Path) -> None:
    device = torch.device("cpu")
    photos = 4 * free_memory(device) // (SIDE * SIDE * 3)
    labels, pixels = 2 * photos, photos * SIDE * SIDE * 3
    header = json.dumps(
        {
            "__metadata__": {"description": json.dumps({"classes": ["cat", "dog"]})},
            "labels": {"dtype": "U16", "shape": [photos], "data_offsets": [0, labels]},
            "pixels": {"dtype": "U8", "shape": [photos, SIDE, SIDE, 3], "data_offsets": [labels, labels + pixels]},
        }
    ).encode()
    path = tmp_path / "train.safetensors"
    with path.open("wb") as file:  # sparse: it takes no disk space
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + labels + pixels)
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    packed = dataset.open_split(path, device)
    assert packed.is_large
    assert len(packed) == photos
    last = packed.images(torch.tensor([0, photos - 1]))
    assert last[0].max() < 0 < last[1].max()  # black is negative, and the last value is 255
