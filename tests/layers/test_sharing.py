import copy
import importlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import load_config, run_on_two_processes
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel, replicate
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from pws_mmdet import PWSConv2d, fuse_pws, share_filters
from pws_mmdet.layers import WNConv2d, pws_conv, shared_filters


class Head(nn.Module):
    """A head that applies a PWS and a WN layer to feature maps of several sizes."""

    def __init__(self):
        super().__init__()
        pws = PWSConv2d(3, 4, 3, keep_mean=True)
        nn.init.normal_(pws.mean, std=0.1)
        self.convs = nn.Sequential(pws, nn.ReLU(), WNConv2d(4, 3, 1))
        self.region = lambda function, x: function(x)

    def forward(self, maps):
        return [self.region(self.convs, x) for x in maps]


def maps():
    return [torch.randn(2, 3, size, size) for size in (8, 6, 4)]


@pytest.fixture
def counted(monkeypatch):
    """A list with an entry for each call of standardize_weight."""
    calls = []

    def count(*args):
        calls.append(args)
        return standardize(*args)

    standardize = pws_conv.standardize_weight
    monkeypatch.setattr(pws_conv, 'standardize_weight', count)
    return calls


def outputs_and_gradients(head, x):
    head.zero_grad()
    y = head(x)
    torch.cat([out.flatten() for out in y]).square().sum().backward()
    return [*y, *(p.grad.clone() for p in head.parameters())]


def assert_same(made, wanted):
    for a, b in zip(made, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_filters_are_computed_once_in_a_forward_pass(counted):
    head, x = Head(), maps()
    wanted = outputs_and_gradients(head, x)
    assert len(counted) == 3
    share_filters(share_filters(head))
    assert_same(outputs_and_gradients(head, x), wanted)
    assert len(counted) == 4
    head.convs(x[0])  # without the head's forward pass nothing is shared
    head.convs(x[0])
    assert len(counted) == 6


def test_no_filters_are_kept_after_the_pass(counted):
    """The next pass uses changed parameters, even if they were changed by .data."""
    head, x = share_filters(Head()), maps()
    before = head(x)[0]
    head.convs[0].weight.data.normal_()
    assert not torch.equal(head(x)[0], before)
    assert len(counted) == 2


def test_gradients_accumulate():
    head, x = Head(), maps()
    outputs_and_gradients(head, x)
    wanted = [2 * p.grad for p in head.parameters()]
    head.zero_grad()
    share_filters(head)
    for _ in range(2):
        torch.cat([y.flatten() for y in head(x)]).square().sum().backward()
    assert_same([p.grad for p in head.parameters()], wanted)


def test_shared_filters_as_a_context(counted):
    conv, x = PWSConv2d(3, 4, 3), maps()[0]
    with shared_filters():
        y = conv(x)
        assert torch.equal(conv(x), y) and len(counted) == 1
        with shared_filters():
            conv(x)
        assert len(counted) == 2
        conv(x)
        assert len(counted) == 2
    conv(x)
    assert len(counted) == 3


@pytest.mark.parametrize('kind', [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_ends_the_sharing(kind, counted):
    head, x = share_filters(Head()), maps()

    def region(function, x):
        function(x)
        raise kind

    head.region = region
    with pytest.raises(kind):
        head(x)
    head.convs(x[0])
    head.convs(x[0])
    assert len(counted) == 3


def test_threads_do_not_share_with_each_other(counted):
    """The thread that enters the head first leaves it while the other is in it."""
    head, x = share_filters(Head()), maps()
    wanted = head(x)
    counted.clear()
    events = first_is_in, _, first_is_out = [threading.Event() for _ in range(3)]
    is_first = threading.local()

    def region(function, x):
        entered, go_on = events[:2] if is_first.value else events[1:]
        entered.set()
        assert go_on.wait(timeout=60)
        return function(x)

    def first():
        is_first.value = True
        y = head(x)
        first_is_out.set()
        return y

    def second():
        is_first.value = False
        assert first_is_in.wait(timeout=60)
        return head(x)

    head.region = region
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(function) for function in (first, second)]
    for y in made:
        assert_same(y.result(), wanted)
    assert len(counted) == 2  # one for each


def test_replicas_of_data_parallel(counted, monkeypatch):
    """Each replica shares filters of its own parameters, in its own thread."""
    monkeypatch.setattr(  # a CPU is one device
        importlib.import_module('torch.nn.parallel.replicate'),
        '_broadcast_coalesced_reshape',
        lambda tensors, devices, detach: [[t + i for t in tensors] for i in devices],
    )
    head, x = Head(), maps()
    singles = [copy.deepcopy(head) for _ in range(2)]
    for p in singles[1].state_dict().values():  # also the mean, a buffer
        p.add_(1)
    replicas = replicate(share_filters(head), [0, 1])
    both_are_in = threading.Barrier(2)

    def region(function, x):
        both_are_in.wait(timeout=60)
        return function(x)

    for replica in replicas:
        replica.region = region
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda replica: replica(x), replicas))
    assert len(counted) == 2  # one for each
    wanted = [single(x) for single in singles]
    for outputs in (made, wanted):
        torch.stack([y.square().sum() for ys in outputs for y in ys]).sum().backward()
    for ys, single_ys in zip(made, wanted, strict=True):
        assert_same(ys, single_ys)
    pairs = zip(*(single.parameters() for single in singles), strict=True)
    assert_same(
        [p.grad for p in head.parameters()], [p.grad + q.grad for p, q in pairs]
    )


def test_replicas_keep_a_forward_that_was_set_on_the_module():
    head = Head()
    head.forward = lambda x: x
    replica = share_filters(head)._replicate_for_data_parallel()
    assert replica(head) is head


def test_pruned_filters(counted):
    head, x = Head(), maps()
    prune.random_unstructured(head.convs[0], 'weight', 0.5)
    wanted = outputs_and_gradients(head, x)
    counted.clear()
    assert_same(outputs_and_gradients(share_filters(head), x), wanted)
    assert len(counted) == 1


def test_filters_without_gradients_are_not_shared_with_gradients():
    conv, x = PWSConv2d(3, 4, 3), maps()[0]
    with shared_filters():
        with torch.no_grad():
            conv(x)
        y = conv(x)
    y.sum().backward()
    assert conv.weight.grad is not None and conv.alpha.grad is not None


@pytest.mark.parametrize('reparametrize', [None, weight_norm, spectral_norm])
def test_filters_of_other_parameters_are_computed_again(reparametrize):
    conv, x = PWSConv2d(3, 4, 3).eval(), maps()[0]
    if reparametrize:
        reparametrize(conv)
    other = {
        name: torch.randn_like(p)
        for name, p in conv.named_parameters()
        if 'weight' in name
    }
    wanted = functional_call(conv, other, x)
    with shared_filters():
        plain = conv(x)
        torch.testing.assert_close(functional_call(conv, other, x), wanted)
        torch.testing.assert_close(conv(x), plain)


@pytest.mark.parametrize('grad', [True, False])
@pytest.mark.parametrize('name', ['weight', 'alpha', 'mean'])
def test_filters_of_parameters_that_changed_in_place_are_computed_again(
    counted, name, grad
):
    conv, x = PWSConv2d(3, 4, 3, keep_mean=True), maps()[0]
    new = torch.randn_like(getattr(conv, name))
    wanted = functional_call(conv, {name: new}, x)
    counted.clear()
    with shared_filters(), torch.set_grad_enabled(grad):
        conv(x)
        with torch.no_grad():
            getattr(conv, name).copy_(new)
        torch.testing.assert_close(conv(x), wanted)
        conv(x)
    assert len(counted) == 2


@torch.inference_mode()
def test_parameters_without_versions(counted):
    """Parameters of a model that was built in inference mode have no version."""
    head, x = share_filters(Head()), maps()
    assert_same(head(x), [head.convs(m) for m in x])
    assert len(counted) == 4


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('regions', ['all', 'first', 'rest'])
def test_activation_checkpointing(reentrant, regions):
    head, x = Head(), [m.requires_grad_() for m in maps()]
    wanted = outputs_and_gradients(head, x)
    count = iter(range(100))

    def region(function, x):
        i = next(count)
        if regions == 'all' or (i == 0) == (regions == 'first'):
            return checkpoint(function, x, use_reentrant=reentrant)
        return function(x)

    head.region = region
    assert_same(outputs_and_gradients(share_filters(head), x), wanted)


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_backward_pass_in_the_context_computes_again(reentrant):
    conv, x = PWSConv2d(3, 4, 3), [m.requires_grad_() for m in maps()]

    def gradients():
        conv.zero_grad()
        y = [conv(x[0]), checkpoint(conv, x[1], use_reentrant=reentrant), conv(x[2])]
        torch.cat([out.flatten() for out in y]).square().sum().backward()
        return [p.grad.clone() for p in conv.parameters()]

    wanted = gradients()
    with shared_filters():
        assert_same(gradients(), wanted)


def test_copies(counted):
    """Copies share their own filters. Fused copies compute none."""
    head, x = share_filters(Head()), maps()
    head.region = None
    again = pickle.loads(pickle.dumps(head))
    for other in (copy.deepcopy(head), again, share_filters(copy.deepcopy(again))):
        other.region = Head().region
        other.convs[0].weight.data.normal_()
        counted.clear()
        made = other(x)
        assert len(counted) == 1
        unshared = [other.convs(m) for m in x]
        assert_same(made, unshared)
        assert_same(fuse_pws(other)(x), unshared)


def test_shallow_copies_run_their_own_layers(counted):
    head, x = share_filters(Head()), maps()
    other = copy.copy(head)
    other._modules = dict(head._modules, convs=copy.deepcopy(head.convs))
    other.convs[0].weight.data.normal_()
    counted.clear()
    made = other(x)
    assert len(counted) == 1
    assert_same(made, [other.convs(m) for m in x])
    assert not torch.equal(made[0], head(x)[0])


def test_sharing_keeps_class_repr_and_attributes():
    head = share_filters(Head())
    assert isinstance(head, Head) and repr(head) == repr(Head())
    assert type(copy.deepcopy(head)) is type(head)
    assert 'forward' not in vars(head)


@pytest.mark.parametrize('first', ['compiled', 'shared'])
def test_a_fused_copy_of_a_compiled_head_has_its_own_filters(first):
    head, x = Head(), maps()
    steps = [
        lambda: setattr(head, 'forward', torch.compile(head.forward, backend='eager')),
        lambda: share_filters(head),
    ]
    for step in steps if first == 'compiled' else steps[::-1]:
        step()
    wanted = head(x)
    share_filters(head)  # changes nothing
    assert_same(head(x), wanted)
    fused = fuse_pws(head)
    head.convs[0].weight.data.normal_()
    assert_same(fused(x), wanted)


def test_autocast():
    head, x = Head(), maps()
    with torch.autocast('cpu', torch.bfloat16):
        wanted = outputs_and_gradients(head, x)
        made = outputs_and_gradients(share_filters(head), x)
    assert made[0].dtype == torch.bfloat16
    for a, b in zip(made, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_compiled():
    head, x = Head(), maps()
    wanted = outputs_and_gradients(head, x)
    compiled = torch.compile(share_filters(head), backend='aot_eager')
    assert_same(outputs_and_gradients(compiled, x), wanted)


def worker(rank):
    torch.manual_seed(0)
    head, x = Head(), maps()
    own = [2 * m[rank : rank + 1] for m in x]  # half of the images each
    wrapped = DistributedDataParallel(share_filters(head))
    y = wrapped(own)
    torch.cat([out.flatten() for out in y]).sum().backward()
    mean = [p.grad.clone() for p in head.parameters()]
    single = Head()
    single.load_state_dict(head.state_dict())
    both = [2 * m for m in x]
    torch.cat([out.flatten() for out in single(both)]).sum().div(2).backward()
    assert_same(mean, [p.grad for p in single.parameters()])


def test_two_processes():
    run_on_two_processes(worker)


def test_retinanet(counted):
    """A step has the same gradients, and standardizes each filter of the head once."""
    cfg = load_config('configs/retinanet_r50_fpn_pws_1x.py').model
    cfg.backbone.update(depth=18, base_channels=8, init_cfg=None, frozen_stages=-1)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    cfg.bbox_head.update(in_channels=8, feat_channels=8)
    model = MODELS.build(cfg)
    model.init_weights()
    inputs = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=80)
    inputs = model.data_preprocessor(inputs, True)

    def step():
        counted.clear()
        model.zero_grad()
        loss, _ = model.parse_losses(model(**inputs, mode='loss'))
        loss.backward()
        return len(counted), [p.grad.clone() for p in model.parameters()]

    before, wanted = step()
    share_filters(model.bbox_head)
    after, made = step()
    assert before - after == 8 * 4  # eight convolutions, five levels
    assert_same(made, wanted)
