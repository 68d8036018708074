"""Figures that the original reports published, and public ones to hold ours against.

Shares between 0 and 1. The original reports evaluated 1,000 test images.
"""

from __future__ import annotations

from typing import Any

TEST_IMAGES = 1000

# An ImageNet-pretrained ResNet18, fine-tuned on STL-10: 10 epochs, learning rate 0.001.
LAB3: dict[str, dict[str, float]] = {
    "adam": {"top1": 0.807, "top5": 0.988, "train_top1": 0.9732},
    "adagrad": {"top1": 0.891, "top5": 0.996, "train_top1": 1.0},
    "adadelta": {"top1": 0.601, "top5": 0.946, "train_top1": 0.6522},
    "rmsprop": {"top1": 0.693, "top5": 0.965, "train_top1": 0.9564},
}
LAB3_NOTES = ("0.001 is far below Adadelta's usual learning rate of 1.0.",)

# The odd structure on STL-10, grayscale, 30 epochs.
STACK: dict[str, Any] = {"top1": 0.265, "top5": 0.705, "train_top1": 0.2908}
STACK_CLASSES = {
    "airplane": 0.417,
    "bird": 0.175,
    "car": 0.402,
    "cat": 0.0,
    "deer": 0.380,
    "dog": 0.198,
    "horse": 0.337,
    "monkey": 0.0,
    "ship": 0.524,
    "truck": 0.229,
}
STACK_NOTES = (
    "Two classes are never predicted: the original classifier puts a ReLU after its last linear"
    " layer.",
    "The original trains the auto-encoder end to end, although the question asks for greedy"
    " layer-wise training.",
)

# Question 1 has no published figure: the logs printed under Q1.1, Q1.2 and Q1.3 are, number for
# number, the lab's Adam, Adagrad and Adadelta logs on the 10 classes of STL-10.
TINY_IMAGENET: dict[str, None] = {"cross-entropy": None, "triplet": None, "center": None}
TINY_IMAGENET_NOTES = (
    "The logs that the original prints for Question 1 are its lab logs on STL-10: there is no"
    " published figure on Tiny ImageNet to compare with.",
    "The original states 100,000 test images; Tiny ImageNet has 10,000 unlabelled test images and"
    " 10,000 labelled validation images.",
)

# ResNet18 elsewhere: trained from scratch at 64 px, and judged on the official validation split.
ANCHORS: dict[str, tuple[dict[str, Any], ...]] = {
    "tiny-imagenet": (
        {"recipe": "plain, 3x3 stem, 100 epochs", "top1": 0.6023},
        {"recipe": "plain, 3x3 stem, 400 epochs", "top1": 0.6329, "top5": 0.8273},
        {"recipe": "PuzzleMix, 400 epochs", "top1": 0.6722, "top5": 0.8585},
        {"recipe": "AdAutoMix, 400 epochs", "top1": 0.6919},
    ),
    "cifar100": (
        {"recipe": "ResNet18 fine-tuned, Adam 2e-5, 10 epochs", "top1": 0.7224},
        {"recipe": "ResNet18 from scratch, 32 px, 3x3 stem", "top1": 0.7843},
    ),
    "stl10": (
        {"recipe": "ResNet18 from scratch, 5,000 labelled images", "top1": 0.5835},
        {"recipe": "ResNet18 fine-tuned from ImageNet (validation subset)", "top1": 0.962},
    ),
}
