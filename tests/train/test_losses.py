import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sp_rerank.errors import UsageError
from sp_rerank.train import losses
from sp_rerank.train.losses import Views


def random_views(pairs: int = 6, d: int = 5, seed: int = 0) -> tuple[Views, Views]:
    """Pairs and their copies, float64."""
    g = torch.Generator().manual_seed(seed)
    drawn = torch.nn.functional.normalize(torch.randn(5, pairs, d, generator=g, dtype=torch.float64), dim=-1)
    return Views(drawn[0], drawn[1], drawn[4]), Views(drawn[2], drawn[3], drawn[4])


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def deck(views: Views, copies: Views, labels: list[float], scale: float, stage: int, b=0.1, tau=0.05) -> float:
    """The deck's formulas, number by number: y^ as a softmax, L_ai as a ratio of exponentials, both stages."""
    terms, gaps = [], []
    for i, y in enumerate(labels):
        one, two, text = (part[i].tolist() for part in (views.first, views.second, views.text))
        copied_one, copied_two = copies.first[i].tolist(), copies.second[i].tolist()
        s1, s2 = scale * dot(one, text), scale * dot(two, text)
        y1 = math.exp(s1) / (math.exp(s1) + math.exp(s2))
        preference = -(y * math.log(y1) + (1 - y) * math.log(1 - y1))
        inter = 1 - dot(one, two)
        intra = ((1 - dot(one, copied_one)) + (1 - dot(two, copied_two))) / 2
        interference = -math.log(math.exp(inter) / (math.exp(inter) + math.exp(intra)))
        terms.append(preference + interference)
        gaps.append(0 if y == 0.5 else s1 - s2 if y > 0.5 else s2 - s1)
    if stage == 1:
        return sum(t / (1 + math.exp((gap - b) / tau)) for t, gap in zip(terms, gaps, strict=True)) / len(terms)
    whole = sum(math.exp(gap) for gap in gaps)
    return sum(math.exp(gap) / whole * t for t, gap in zip(terms, gaps, strict=True))


@pytest.mark.parametrize("stage", [1, 2])
def test_both_stages_are_those_of_the_deck(stage: int):
    views, copies = random_views()
    labels = [1.0, 0.0, 0.5, 1.0, 0.0, 1.0]
    label, scale = torch.tensor(labels, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    gap = views.gap(scale)
    terms = losses.preference_loss(gap, label)
    terms = terms + losses.anti_interference_loss(*losses.distances(views, copies, "embedding-cosine", scale))
    better = losses.better_minus_worse(gap, label)
    if stage == 1:
        ours = (losses.gate(better, 0.1, 0.05) * terms).mean()
    else:
        ours = (losses.softmax_weights(better, better, 1.0) * terms).sum()
    assert ours.item() == pytest.approx(deck(views, copies, labels, 3.0, stage), rel=1e-12)


def test_the_gate_opens_and_closes_as_metered_by_hand():
    """The figures of the deck's example, b = .1 and tau = .05."""
    gaps = torch.tensor([0.0, 0.1, 0.2, -0.2])
    expected = torch.tensor([0.8808, 0.5, 0.1192, 0.9975])
    torch.testing.assert_close(losses.gate(gaps, 0.1, 0.05), expected, rtol=0, atol=1e-4)


def test_preference_loss_by_hand():
    gap = torch.tensor([0.0, math.log(3), math.log(3), math.log(3)])
    label = torch.tensor([1.0, 1.0, 0.0, 0.5])
    expected = torch.tensor([math.log(2), math.log(4 / 3), math.log(4), (math.log(4 / 3) + math.log(4)) / 2])
    torch.testing.assert_close(losses.preference_loss(gap, label), expected)


def test_a_tie_is_learned_as_equal_and_its_gap_is_nought():
    gap = torch.tensor([2.0, -2.0], requires_grad=True)
    losses.preference_loss(gap, torch.full((2,), 0.5)).sum().backward()
    assert gap.grad is not None
    assert gap.grad[0] > 0 > gap.grad[1]
    assert losses.better_minus_worse(gap, torch.full((2,), 0.5)).tolist() == [0, 0]
    assert losses.better_minus_worse(gap, torch.tensor([1.0, 1.0])).tolist() == [2, -2]
    assert losses.better_minus_worse(gap, torch.tensor([0.0, 0.2])).tolist() == [-2, 2]


@pytest.mark.parametrize("kind", losses.DISTANCES)
def test_distances_by_hand(kind: str):
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    slanted = torch.tensor([[0.6, 0.8]])
    views, copies = Views(east, north, east), Views(slanted, north, east)
    intra, inter = losses.distances(views, copies, kind, torch.tensor(10.0))
    expected = {
        "embedding-cosine": (0.4 / 2, 1.0),
        "embedding-l2": (math.sqrt(0.8) / 2, math.sqrt(2)),
        "score-cosine": (0.4 / 2, 1.0),
        "score-logit": (4.0 / 2, 10.0),
    }
    assert (intra.item(), inter.item()) == pytest.approx(expected[kind])


def test_an_unknown_choice_is_refused():
    views, copies = random_views()
    with pytest.raises(UsageError, match="score-logit, got 'cosine'"):
        losses.distances(views, copies, "cosine", torch.tensor(1.0))
    with pytest.raises(UsageError, match="normalized, got 'std'"):
        losses.scaled_gaps(torch.zeros(1), torch.zeros(1), torch.tensor(1.0), "std")


@pytest.mark.parametrize("kind", losses.DISTANCES)
def test_gradients_are_those_of_finite_differences(kind: str):
    views, copies = random_views(3)
    label = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def loss(first: Tensor, second: Tensor, copied: Tensor, scale: Tensor) -> Tensor:
        own, perturbed = Views(first, second, views.text), Views(copied, copies.second, views.text)
        ai = losses.anti_interference_loss(*losses.distances(own, perturbed, kind, scale))
        return losses.preference_loss(own.gap(scale), label) + ai

    leaves = [part.clone().requires_grad_() for part in (views.first, views.second, copies.first)]
    assert torch.autograd.gradcheck(loss, (*leaves, scale))


def test_the_weights_have_no_gradient():
    gap = torch.tensor([1.0, -1.0], requires_grad=True)
    scale = torch.tensor(5.0, requires_grad=True)
    weights = [losses.gate(gap, 0.1, 0.05), losses.softmax_weights(gap, gap, 1.0)]
    weights += [scaled for how in losses.GAP_SCALES for scaled in losses.scaled_gaps(gap, gap, scale, how)]
    assert not any(tensor.requires_grad for tensor in weights)


@pytest.mark.parametrize("label", [0.0, 0.5, 1.0])
def test_large_scores_do_not_overflow(label: float):
    gap = torch.tensor([1e4, -1e4, 2e4, 0.0], requires_grad=True)
    labels = torch.full((4,), label)
    better = losses.better_minus_worse(gap, labels)
    weights = [losses.gate(better, 0.1, 0.05) / 4, losses.softmax_weights(better, better, 1.0)]
    loss = losses.preference_loss(gap, labels) + losses.anti_interference_loss(gap, -gap)
    for weight in weights:
        assert weight.isfinite().all()
        assert losses.effective_sample_size(weight).isfinite()
        (gradient,) = torch.autograd.grad((weight * loss).sum(), gap, retain_graph=True)
        assert gradient.isfinite().all()
    assert weights[1].sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kind", losses.DISTANCES)
def test_a_copy_that_is_the_image_itself_has_a_gradient(kind: str):
    """A crop of a plain picture is the picture: the norm of zero must not give NaN."""
    views, _ = random_views()
    first = views.first.clone().requires_grad_()
    own = Views(first, views.second, views.text)
    intra, inter = losses.distances(own, own, kind, torch.tensor(1.0, dtype=torch.float64))
    assert intra.abs().max() < 1e-15
    losses.anti_interference_loss(intra, inter).sum().backward()
    assert first.grad is not None
    assert first.grad.isfinite().all()


def test_stage_2_spans_everyone():
    gaps = torch.tensor([0.3, -0.5, 1.0, 2.0, 0.0])
    whole = losses.softmax_weights(gaps, gaps, 2.0)
    parts = torch.cat([losses.softmax_weights(part, gaps, 2.0) for part in gaps.split(2)])
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(whole, torch.softmax(gaps / 2.0, dim=0))


def test_gaps_are_scaled_as_asked():
    gap, global_batch, scale = torch.tensor([4.0]), torch.tensor([4.0, -2.0, 4.0]), torch.tensor(2.0)
    divisors = {"logit": 1.0, "cosine": 2.0, "normalized": math.sqrt((16 + 4 + 16) / 3)}
    for how, divisor in divisors.items():
        own, others = losses.scaled_gaps(gap, global_batch, scale, how)
        torch.testing.assert_close(own, gap / divisor)
        torch.testing.assert_close(others, global_batch / divisor)
    turned, _ = losses.scaled_gaps(-gap, -global_batch, scale, "normalized")
    torch.testing.assert_close(turned, -gap / divisors["normalized"])
    for part in losses.scaled_gaps(torch.zeros(2), torch.zeros(2), scale, "normalized"):
        assert part.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([0.25] * 4, 4.0), ([1.0, 0, 0, 0], 1.0), ([0.5, 0.5, 0, 0], 2.0), ([1e-30] * 3, 3.0), ([0.0, 0.0], 0.0)],
)
def test_effective_sample_size_by_hand(weights: list[float], expected: float):
    assert losses.effective_sample_size(torch.tensor(weights)).item() == pytest.approx(expected)
