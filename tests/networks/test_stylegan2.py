# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The networks against the papers' formulas, computed here in the papers' own way."""

from __future__ import annotations

import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from bundle.networks.stylegan2 import (
    RESOLUTIONS,
    Discriminator,
    EqualizedConv2d,
    EqualizedLinear,
    Generator,
    MappingNetwork,
    ModulatedConv2d,
    SynthesisNetwork,
    channels_at,
    minibatch_stddev,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small_generator(resolution: int = 32, noise: bool = False, image_channels: int = 1) -> Generator:
    return Generator(resolution, image_channels, 2, 8, 6, channel_base=256, channel_max=16, noise=noise)


def grouped_convolution(x: Tensor, weight: Tensor, style: Tensor, up: bool, demodulate: bool) -> Tensor:
    """Equations 1 and 3 of Karras et al., CVPR 2020: one set of weights for each sample, applied by groups."""
    batch, in_channels, height, width = x.shape
    out_channels, _, size, _ = weight.shape
    weights = weight / math.sqrt(in_channels * size * size)  # equalised learning rate
    weights = style.view(batch, 1, in_channels, 1, 1) * weights  # equation 1: w'_ijk = s_i w_ijk
    if demodulate:  # equation 3: w''_ijk = w'_ijk / sqrt(sum_ik w'_ijk^2 + eps)
        weights = weights / torch.sqrt((weights**2).sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    padding = size // 2
    if up:  # zeros between the pixels, then a full convolution with the kernel turned round
        spread = x.new_zeros(batch, in_channels, 2 * height - 1, 2 * width - 1)
        spread[:, :, ::2, ::2] = x
        x, weights, padding = spread, weights.flip(3, 4), size - 1
    out = F.conv2d(
        x.reshape(1, -1, *x.shape[2:]),
        weights.reshape(-1, in_channels, size, size),
        padding=padding,
        groups=batch,
    )
    out = out.view(batch, out_channels, *out.shape[2:])
    if up:  # the low-pass filter, with the gain of 4 that the inserted zeros took
        taps = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8.0 * 2.0
        for view in (taps.view(1, 1, 4, 1), taps.view(1, 1, 1, 4)):
            out = F.conv2d(
                out,
                view.expand(out_channels, *view.shape[1:]),
                padding=(view.shape[2] // 4, view.shape[3] // 4),
                groups=out_channels,
            )
    return out


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("up", [True, False])
def test_modulating_activations_equals_modulating_weights(up: bool, demodulate: bool) -> None:
    layer = ModulatedConv2d(12, 10, 3, up=up, demodulate=demodulate)
    x, style = torch.randn(5, 12, 7, 6), torch.randn(5, 12)
    out = layer(x, style)
    assert out.shape == (5, 10, 14 if up else 7, 12 if up else 6)
    torch.testing.assert_close(out, grouped_convolution(x, layer.weight, style, up, demodulate), rtol=1e-5, atol=1e-5)


def test_image_layer_equals_modulated_weights() -> None:
    layer = ModulatedConv2d(12, 3, 1, demodulate=False)
    x, style = torch.randn(4, 12, 5, 5), torch.randn(4, 12)
    torch.testing.assert_close(
        layer(x, style), grouped_convolution(x, layer.weight, style, False, False), rtol=1e-5, atol=1e-5
    )


def test_modulation_is_per_sample() -> None:
    layer = ModulatedConv2d(6, 4, 3)
    x, style = torch.randn(3, 6, 5, 5), torch.randn(3, 6)
    alone = torch.cat([layer(x[i : i + 1], style[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(layer(x, style), alone)


def test_demodulation_is_computed_in_fp32_under_autocast() -> None:
    layer = ModulatedConv2d(64, 8, 3)
    x, style = torch.randn(2, 64, 8, 8), torch.randn(2, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x, style)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x, style), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_demodulated_output_has_unit_variance(scale: float) -> None:
    layer = ModulatedConv2d(32, 16, 3)
    with torch.no_grad():
        layer.weight.mul_(5.0)  # whatever the weights' own size is
        out = layer(torch.randn(8, 32, 34, 34), torch.randn(8, 32) * scale)[:, :, 1:-1, 1:-1]  # away from the zeros
    # Of each feature map of each sample; 1024 correlated values each leave a standard error of about 0.05.
    assert abs(float(out.var()) - 1.0) < 0.02
    assert float((out.var(dim=(2, 3)) - 1.0).abs().max()) < 0.35


def test_equalised_layers_store_unit_variance_and_scale_at_run_time() -> None:
    conv, linear = EqualizedConv2d(32, 64, 3), EqualizedLinear(512, 256, lr_multiplier=0.01)
    assert abs(float(conv.weight.detach().std()) - 1.0) < 0.02
    assert abs(float(linear.weight.detach().std()) - 100.0) < 2.0
    assert abs(float(conv(torch.randn(4, 32, 16, 16))[:, :, 1:-1, 1:-1].detach().var()) - 1.0) < 0.1
    assert abs(float(linear(torch.randn(64, 512)).detach().var()) - 1.0) < 0.1
    x = torch.randn(2, 32, 6, 6)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight / math.sqrt(32 * 9), padding=1))


def test_lr_multiplier_scales_what_a_step_of_adam_moves() -> None:
    x, moved = torch.randn(16, 8), []
    for multiplier in (1.0, 0.01):
        layer = EqualizedLinear(8, 8, bias=0.5, lr_multiplier=multiplier)
        before = (layer(x * 0) + layer(x)).detach()
        torch.testing.assert_close(layer(x * 0).detach(), torch.full((16, 8), 0.5))
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        layer(x).sum().backward()
        optimizer.step()
        moved.append(float((layer(x * 0) + layer(x) - before).detach().abs().mean()))
    assert moved[1] == pytest.approx(0.01 * moved[0], rel=0.05)


def test_downsampling_keeps_a_constant_and_commutes_with_subsampling() -> None:
    pointwise = EqualizedConv2d(3, 4, 1, bias=False, down=True)
    x = torch.randn(2, 3, 8, 8)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    kernel = torch.outer(taps, taps).expand(3, 1, 4, 4)
    filtered = F.conv2d(x, kernel, padding=1, groups=3)[:, :, ::2, ::2]
    torch.testing.assert_close(pointwise(x), F.conv2d(filtered, pointwise.weight / math.sqrt(3)))
    inside = pointwise(torch.ones(1, 3, 8, 8))[0, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, (pointwise.weight.sum(dim=1) / math.sqrt(3)).expand(4, 2, 2).contiguous())


def test_both_kinds_of_downsampling_look_at_the_same_pixels() -> None:
    """The two branches of a discriminator's block are added: a step must appear in the same place in both."""
    plain, pointwise = EqualizedConv2d(1, 1, 3, bias=False, down=True), EqualizedConv2d(1, 1, 1, bias=False, down=True)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([[0.0, 0, 0], [0, 3.0, 0], [0, 0, 0]]))
        pointwise.weight.fill_(1.0)
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(plain(x), pointwise(x))


def test_minibatch_stddev_by_hand() -> None:
    x = torch.tensor([0.0, 10.0, 2.0, 10.0, 4.0, 10.0, 6.0, 10.0]).view(8, 1, 1, 1).expand(8, 3, 2, 2)
    out = minibatch_stddev(x, group_size=4)
    assert out.shape == (8, 4, 2, 2)
    assert torch.equal(out[:, :3], x)
    # Groups are 0, 2, 4, 6 (deviation sqrt(5)) and four times 10 (deviation 0, but for the 1e-8 under the root).
    expected = torch.tensor([math.sqrt(5.0), 1e-4] * 4).view(8, 1, 1).expand(8, 2, 2)
    torch.testing.assert_close(out[:, 3], expected)


def test_minibatch_stddev_averages_over_features_and_pixels() -> None:
    x = torch.randn(4, 3, 5, 5)
    expected = torch.sqrt(((x - x.mean(dim=0)) ** 2).mean(dim=0)).mean()
    torch.testing.assert_close(minibatch_stddev(x)[:, 3], expected.expand(4, 5, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (2, 2), (5, 1), (6, 3), (12, 4)])
def test_minibatch_stddev_takes_any_batch(batch: int, size: int) -> None:
    x = torch.randn(batch, 1, 2, 2)
    feature = minibatch_stddev(x)[:, 1, 0, 0]
    members = x[:: batch // size]  # the first sample's group
    expected = (members.var(dim=0, correction=0) + 1e-8).sqrt().mean()
    torch.testing.assert_close(feature[0], expected)
    assert len(set(feature.tolist())) <= batch // size


def test_gradients_of_modulated_convolutions() -> None:
    for up in (False, True):
        layer = ModulatedConv2d(3, 2, 3, up=up).double()
        x = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
        style = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        weight = layer.weight.detach().clone().requires_grad_(True)

        def call(x: Tensor, style: Tensor, weight: Tensor, layer: ModulatedConv2d = layer) -> Tensor:
            return torch.func.functional_call(layer, {"weight": weight}, (x, style))

        assert gradcheck(call, (x, style, weight))


def test_first_and_second_gradients_of_the_discriminators_convolutions() -> None:
    for kernel_size, down in ((3, False), (3, True), (1, True)):
        layer = EqualizedConv2d(2, 2, kernel_size, down=down).double()
        x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
        weight = layer.weight.detach().clone().requires_grad_(True)
        bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

        def call(x: Tensor, weight: Tensor, bias: Tensor, layer: EqualizedConv2d = layer) -> Tensor:
            return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

        assert gradcheck(call, (x, weight, bias))
        assert gradgradcheck(call, (x, weight, bias))


def test_first_and_second_gradients_of_minibatch_stddev() -> None:
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(minibatch_stddev, (x,))
    assert gradgradcheck(minibatch_stddev, (x,))


def test_first_and_second_gradients_of_whole_networks() -> None:
    discriminator = Discriminator(32, channel_base=64, channel_max=4).double()
    label = torch.tensor([0, 1])
    image = torch.randn(2, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda image: discriminator(image, label), (image,), fast_mode=True)
    assert gradgradcheck(lambda image: discriminator(image, label), (image,), fast_mode=True)
    generator = small_generator().double()
    z = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda z: generator.synthesis.unclamped(generator.mapping(z, label)), (z,), fast_mode=True)


def test_projection_term() -> None:
    discriminator = Discriminator(32, num_classes=3, channel_base=128, channel_max=8)
    image = torch.randn(4, 1, 32, 32)
    logits = [discriminator(image, torch.full((4,), label)) for label in range(3)]
    features: list[Tensor] = []
    handle = discriminator.fc.register_forward_hook(lambda module, inputs, output: features.append(output))
    discriminator(image, torch.zeros(4, dtype=torch.int64))
    handle.remove()
    phi = F.leaky_relu(features[0], 0.2) * math.sqrt(2.0)
    # D(x, y) = psi(phi(x)) + <embed(y), phi(x)>, the inner product in units of its standard deviation.
    for label in range(3):
        projected = phi @ discriminator.embed.weight[label] / math.sqrt(8)
        torch.testing.assert_close(logits[label], discriminator.out(phi).squeeze(1) + projected)


def test_projection_alone_depends_on_the_label() -> None:
    discriminator = Discriminator(32, channel_base=128, channel_max=8)
    image = torch.randn(2, 1, 32, 32)
    zero, one = torch.tensor([0, 0]), torch.tensor([1, 1])
    assert not torch.allclose(discriminator(image, zero), discriminator(image, one))
    torch.nn.init.zeros_(discriminator.embed.weight)
    assert torch.equal(discriminator(image, zero), discriminator(image, one))


def test_mapping_moves_latents_away_from_the_mean_of_their_class() -> None:
    mapping = MappingNetwork(8, 6, 2, 2)
    z, label = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    assert torch.equal(mapping(z, label), mapping.unspread(z, label))
    mapping.mean.copy_(torch.randn(2, 6))
    mapping.spread.copy_(torch.tensor([1.0, 1.5]))
    f, w = mapping.unspread(z, label), mapping(z, label)
    torch.testing.assert_close(w[0::2], f[0::2])
    torch.testing.assert_close(w[1::2], mapping.mean[1] + 1.5 * (f[1::2] - mapping.mean[1]))


def test_mapping_depends_on_z_and_label_and_not_on_the_length_of_z() -> None:
    mapping = MappingNetwork(8, 6, 2, 2)
    z, label = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    w = mapping(z, label)
    assert w.shape == (4, 6)
    torch.testing.assert_close(mapping(z * 7.0, label), w)
    assert not torch.allclose(mapping(z, 1 - label), w)
    assert not torch.allclose(mapping(-z, label), w)


@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_every_resolution_builds(resolution: int, image_channels: int) -> None:
    generator = Generator(
        resolution, image_channels, 3, 8, 6, channel_base=2 * resolution, channel_max=4, noise=resolution == 32
    )
    discriminator = Discriminator(resolution, image_channels, 3, channel_base=2 * resolution, channel_max=4)
    label = torch.tensor([0, 2])
    with torch.no_grad():
        w = generator.mapping(torch.randn(2, 8), label)
        image = generator.synthesis(w)
        logits = discriminator(image, label)
    assert w.shape == (2, 6)
    assert generator.synthesis.num_ws == 2 * int(math.log2(resolution)) - 2
    assert image.shape == (2, image_channels, resolution, resolution)
    assert image.dtype == torch.float32
    assert float(image.abs().max()) <= 1.0
    assert logits.shape == (2,)


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_other_resolutions_are_refused(network: type[Generator] | type[Discriminator]) -> None:
    with pytest.raises(ValueError, match=r"100 is not one of .* nearest is 128"):
        network(100)


def test_width_rule() -> None:
    assert [channels_at(side, 2048, 128) for side in (4, 16, 32, 64, 128)] == [128, 128, 64, 32, 16]


def test_prototype_sizes_are_kept() -> None:
    counts = [
        sum(parameter.numel() for parameter in network.parameters()) for network in (Generator(64), Discriminator(64))
    ]
    assert counts[0] == pytest.approx(1.1e6, rel=0.1)
    assert counts[1] == pytest.approx(1.2e6, rel=0.1)


def test_forward_joins_mapping_and_synthesis() -> None:
    generator = small_generator()
    z, label = torch.randn(3, 8), torch.tensor([1, 0, 1])
    x = torch.cat([z, F.one_hot(label, 2).float()], dim=1)
    assert torch.equal(generator(x), generator.synthesis(generator.mapping(z, label)))


def test_one_latent_per_layer() -> None:
    synthesis = small_generator().synthesis
    w = torch.randn(2, 6)
    ws = w.unsqueeze(1).repeat(1, synthesis.num_ws, 1)
    torch.testing.assert_close(synthesis(ws), synthesis(w))
    for layer in range(synthesis.num_ws):
        other = ws.clone()
        other[:, layer] += 1.0
        assert not torch.equal(synthesis.unclamped(other), synthesis.unclamped(ws)), f"latent {layer} reaches no layer"


def test_clamp() -> None:
    synthesis = small_generator().synthesis
    with torch.no_grad():
        synthesis.to_image.bias.fill_(0.9)
    w = torch.randn(4, 6)
    unclamped = synthesis.unclamped(w)
    assert float(unclamped.detach().max()) > 1.0
    assert torch.equal(synthesis(w), unclamped.clamp(-1.0, 1.0))


def test_noise_modes() -> None:
    generator = small_generator(noise=True)
    synthesis, w = generator.synthesis, torch.randn(2, 6)
    # Strengths start at zero: noise is learned.
    assert torch.equal(synthesis(w, "random"), synthesis(w, "none"))
    for name, value in synthesis.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(value, 0.1)
    assert torch.equal(synthesis(w, "const"), synthesis(w))
    assert torch.equal(synthesis(w, "const"), synthesis(w, "const"))
    assert not torch.equal(synthesis(w, "const"), synthesis(w, "none"))
    assert not torch.equal(synthesis(w, "random"), synthesis(w, "random"))
    same = synthesis(w[:1].expand(2, -1), "random")
    assert not torch.equal(same[0], same[1])


def test_without_noise_inputs_nothing_is_random() -> None:
    synthesis, w = small_generator(noise=False).synthesis, torch.randn(2, 6)
    assert not [name for name in synthesis.state_dict() if "noise" in name]
    for mode in ("random", "none"):
        assert torch.equal(synthesis(w, mode), synthesis(w, "const"))


@pytest.mark.parametrize("noise", [True, False])
def test_torchscript_equals_eager(noise: bool) -> None:
    generator = small_generator(noise=noise).eval().requires_grad_(False)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(generator), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    x = torch.cat([torch.randn(3, 8), torch.eye(2)[[0, 1, 0]]], dim=1)
    torch.testing.assert_close(scripted(x), generator(x))
    w = torch.randn(2, 6)
    torch.testing.assert_close(scripted.synthesis.unclamped(w), generator.synthesis.unclamped(w))


def test_skip_generator_sums_images_of_all_resolutions() -> None:
    """With every image layer but the first silenced, the image is the 4 x 4 one, enlarged."""
    synthesis: SynthesisNetwork = small_generator().synthesis
    for name, value in synthesis.named_parameters():
        if name.startswith("blocks.") and ".to_image." in name and "affine" not in name:
            torch.nn.init.zeros_(value)
    w = torch.randn(2, 6)
    with torch.no_grad():
        image = synthesis.to_image(synthesis.conv(synthesis.const.expand(2, -1, -1, -1), w, "none"), w)
        for _ in range(3):
            image = F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
        torch.testing.assert_close(synthesis.unclamped(w), image)
