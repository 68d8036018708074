"""ResNet18 from scratch (He et al. 2016, "Deep Residual Learning", table 1).

With the "imagenet" stem its parameters have the names and shapes of
torchvision's `resnet18`, so that published ImageNet weights load as they are.
The other two stems keep more of a small image.
"""

from torch import Tensor, nn

STEMS = {  # kernel size and stride of the first convolution
    "imagenet": (7, 2),  # then a 3x3 max pooling of stride 2
    "stride2": (3, 2),
    "cifar": (3, 1),
}


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """Without a bias: the batch normalisation that follows has one."""
    return nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them: relu(f(x) + x).

    [B, in_channels, H, W] becomes [B, channels, H / stride, W / stride].
    Where the shape changes, a 1x1 convolution adapts the shortcut.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out.add_(shortcut))


def make_stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """Two blocks; the first changes the shape."""
    return nn.Sequential(
        BasicBlock(in_channels, channels, stride),
        BasicBlock(channels, channels),
    )


class ResNet18(nn.Module):
    """A stem, four stages of two blocks, average pooling, and a classifier.

    stem: "imagenet", "stride2" or "cifar"; a 64-pixel image enters the first
    stage with a side of 16, 32 or 64 pixels. ValueError for any other.
    """

    def __init__(
        self,
        num_classes: int,
        stem: str = "imagenet",
        in_channels: int = 3,
    ):
        super().__init__()
        if stem not in STEMS:
            known = ", ".join(STEMS)
            raise ValueError(f"unknown stem {stem!r}: choose one of {known}")
        size, stride = STEMS[stem]
        pad = size // 2
        self.conv1 = nn.Conv2d(in_channels, 64, size, stride, pad, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if size == 7 else nn.Identity()
        self.layer1 = make_stage(64, 64, stride=1)
        self.layer2 = make_stage(64, 128, stride=2)
        self.layer3 = make_stage(128, 256, stride=2)
        self.layer4 = make_stage(256, 512, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)

        for module in self.modules():  # He et al. 2015, for ReLU networks
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def features(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> penultimate features [B, 512]."""
        x = self.maxpool(self.bn1(self.conv1(x)))
        x = self.relu(x)  # commutes with maxpool; fewer pixels here
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        return self.avgpool(x).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Features [B, 512] -> logits [B, num_classes]."""
        return self.fc(features)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        return self.classify(self.features(x))


def stages(model: nn.Module) -> list[tuple[str, int]]:
    """The model's top-level parts that learn, and their parameter counts."""
    parts = model.named_children()
    sizes = ((name, [p.numel() for p in m.parameters()]) for name, m in parts)
    return [(name, sum(size)) for name, size in sizes if size]
