# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A class-conditional StyleGAN2, written from the papers.

Sources: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020 (StyleGAN2: weight
demodulation, skip generator, residual discriminator); Karras et al., "Progressive Growing of GANs", ICLR 2018
(equalised learning rate, minibatch standard deviation); Miyato and Koyama, "cGANs with Projection Discriminator",
ICLR 2018 (projection on the label).

A convolution with modulated and demodulated weights, w''_oik = s_i w_oik / sqrt(sum_ik (s_i w_oik)^2 + eps), is
computed here as "scale the activations by s_i, convolve with the shared w, scale the output by the root": the same
function, without one set of weights per sample, and several times faster on a CPU.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.networks.weights import register_network

__all__ = [
    "Discriminator",
    "EqualizedConv2d",
    "EqualizedLinear",
    "Generator",
    "MappingNetwork",
    "ModulatedConv2d",
    "SynthesisNetwork",
    "channels_at",
    "minibatch_stddev",
]

RESOLUTIONS = (32, 64, 128, 256, 512)


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps of the layers that work at ``resolution`` pixels (StyleGAN2's rule, min(base / resolution, max))."""
    return min(channel_base // resolution, channel_max)


def _check_resolution(resolution: int) -> None:
    if resolution not in RESOLUTIONS:
        nearest = min(RESOLUTIONS, key=lambda valid: abs(valid - resolution))
        raise ValueError(f"resolution {resolution} is not one of {RESOLUTIONS}: the nearest is {nearest}.")


def _fir_kernel() -> Tensor:
    """The separable [1, 3, 3, 1] low-pass filter of StyleGAN2 with unit sum, shape [1, 1, 4, 4]."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    return (kernel / kernel.sum()).view(1, 1, 4, 4)


def _leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, scaled by sqrt(2) to keep the variance of its input."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2.0)


def _filter(x: Tensor, kernel: Tensor, gain: float, padding: int) -> Tensor:
    """Filters each channel of x [B, C, H, W] with the kernel [1, 1, 4, 4] times ``gain``."""
    weight = (kernel * gain).to(x.dtype).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, weight, padding=padding, groups=x.shape[1])


class EqualizedLinear(nn.Module):
    """Linear layer whose weight is stored with unit variance and scaled at run time (equalised learning rate).

    Args:
        in_features: length of the input vectors.
        out_features: length of the output vectors.
        bias: initial value of the bias.
        lr_multiplier: learning rate of this layer relative to the rest.
    """

    def __init__(self, in_features: int, out_features: int, bias: float = 0.0, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias / lr_multiplier))
        self.weight_gain: float = lr_multiplier / math.sqrt(in_features)
        self.bias_gain: float = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in_features] to [..., out_features]."""
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class EqualizedConv2d(nn.Module):
    """Convolution with equalised learning rate, "same" padding, and an optional low-pass filter and stride of 2.

    Args:
        in_channels: feature maps in.
        out_channels: feature maps out.
        kernel_size: odd side of the kernel.
        bias: whether a bias is added.
        down: halve the resolution, after a [1, 3, 3, 1] filter against aliasing.
    """

    if TYPE_CHECKING:  # torch.jit.script does not read annotations of a class as strings
        kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True, down: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain: float = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.padding: int = kernel_size // 2
        self.down: bool = down
        self.register_buffer("kernel", _fir_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [B, in_channels, H, W] to [B, out_channels, H, W], or to half of H and W where ``down``."""
        weight = self.weight * self.weight_gain
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.padding)
        if self.padding == 0:  # a 1 x 1 kernel commutes with subsampling: filter and subsample first, it is cheaper
            # A stride in the filter itself would do less, but its backward pass on a CPU takes many times longer.
            return F.conv2d(_filter(x, self.kernel, 1.0, padding=1)[:, :, ::2, ::2], weight, self.bias)
        return F.conv2d(_filter(x, self.kernel, 1.0, padding=2), weight, self.bias, stride=2)


class ModulatedConv2d(nn.Module):
    """Convolution whose weights are modulated by a style and demodulated (StyleGAN2, equations 1 and 3).

    Args:
        in_channels: feature maps in.
        out_channels: feature maps out.
        kernel_size: odd side of the kernel.
        up: double the resolution by a transposed convolution and the [1, 3, 3, 1] filter.
        demodulate: divide by the expected standard deviation of the output.
    """

    if TYPE_CHECKING:  # torch.jit.script does not read annotations of a class as strings
        kernel: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.weight_gain: float = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.padding: int = kernel_size // 2
        self.up: bool = up
        self.demodulate: bool = demodulate
        self.register_buffer("kernel", _fir_kernel(), persistent=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Convolves.

        Args:
            x: activations [B, in_channels, H, W].
            style: scales s of the input feature maps, [B, in_channels].

        Returns:
            [B, out_channels, H, W], or twice H and W where ``up``.
        """
        weight = self.weight * self.weight_gain
        x = x * style.to(x.dtype).unsqueeze(-1).unsqueeze(-1)
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = _filter(x, self.kernel, 4.0, padding=1)
        else:
            x = F.conv2d(x, weight, padding=self.padding)
        if self.demodulate:
            # Summed elementwise, not by a matrix product: autocast would round that to bf16.
            style = style.to(weight.dtype)
            power = (style.square().unsqueeze(1) * weight.square().sum(dim=(2, 3))).sum(dim=2)
            x = x * (power + 1e-8).rsqrt().to(x.dtype).unsqueeze(-1).unsqueeze(-1)
        return x


class MappingNetwork(nn.Module):
    r"""Maps z and a label to the intermediate latent w.

    What the layers give, f(z, c), may be moved away from the mean of its class,

        w = m_c + s_c (f(z, c) - m_c):

    the truncation trick (Karras et al., CVPR 2019) the other way round. s_c = 1 until `calibrate_spread` finds the
    spread at which samples vary as much as real images.

    Args:
        z_dim: length of z.
        w_dim: length of w.
        num_classes: number of labels.
        num_layers: depth.
        lr_multiplier: learning rate relative to the synthesis network (StyleGAN2: 0.01).

    Attributes:
        mean: m, [num_classes, w_dim].
        spread: s, [num_classes].
    """

    if TYPE_CHECKING:  # torch.jit.script does not read annotations of a class as strings
        mean: Tensor
        spread: Tensor

    def __init__(self, z_dim: int, w_dim: int, num_classes: int, num_layers: int, lr_multiplier: float = 0.01) -> None:
        super().__init__()
        self.num_classes: int = num_classes
        self.embed = EqualizedLinear(num_classes, w_dim)
        layers = [EqualizedLinear(z_dim + w_dim, w_dim, lr_multiplier=lr_multiplier)]
        layers += [EqualizedLinear(w_dim, w_dim, lr_multiplier=lr_multiplier) for _ in range(num_layers - 1)]
        self.layers = nn.ModuleList(layers)
        self.register_buffer("mean", torch.zeros(num_classes, w_dim))
        self.register_buffer("spread", torch.ones(num_classes))

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """Maps z [B, z_dim] ~ N(0, I) and label [B] (int64) to w [B, w_dim]."""
        mean = self.mean[label]
        return mean + self.spread[label].unsqueeze(1) * (self.unspread(z, label) - mean)

    def narrowed(self, w: Tensor, label: Tensor) -> Tensor:
        """Undoes the spread of latents w [P, N, w_dim] of the classes label [P]."""
        mean = self.mean[label].unsqueeze(1)
        return mean + (w - mean) / self.spread[label].view(-1, 1, 1)

    def unspread(self, z: Tensor, label: Tensor) -> Tensor:
        """Maps z [B, z_dim] and label [B] to f(z, c) [B, w_dim], what the layers give."""
        one_hot = F.one_hot(label, self.num_classes).to(z.dtype)
        # The equalised gain divides by sqrt(num_classes), which a one-hot input does not have; normalising undoes it.
        embedded = self.embed(one_hot)
        embedded = embedded * (embedded.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        z = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        w = torch.cat([z, embedded], dim=1)
        for layer in self.layers:
            w = _leaky(layer(w))
        return w


class StyledLayer(nn.Module):
    """Modulated 3 x 3 convolution, noise input, bias and leaky ReLU.

    Args:
        in_channels: feature maps in.
        out_channels: feature maps out.
        w_dim: length of w.
        resolution: side of the output in pixels.
        up: double the resolution.
        noise: add a noise image, scaled by a learned strength.
    """

    if TYPE_CHECKING:  # torch.jit.script does not read annotations of a class as strings
        noise_const: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, up: bool, noise: bool) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, in_channels, bias=1.0)
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, up=up)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise: bool = noise
        self.resolution: int = resolution
        self.noise_strength = nn.Parameter(torch.zeros(1)) if noise else None
        self.register_buffer("noise_const", torch.randn(1, 1, resolution, resolution) if noise else None)

    def forward(self, x: Tensor, w: Tensor, noise_mode: str) -> Tensor:
        """Maps x [B, in_channels, h, h] and w [B, w_dim] to [B, out_channels, resolution, resolution]."""
        x = self.conv(x, self.affine(w))
        strength = self.noise_strength
        constant = self.noise_const
        if strength is not None and constant is not None and noise_mode != "none":
            if noise_mode == "random":
                noise = torch.randn(x.shape[0], 1, self.resolution, self.resolution, device=x.device)
            else:
                noise = constant
            x = x + (noise * strength).to(x.dtype)
        return _leaky(x + self.bias.to(x.dtype).view(1, -1, 1, 1))


class ToImage(nn.Module):
    """Modulated 1 x 1 convolution without demodulation, from feature maps to image channels."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, in_channels, bias=1.0)
        self.conv = ModulatedConv2d(in_channels, out_channels, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Maps x [B, in_channels, H, W] and w [B, w_dim] to [B, out_channels, H, W]."""
        return self.conv(x, self.affine(w)) + self.bias.to(x.dtype).view(1, -1, 1, 1)


class SynthesisBlock(nn.Module):
    """All layers of one resolution: one upsampling and one plain styled layer, and the image they add (skip)."""

    def __init__(
        self, in_channels: int, out_channels: int, image_channels: int, w_dim: int, resolution: int, noise: bool
    ) -> None:
        super().__init__()
        self.conv0 = StyledLayer(in_channels, out_channels, w_dim, resolution, up=True, noise=noise)
        self.conv1 = StyledLayer(out_channels, out_channels, w_dim, resolution, up=False, noise=noise)
        self.to_image = ToImage(out_channels, image_channels, w_dim)

    def forward(self, x: Tensor, image: Tensor, ws: Tensor, noise_mode: str) -> tuple[Tensor, Tensor]:
        """Doubles x and the image with the block's three latents ws [B, 3, w_dim]."""
        x = self.conv0(x, ws[:, 0], noise_mode)
        x = self.conv1(x, ws[:, 1], noise_mode)
        # Bilinear upsampling by 2 is the [1, 3, 3, 1] filter; images stay in fp32, they are sums over resolutions.
        image = F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
        return x, image + self.to_image(x, ws[:, 2]).to(image.dtype)


class SynthesisNetwork(nn.Module):
    """Maps w to an image with a skip generator.

    Args:
        w_dim: length of w.
        resolution: side of the image, one of 32, 64, 128, 256, 512 pixels.
        image_channels: 1 (grey) or 3 (RGB).
        channel_base: see `channels_at`.
        channel_max: see `channels_at`.
        noise: whether the layers have noise inputs.
    """

    def __init__(
        self, w_dim: int, resolution: int, image_channels: int, channel_base: int, channel_max: int, noise: bool
    ) -> None:
        super().__init__()
        self.w_dim: int = w_dim
        sides = [2**i for i in range(2, int(math.log2(resolution)) + 1)]
        widths = [channels_at(side, channel_base, channel_max) for side in sides]
        # The first resolution has one styled layer and one image layer; each later block one more layer.
        self.num_ws: int = 2 + 2 * (len(sides) - 1)
        self.const = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.conv = StyledLayer(widths[0], widths[0], w_dim, 4, up=False, noise=noise)
        self.to_image = ToImage(widths[0], image_channels, w_dim)
        # Named by resolution, so that weights of one resolution find their place in a network of another.
        self.blocks = nn.ModuleDict(
            {
                str(sides[i]): SynthesisBlock(widths[i - 1], widths[i], image_channels, w_dim, sides[i], noise)
                for i in range(1, len(sides))
            }
        )

    def forward(self, w: Tensor, noise_mode: str = "const") -> Tensor:
        """Synthesises images.

        Args:
            w: [B, w_dim], or one latent per layer [B, num_ws, w_dim].
            noise_mode: "const" (the trained generator's fixed noise images), "random" or "none".

        Returns:
            Images [B, C, H, W], fp32, in [-1, 1] (clamped; see `unclamped` for the gradient's sake).
        """
        return self.unclamped(w, noise_mode).clamp(-1.0, 1.0)

    @torch.jit.export
    def unclamped(self, w: Tensor, noise_mode: str = "const") -> Tensor:
        """As `forward`, without the final clamp, which has no gradient where a pixel is saturated."""
        ws = w.unsqueeze(1).expand(-1, self.num_ws, -1) if w.dim() == 2 else w
        x = self.conv(self.const.expand(ws.shape[0], -1, -1, -1), ws[:, 0], noise_mode)
        image = self.to_image(x, ws[:, 1]).to(self.const.dtype)
        # The image layer of a block and the first styled layer of the next share a latent, as in the paper.
        index = 1
        for block in self.blocks.values():
            x, image = block(x, image, ws[:, index : index + 3], noise_mode)
            index += 2
        return image


@register_network
class Generator(nn.Module):
    """Label-conditional StyleGAN2 generator.

    Args:
        resolution: side of the images, one of 32, 64, 128, 256, 512 pixels.
        image_channels: 1 (grey) or 3 (RGB).
        num_classes: number of labels.
        z_dim: length of z.
        w_dim: length of w.
        mapping_layers: depth of the mapping network.
        channel_base: see `channels_at`.
        channel_max: see `channels_at`.
        noise: whether the synthesis layers have noise inputs. What they draw is out of reach of a walk in W, so a
            generator meant for one is better without.

    Raises:
        ValueError: the resolution is not one of those.
    """

    def __init__(
        self,
        resolution: int,
        image_channels: int = 1,
        num_classes: int = 2,
        z_dim: int = 128,
        w_dim: int = 128,
        mapping_layers: int = 2,
        channel_base: int = 2048,
        channel_max: int = 128,
        noise: bool = False,
    ) -> None:
        super().__init__()
        _check_resolution(resolution)
        self.arguments = {
            "resolution": resolution,
            "image_channels": image_channels,
            "num_classes": num_classes,
            "z_dim": z_dim,
            "w_dim": w_dim,
            "mapping_layers": mapping_layers,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "noise": noise,
        }
        self.z_dim: int = z_dim
        self.w_dim: int = w_dim
        self.num_classes: int = num_classes
        self.mapping = MappingNetwork(z_dim, w_dim, num_classes, mapping_layers)
        self.synthesis = SynthesisNetwork(w_dim, resolution, image_channels, channel_base, channel_max, noise)

    def forward(self, x: Tensor) -> Tensor:
        """Generates an image from one vector, the form that the model zoo's checks and servers use.

        Args:
            x: z ~ N(0, I) joined with the one-hot label, [B, z_dim + num_classes].

        Returns:
            Images [B, C, H, W] in [-1, 1].
        """
        label = x[:, self.z_dim :].argmax(dim=1)
        return self.synthesis(self.mapping(x[:, : self.z_dim], label))


def minibatch_stddev(x: Tensor, group_size: int = 4) -> Tensor:
    """Appends one feature map: the standard deviation over groups of the batch, averaged over features and pixels.

    Source: Karras et al., ICLR 2018, section 3.

    Args:
        x: [B, C, H, W].
        group_size: samples per group; the largest divisor of B that is not above it is used.

    Returns:
        [B, C + 1, H, W].
    """
    batch = x.shape[0]
    size = max(divisor for divisor in range(1, min(group_size, batch) + 1) if batch % divisor == 0)
    # Member i of a group stands B / size apart, so that a batch sorted by class still mixes in each group.
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(size, batch // size, *x.shape[1:])
    deviation = (grouped.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    feature = deviation.repeat(size).view(batch, 1, 1, 1).expand(-1, 1, *x.shape[2:])
    return torch.cat([x, feature.to(x.dtype)], dim=1)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualizedConv2d(in_channels, in_channels, 3)
        self.conv1 = EqualizedConv2d(in_channels, out_channels, 3, down=True)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [B, in_channels, H, W] to [B, out_channels, H / 2, W / 2]."""
        return (_leaky(self.conv1(_leaky(self.conv0(x)))) + self.skip(x)) * math.sqrt(0.5)


@register_network
class Discriminator(nn.Module):
    """Residual discriminator with minibatch standard deviation and projection on the label.

    Args:
        resolution: side of the images, one of 32, 64, 128, 256, 512 pixels.
        image_channels: 1 (grey) or 3 (RGB).
        num_classes: number of labels.
        channel_base: see `channels_at`.
        channel_max: see `channels_at`.

    Raises:
        ValueError: the resolution is not one of those.
    """

    def __init__(
        self,
        resolution: int,
        image_channels: int = 1,
        num_classes: int = 2,
        channel_base: int = 2048,
        channel_max: int = 128,
    ) -> None:
        super().__init__()
        _check_resolution(resolution)
        self.arguments = {
            "resolution": resolution,
            "image_channels": image_channels,
            "num_classes": num_classes,
            "channel_base": channel_base,
            "channel_max": channel_max,
        }
        sides = [2**i for i in range(int(math.log2(resolution)), 1, -1)]
        widths = [channels_at(side, channel_base, channel_max) for side in sides]
        self.from_image = EqualizedConv2d(image_channels, widths[0], 1)
        self.blocks = nn.ModuleDict(
            {str(sides[i]): DiscriminatorBlock(widths[i], widths[i + 1]) for i in range(len(sides) - 1)}
        )
        self.conv = EqualizedConv2d(widths[-1] + 1, widths[-1], 3)
        self.fc = EqualizedLinear(widths[-1] * 16, widths[-1])
        self.out = EqualizedLinear(widths[-1], 1)
        self.embed = nn.Embedding(num_classes, widths[-1])
        nn.init.normal_(self.embed.weight)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Judges images.

        Args:
            image: [B, C, H, W] in [-1, 1].
            label: [B], int64.

        Returns:
            Logits [B]: positive means real.
        """
        x = _leaky(self.from_image(image))
        for block in self.blocks.values():
            x = block(x)
        x = _leaky(self.conv(minibatch_stddev(x)))
        features = _leaky(self.fc(x.flatten(1))).to(self.embed.weight.dtype)
        projection = (self.embed(label) * features).sum(dim=1) / math.sqrt(features.shape[1])
        return self.out(features).to(projection.dtype).squeeze(1) + projection
