"""Adaptive gradient clipping: its formula, its exceptions, and the wrappers."""

import copy

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.engine import clip_grad_adaptively_

AGC = dict(clipping=0.1, eps=1e-2)


def formula(weight, grad, clipping, eps):
    """Equation (3), one unit after the other."""
    made = []
    for w, g in zip(weight, grad, strict=True):
        most = clipping * max(w.square().sum().sqrt(), torch.tensor(eps))
        norm = g.square().sum().sqrt()
        made.append(g * most / norm if norm > most else g)
    return torch.stack(made)


def filled(*shape, factor=1.0, dtype=torch.float32):
    p = nn.Parameter(torch.randn(shape).to(dtype))
    p.grad = (factor * torch.randn(shape)).to(dtype)
    return p


@pytest.mark.parametrize('shape', [(5, 3), (4, 2, 3, 3), (3, 2, 5), (2, 1)])
def test_agrees_with_the_formula(shape):
    p = filled(*shape)
    with torch.no_grad():
        p.grad[0] *= 1e-3  # a unit below the threshold
        p[1] = 0  # a unit whose norm is below eps
    expected = formula(p.detach(), p.grad, **AGC)
    assert torch.equal(expected[0], p.grad[0])
    share = clip_grad_adaptively_([p], **AGC)
    torch.testing.assert_close(p.grad, expected)
    assert p.grad[1].norm().item() == pytest.approx(0.1 * 1e-2)
    assert share.item() == pytest.approx(1 - 1 / shape[0])
    ratios = p.grad.flatten(1).norm(dim=1) / p.flatten(1).norm(dim=1).clamp(min=1e-2)
    assert ratios.max() <= 0.1 * (1 + 1e-5)


def test_a_second_time_changes_nothing():
    p = filled(4, 3)
    clip_grad_adaptively_([p], **AGC)
    before = p.grad.clone()
    clip_grad_adaptively_([p], **AGC)
    torch.testing.assert_close(p.grad, before)


def test_biases_gains_and_missing_gradients_are_left():
    bias, scalar = filled(4, factor=1e3), filled(factor=1e3)
    frozen = nn.Parameter(torch.ones(2, 2))
    before = copy.deepcopy([bias.grad, scalar.grad])
    assert clip_grad_adaptively_([bias, scalar, frozen], **AGC) == 0
    assert torch.equal(bias.grad, before[0]) and torch.equal(scalar.grad, before[1])
    assert frozen.grad is None


def test_a_gradient_of_zeros_stays_zero_and_nan_stays_nan():
    p = filled(3, 2)
    p.grad[0], p.grad[1] = 0, float('nan')
    clip_grad_adaptively_([p], **AGC)
    assert p.grad[0].abs().max() == 0
    assert p.grad[1].isnan().all() and p.grad[2].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_norms_do_not_overflow_in_half_precision(dtype):
    p = filled(4, 64, factor=1e4, dtype=dtype)  # the norm overflows in fp16
    expected = formula(p.detach().double(), p.grad.double(), **AGC)
    clip_grad_adaptively_([p], **AGC)
    assert p.grad.dtype == dtype
    error = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(p.grad.double(), expected, rtol=error, atol=1e-6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = PWSConv2d(2, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        # Autocast of a CPU knows bf16 only, which is too coarse to compare with.
        with torch.autocast('cpu', enabled=False):
            return self.head(self.conv(x).mean((2, 3))).square().sum() * 100


@pytest.fixture(params=['AGCOptimWrapper', 'AmpAGCOptimWrapper'])
def wrap(request, monkeypatch):
    """Build a wrapper of both types; that for mixed precision on a CPU."""
    is_amp = request.param.startswith('Amp')
    if is_amp and not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('GradScaler of a CPU is new in torch 2.3')
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)

    def build(model, **cfg):
        optimizer = dict(type='SGD', lr=1.0)
        cfg = dict(type=request.param, optimizer=optimizer, **cfg)
        if is_amp:
            cfg.update(dtype='bfloat16')
        wrapper = build_optim_wrapper(model, cfg)
        if is_amp:
            wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
        return wrapper

    return build


def updates(model, wrapper, x):
    """What a step subtracts from each parameter: at a rate of 1 its gradient."""
    before = copy.deepcopy(dict(model.named_parameters()))
    with wrapper.optim_context(model):
        loss = model(x)
    wrapper.update_params(loss)
    return {n: before[n].detach() - p.detach() for n, p in model.named_parameters()}


def gradients(model, x):
    model = copy.deepcopy(model)
    model(x).backward()
    return {n: p.grad for n, p in model.named_parameters()}


def expected_of(model, x, excluded=()):
    """The gradients, clipped by the formula where AGC clips."""
    weights = dict(model.named_parameters())
    return {
        n: g
        if g.dim() < 2 or n in excluded
        else formula(weights[n].detach(), g, 0.01, 1e-3)
        for n, g in gradients(model, x).items()
    }


class TestWrappers:
    @pytest.mark.parametrize('excluded', [(), ('head.weight',)])
    @pytest.mark.parametrize('wrapped', [False, True])
    def test_step_takes_the_clipped_gradients(self, wrap, excluded, wrapped):
        model, x = Net(), torch.randn(2, 2, 5, 5)
        expected = expected_of(model, x, excluded)
        cfg = dict(agc=dict(exclude='head')) if excluded else {}
        wrapper = wrap(model, **cfg)
        model = nn.Sequential(model) if wrapped else model  # as DDP, in other names
        made = updates(model, wrapper, x)
        for name, grad in expected.items():
            name = f'0.{name}' if wrapped else name
            torch.testing.assert_close(made[name], grad, rtol=1e-4, atol=1e-6)
        hub = MessageHub.get_current_instance()
        share = hub.get_scalar('train/clipped_units').current()
        assert share == 1

    def test_clip_grad_clips_after_agc(self, wrap):
        model, x = Net(), torch.randn(2, 2, 5, 5)
        expected = expected_of(model, x)
        norm = torch.stack([g.norm() for g in expected.values()]).norm().item()
        clip_grad = dict(max_norm=norm / 2)
        made = updates(model, wrap(model, clip_grad=clip_grad), x)
        for name, grad in expected.items():
            torch.testing.assert_close(made[name], grad / 2, rtol=1e-4, atol=1e-6)
        hub = MessageHub.get_current_instance()
        logged = hub.get_scalar('train/grad_norm').current()
        assert logged == pytest.approx(norm, rel=1e-4)

    def test_gradients_of_parts_of_a_batch_are_clipped_together(self, wrap):
        model, x = Net(), torch.randn(4, 2, 5, 5)
        parts = Net()
        parts.load_state_dict(model.state_dict())
        # The loss is a sum, and MMEngine divides by the number of parts.
        whole = updates(model, wrap(model), x)
        wrapper = wrap(parts, accumulative_counts=2)
        wrapper.scale_loss = lambda loss: loss
        before = copy.deepcopy(dict(parts.named_parameters()))
        for part in x.split(2):
            updates(parts, wrapper, part)
        for name, p in parts.named_parameters():
            torch.testing.assert_close(
                (before[name] - p).detach(), whole[name], rtol=1e-4, atol=1e-6
            )

    def test_a_name_that_fits_nothing_is_an_error(self, wrap):
        model = Net()
        wrapper = wrap(model, agc=dict(exclude=['conv', 'haed']))
        with pytest.raises(ValueError, match="no parameter has 'haed' in its name"):
            wrapper.optim_context(model)

    def test_names_must_be_known_before_a_step(self, wrap):
        model = Net()
        wrapper = wrap(model, agc=dict(exclude='head'))
        with pytest.raises(RuntimeError, match='optim_context'):
            wrapper.update_params(model(torch.randn(1, 2, 5, 5)))

    @pytest.mark.parametrize(
        'agc, error, message',
        [
            (dict(lambda_=1), TypeError, "no argument 'lambda_'; it has .*clipping"),
            (
                dict(clipping=0),
                ValueError,
                'agc.clipping must be positive and finite, got 0',
            ),
            (dict(eps='a'), ValueError, "agc.eps must be positive and finite, got 'a'"),
        ],
    )
    def test_bad_input(self, wrap, agc, error, message):
        with pytest.raises(error, match=message):
            wrap(Net(), agc=agc)

    @pytest.mark.parametrize('scope', ['mmdet', 'mmengine'])
    def test_any_config_can_name_it(self, wrap, scope):
        """Also beside the constructor of PWS, in every scope."""
        init_default_scope(scope)
        model = Net()
        wrapper = wrap(model, constructor='PWSOptimWrapperConstructor')
        made = updates(model, wrapper, torch.randn(2, 2, 5, 5))
        assert made['conv.weight'].abs().max() > 0


@pytest.mark.parametrize('wrap', ['AmpAGCOptimWrapper'], indirect=True)
def test_overflow_skips_the_step(wrap):
    """GradScaler still finds gradients that are not finite."""
    model = Net()
    wrapper = wrap(model)
    made = updates(model, wrapper, torch.full((1, 2, 5, 5), torch.inf))
    assert not any(change.any() for change in made.values())
    assert wrapper.loss_scaler.get_scale() == 512
