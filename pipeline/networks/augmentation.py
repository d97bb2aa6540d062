"""Augment whole batches of photos: a random crop and flip for each photo, in a few operations for all of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TRIES = 10  # boxes drawn for each photo; the first one inside it counts
LARGEST_RATIO = 4 / 3  # of a box's sides


@dataclass(frozen=True)
class Augmentation:
    """Maps uint8 images [N, 3, side, side] to uint8 images [N, 3, size, size].

    Each photo gets its own random box, which keeps at least `crop_scale` of its area (1: the whole photo), and with
    `flips` every second one is mirrored. The random numbers are those of the CPU on every device.
    """

    size: int
    crop_scale: float
    flips: bool

    def __call__(self, images: Tensor) -> Tensor:
        count, side = len(images), images.shape[-1]
        boxes = draw_boxes(count, side, self.crop_scale)
        mirrored = torch.rand(count) < 0.5 if self.flips else torch.zeros(count, dtype=torch.bool)
        return crop(images, boxes, mirrored, self.size)


def draw_boxes(count: int, side: int, crop_scale: float) -> Tensor:
    """Random boxes in square photos: int64 [count, 4] with left, top, width and height, in pixels.

    The distribution is that of torchvision's RandomResizedCrop: of areas from crop_scale to 1 and aspect ratios from
    3/4 to 4/3 the first ones that give a box inside the photo, or else the whole photo; then any place for it.
    """
    if crop_scale == 1:
        return torch.tensor([0, 0, side, side]).repeat(count, 1)
    area = side**2 * torch.empty(count, TRIES).uniform_(crop_scale, 1)
    ratio = torch.empty(count, TRIES).uniform_(-math.log(LARGEST_RATIO), math.log(LARGEST_RATIO)).exp()
    sizes = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1).round().long().clamp_min(1)
    sizes = torch.cat([sizes, torch.full((count, 1, 2), side)], dim=1)
    first = (sizes <= side).all(dim=-1).int().argmax(dim=1)  # argmax returns the first of equals
    chosen = sizes[torch.arange(count), first]
    corners = (torch.rand(count, 2) * (side - chosen + 1)).long()
    return torch.cat([corners, chosen], dim=1)


def crop(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Cut a box out of each image, scale it to `size` pixels a side, and mirror some: uint8 [N, 3, size, size].

    `images` uint8 [N, 3, side, side]; `boxes` int64 [N, 4] and `mirrored` bool [N] are on the CPU. Bilinear with
    antialiasing, in channels_last format. Devices differ by rounding: at most 1 of 255.
    """
    if images.device.type == "cpu":
        return crop_one_by_one(images, boxes, mirrored, size)
    return crop_together(images, boxes.to(images.device), mirrored.to(images.device), size)


def crop_one_by_one(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """`crop` with PyTorch's integer arithmetic for the CPU, which is many times as fast there as `crop_together`."""
    scaled = []
    for image, (left, top, width, height), flip in zip(images.split(1), boxes.tolist(), mirrored.tolist(), strict=True):
        box = image[..., top : top + height, left : left + width]
        box = box.flip(-1) if flip else box
        scaled.append(nn.functional.interpolate(box, (size, size), mode="bilinear", antialias=True))
    return torch.cat(scaled)


def crop_together(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """`crop` with two batched matrix products, because a GPU would need longer for single photos than for a step."""
    left, top, width, height = boxes.unbind(1)
    side = images.shape[-1]
    down = _scaling(top, height, side, size)
    across = _scaling(left, width, side, size)
    across = torch.where(mirrored.view(-1, 1, 1), across.flip(1), across)
    rows = images.permute(0, 2, 3, 1).float().flatten(2)  # [N, side, side * 3]
    rows = torch.bmm(down, rows).unflatten(2, (side, 3)).transpose(1, 2).flatten(2)  # [N, side, size * 3]
    scaled = torch.bmm(across, rows).unflatten(2, (size, 3))  # [N, across, down, 3]
    scaled = scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 3, 2, 1)
    return scaled.contiguous(memory_format=torch.channels_last)


def _scaling(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """For each box, what a pixel of the result takes from each pixel of a row: float32 [N, size, side].

    A triangle around the result's pixel, at least two pixels wide, as in Pillow's and PyTorch's bilinear filters:
    https://pillow.readthedocs.io/en/stable/handbook/concepts.html#filters
    """
    scale = (length / size).view(-1, 1, 1)
    centre = scale * (torch.arange(size, device=start.device) + 0.5).view(1, -1, 1)
    pixel = torch.arange(side, device=start.device) - start.view(-1, 1, 1) + 0.5  # from the box's start
    weight = (1 - (pixel - centre).abs() / scale.clamp_min(1)).clamp_min(0)
    weight = weight * ((pixel > 0) & (pixel < length.view(-1, 1, 1)))
    return weight / weight.sum(dim=-1, keepdim=True)
