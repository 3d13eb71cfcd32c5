"""A gradient to the pixels: that of the score itself, and of a score that is nearly the exact one."""

from collections.abc import Callable

import pytest
import torch

from sp_rerank.errors import UsageError
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.preprocess import Preprocess

ROUNDING = 2.5 / 255
"""Half a step of 8 bits at the start and after each pass, each perhaps widened by the next."""

SIZES = [(64, 64), (40, 50), (50, 40), (150, 97), (31, 200)]
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
GEOMETRIES = [
    Preprocess(64, **PLAIN),
    Preprocess(64, **PLAIN, crop="floor"),
    Preprocess(64, **PLAIN, geometry="squash"),
    Preprocess(64, **PLAIN, geometry="longest_edge_pad"),
    Preprocess(64, **PLAIN, geometry="longest_edge_pad", antialias=False),
]


def noise(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height * width))


@pytest.mark.parametrize("preprocess", GEOMETRIES, ids=lambda p: f"{p.geometry}-{p.crop}-{p.antialias}")
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_exact_path_but_for_rounding(preprocess: Preprocess, size: tuple[int, int]):
    images = noise(*size)
    exact, smooth = preprocess(images), preprocess(images.clone().requires_grad_(), differentiable=True)
    assert (smooth - exact).abs().max() <= ROUNDING
    assert smooth.requires_grad and not exact.requires_grad


@pytest.mark.parametrize("preprocess", GEOMETRIES, ids=lambda p: f"{p.geometry}-{p.crop}-{p.antialias}")
def test_the_gradient_is_that_of_finite_differences(preprocess: Preprocess):
    images = (0.2 + 0.6 * noise(37, 81, 1)).requires_grad_()  # away from where it is clipped
    weights = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (preprocess(images, differentiable=True) * weights).sum().backward()
    assert images.grad is not None
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        direction = torch.randn(images.shape, generator=generator)
        step = 1e-3 * direction
        with torch.no_grad():
            ahead, behind = (preprocess(images + s, differentiable=True) for s in (step, -step))
        slope = ((ahead.double() - behind.double()) * weights).sum() / 2e-3
        assert (images.grad * direction).sum().item() == pytest.approx(slope.item(), rel=2e-3, abs=2e-2)


def test_what_is_clipped_has_no_gradient():
    images = torch.tensor([-0.5, 0.5, 1.5]).expand(1, 3, 3, 3).clone().requires_grad_()
    Preprocess(3, **PLAIN)(images, differentiable=True).sum().backward()
    assert images.grad is not None and images.grad[0, 0].tolist() == [[0.0, 1.0, 0.0]] * 3


def test_only_the_image_that_is_not_finite_is_nan():
    images = noise(40, 50)
    images[0, 0, 0, 0] = torch.inf
    square = Preprocess(64)(images.requires_grad_(), differentiable=True)
    assert square.isnan().flatten(1).all(dim=1).tolist() == [True, False]
    square[1].sum().backward()
    assert images.grad is not None and images.grad.isfinite().all()


def test_a_gradient_to_pil_images_is_refused(encoder: DualEncoder, pictures):
    with pytest.raises(UsageError, match="expected a tensor, for a gradient"):
        encoder("a lemon", pictures, differentiable=True)


def test_scores_are_nearly_the_exact_ones_and_have_the_gradient(make_encoder: Callable[..., DualEncoder]):
    encoder = make_encoder()
    images = noise(80, 60, 5).requires_grad_()
    exact, scores = encoder.score("a lemon", images), encoder("a lemon", images, differentiable=True)
    assert (scores - exact).abs().max() <= 0.05 * exact.std()
    scores.sum().backward()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)) * 1e-3
    with torch.no_grad():
        ahead, behind = (encoder("a lemon", images + s, differentiable=True) for s in (direction, -direction))
    slope, expected = ((ahead - behind).double().sum() / 2).item(), (images.grad * direction).sum().item()  # pyright: ignore
    assert slope == pytest.approx(expected, rel=0.05)
