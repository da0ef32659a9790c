# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The StyleGAN2 generator: a mapping network from z and the label to w, and a synthesis network from w to the image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.networks.stylegan2.layers import EqualizedLinear, ModulatedConv2d, channels_at, check_resolution, leaky
from bundle.networks.weights import register_network

__all__ = ["Generator", "MappingNetwork", "StyledLayer", "SynthesisBlock", "SynthesisNetwork", "ToImage"]


class MappingNetwork(nn.Module):
    r"""Maps z and a label c to the intermediate latent w.

    The output f(z, c) of the layers can be moved away from the mean m_c of its class,

        w = m_c + s_c (f(z, c) - m_c),

    which inverts the truncation trick (Karras et al., CVPR 2019). The spread s_c is 1 until `calibrate_spread` sets it
    so that samples vary as much as real images.

    Args:
        z_dim: length of z.
        w_dim: length of w.
        num_classes: number of labels.
        num_layers: number of layers.
        lr_multiplier: learning rate relative to that of the synthesis network (StyleGAN2: 0.01).

    Attributes:
        mean: class means m, [num_classes, w_dim].
        spread: spreads s, [num_classes].
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
        """Reverts the spread of latents w [P, N, w_dim] with labels [P], where N is the number of points of a path."""
        mean = self.mean[label].unsqueeze(1)
        return mean + (w - mean) / self.spread[label].view(-1, 1, 1)

    def unspread(self, z: Tensor, label: Tensor) -> Tensor:
        """Maps z [B, z_dim] and label [B] to the output f(z, c) [B, w_dim] of the layers."""
        one_hot = F.one_hot(label, self.num_classes).to(z.dtype)
        # The equalised gain assumes inputs of unit variance, which one-hot vectors are not; normalisation corrects it.
        embedded = self.embed(one_hot)
        embedded = embedded * (embedded.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        z = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        w = torch.cat([z, embedded], dim=1)
        for layer in self.layers:
            w = leaky(layer(w))
        return w


class StyledLayer(nn.Module):
    """Modulated 3 x 3 convolution, noise input, bias and leaky ReLU.

    Args:
        in_channels: number of input feature maps.
        out_channels: number of output feature maps.
        w_dim: length of w.
        resolution: side of the output in pixels.
        up: whether to double the resolution.
        noise: whether to add a noise image, scaled by a learned strength.
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
        return leaky(x + self.bias.to(x.dtype).view(1, -1, 1, 1))


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
    """Layers of one resolution: an upsampling and a plain styled layer, and a layer that adds to the image (skip)."""

    def __init__(
        self, in_channels: int, out_channels: int, image_channels: int, w_dim: int, resolution: int, noise: bool
    ) -> None:
        super().__init__()
        self.conv0 = StyledLayer(in_channels, out_channels, w_dim, resolution, up=True, noise=noise)
        self.conv1 = StyledLayer(out_channels, out_channels, w_dim, resolution, up=False, noise=noise)
        self.to_image = ToImage(out_channels, image_channels, w_dim)

    def forward(self, x: Tensor, image: Tensor, ws: Tensor, noise_mode: str) -> tuple[Tensor, Tensor]:
        """Doubles the resolution of x and of the image, using the block's three latents ws [B, 3, w_dim]."""
        x = self.conv0(x, ws[:, 0], noise_mode)
        x = self.conv1(x, ws[:, 1], noise_mode)
        # Bilinear upsampling by 2 is the [1, 3, 3, 1] filter. The image, a sum over resolutions, stays in fp32.
        image = F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
        return x, image + self.to_image(x, ws[:, 2]).to(image.dtype)


class SynthesisNetwork(nn.Module):
    """Skip generator that maps w to an image.

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
        # Two layers at 4 x 4 pixels, and three per block, the first of which shares the previous image layer's latent.
        self.num_ws: int = 2 + 2 * (len(sides) - 1)
        self.const = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.conv = StyledLayer(widths[0], widths[0], w_dim, 4, up=False, noise=noise)
        self.to_image = ToImage(widths[0], image_channels, w_dim)
        # Keyed by resolution, so that weights can be transferred to a network of another resolution.
        self.blocks = nn.ModuleDict(
            {
                str(sides[i]): SynthesisBlock(widths[i - 1], widths[i], image_channels, w_dim, sides[i], noise)
                for i in range(1, len(sides))
            }
        )

    def forward(self, w: Tensor, noise_mode: str = "const") -> Tensor:
        """Synthesises images.

        Args:
            w: latents [B, w_dim], or one latent per layer [B, num_ws, w_dim].
            noise_mode: "const" (the trained generator's fixed noise images), "random" or "none".

        Returns:
            Images [B, C, H, W], fp32, clamped to [-1, 1]; `unclamped` keeps the gradients of saturated pixels.
        """
        return self.unclamped(w, noise_mode).clamp(-1.0, 1.0)

    @torch.jit.export
    def unclamped(self, w: Tensor, noise_mode: str = "const") -> Tensor:
        """Synthesises images as `forward` does, without the final clamp, whose gradient is 0 at saturated pixels."""
        ws = w.unsqueeze(1).expand(-1, self.num_ws, -1) if w.dim() == 2 else w
        x = self.conv(self.const.expand(ws.shape[0], -1, -1, -1), ws[:, 0], noise_mode)
        image = self.to_image(x, ws[:, 1]).to(self.const.dtype)
        # The image layer of a block and the first styled layer of the next block share a latent, as in the paper.
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
        noise: whether the synthesis layers have noise inputs. A walk in W cannot control the details that noise adds,
            so generators for walks should have none.

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
        check_resolution(resolution)
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
        """Generates images from single vectors, as the checks of the MONAI Model Zoo and servers require.

        Args:
            x: z ~ N(0, I) concatenated with the one-hot label, [B, z_dim + num_classes].

        Returns:
            Images [B, C, H, W] in [-1, 1].
        """
        label = x[:, self.z_dim :].argmax(dim=1)
        return self.synthesis(self.mapping(x[:, : self.z_dim], label))
