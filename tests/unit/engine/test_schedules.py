"""The schedules against plain loops over whole-model passes, and what they promise about bits and memory."""

import gc
import weakref

import pytest
import torch
from greenlet import getcurrent, greenlet

from crosscal.calibration import InputStats
from crosscal.engine.block import _BlockWork
from crosscal.engine.driver import compress
from crosscal.errors import InputError
from crosscal.methods import magnitude, sparsegpt, wanda
from crosscal.methods.allocation import Owl
from crosscal.models import decoder_blocks, linear_layers
from crosscal.types import Grid, LowRank, NofM, SparseGrid, Unstructured
from tests.unit.families import FAMILIES, random_windows, tiny_model

QUIET = {"progress": False}
HALF = Unstructured(0.5)
TEXT = {"a": random_windows(), "b": random_windows(seed=1)}
TARGETS = {
    "magnitude": HALF,
    "wanda": HALF,
    "sparsegpt": SparseGrid(NofM(2, 4), Grid(4)),
    "dpruner": HALF,
    "rtn": Grid(4),
    "gptq": Grid(4),
    "awq": Grid(4),
    "svd": LowRank(0.5),
    "fwsvd": LowRank(0.5),
    "asvd": LowRank(0.5),
    "joint_rank": LowRank(0.5),
}


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def layer_inputs(model, batches, module):
    """What enters a module, one whole-model pass for each micro-batch."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    for batch in batches:
        model(batch)
    handle.remove()
    return seen


def true_sequential(model, tokens, solve, micro_batch):
    """One pass of the whole model for every layer, in the order in which layers run: slow, and hard to get wrong."""
    batches = tokens.split(micro_batch)
    for block in decoder_blocks(model):
        order = {}
        layers = {layer.module: layer for layer in linear_layers(block)}
        handles = [
            m.register_forward_pre_hook(lambda m, args, order=order: order.setdefault(m, args[0])) for m in layers
        ]
        model(tokens[:1])
        for handle in handles:
            handle.remove()
        done = set()
        for module, tensor in order.items():
            if module in done:
                continue
            group = [m for m, other in order.items() if other is tensor]
            gram = 0
            for inputs in layer_inputs(model, batches, module):
                gram = inputs.T @ inputs + gram
            for member in group:
                layers[member].write(solve(layers[member].weight, InputStats(gram, tokens.numel())))
            done.update(group)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_equals_a_pass_for_every_layer_bit_for_bit(family):
    tokens = random_windows()
    fast, slow = tiny_model(family), tiny_model(family)
    compress(fast, "sparsegpt", HALF, calibration={"text": tokens}, micro_batch=2, **QUIET)
    true_sequential(slow, tokens, lambda weight, stats: sparsegpt(weight, _averaged(stats), HALF), micro_batch=2)
    assert equal(fast, slow)


def _averaged(stats):
    return InputStats(1.0 * (stats.gram / stats.n_tokens), 1)


def test_schedules_differ_where_they_should():
    models = {}
    for schedule in ("sublayer", "block", "parallel"):
        models[schedule] = tiny_model("llama")
        compress(models[schedule], "sparsegpt", HALF, calibration=TEXT, schedule=schedule, **QUIET)
    first = {name: decoder_blocks(model)[0] for name, model in models.items()}
    assert equal(first["block"], first["parallel"])  # nothing is compressed before the first block
    assert torch.equal(first["block"].self_attn.q_proj.weight, first["sublayer"].self_attn.q_proj.weight)
    assert not torch.equal(first["block"].self_attn.o_proj.weight, first["sublayer"].self_attn.o_proj.weight)
    second = {name: decoder_blocks(model)[1] for name, model in models.items()}
    assert not equal(second["block"], second["parallel"])


def test_an_unknown_schedule_is_refused():
    with pytest.raises(InputError, match="did you mean 'sublayer'"):
        compress(tiny_model("llama"), "wanda", HALF, calibration=TEXT, schedule="sublayers", **QUIET)


@pytest.mark.parametrize("method", TARGETS)
@pytest.mark.parametrize("schedule", ["sublayer", "block", "parallel"])
def test_every_method_runs_in_every_schedule_and_reports_each_source(method, schedule):
    model = tiny_model("llama")
    report = compress(model, method, TARGETS[method], calibration=TEXT, schedule=schedule, micro_batch=4, **QUIET)
    assert len(report.layers) == 21
    for layer in report.layers:
        assert set(layer.losses) == {"a", "b"}
        assert 0 < layer.relative_error < 1
        assert min(layer.losses.values()) > 0
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("method", TARGETS)
def test_every_method_takes_a_transposed_weight(method):
    model = tiny_model("gpt2")
    report = compress(model, method, TARGETS[method], calibration=TEXT, **QUIET)
    assert all(0 < layer.relative_error < 1 for layer in report.layers)


def test_the_reported_loss_is_the_output_error_on_the_text():
    """tr(dW G dW^T) / n against the outputs themselves, for the first layer, whose inputs never change."""
    dense, model = tiny_model("llama"), tiny_model("llama")
    report = compress(model, "wanda", HALF, calibration=TEXT, **QUIET)
    layer = decoder_blocks(dense)[0].self_attn.q_proj
    change = layer.weight - decoder_blocks(model)[0].self_attn.q_proj.weight
    for source, tokens in TEXT.items():
        inputs = torch.cat(layer_inputs(dense, [tokens], layer))
        error = (inputs @ change.T).square().sum() / len(inputs)
        torch.testing.assert_close(report.layers[0].losses[source], error.item(), rtol=1e-4, atol=0)


def test_without_losses_the_result_is_the_same():
    for method in ("wanda", "sparsegpt"):
        with_losses, without = tiny_model("llama"), tiny_model("llama")
        compress(with_losses, method, HALF, calibration=TEXT, **QUIET)
        report = compress(without, method, HALF, calibration=TEXT, measure_loss=False, **QUIET)
        pairs = zip(with_losses.parameters(), without.parameters(), strict=True)
        same = [((a == 0) == (b == 0)).double().mean() for a, b in pairs]
        assert min(same) > 0.995  # Wanda sums its diagonal in another order, which may turn a near-tie
        assert all(layer.relative_error is None and not layer.losses for layer in report.layers)


def test_data_free_methods_need_no_text():
    for method in ("magnitude", "rtn", "svd", "joint_rank"):
        bare, measured = tiny_model("llama"), tiny_model("llama")
        report = compress(bare, method, TARGETS[method], **QUIET)
        compress(measured, method, TARGETS[method], calibration=TEXT, **QUIET)
        assert equal(bare, measured)
        assert all(layer.relative_error is None for layer in report.layers)


def test_owl_spares_blocks_with_outliers_and_keeps_the_mean():
    model, uniform = tiny_model("llama"), tiny_model("llama")
    for m in (model, uniform):
        decoder_blocks(m)[1].mlp.up_proj.weight[::7, ::5] *= 50
    report = compress(model, "wanda", HALF, calibration=TEXT, allocation=Owl(limit=0.2, outlier=3.0), **QUIET)
    by_block = [sum(layer.sparsity for layer in report.layers if layer.name.startswith(f"{i}.")) / 7 for i in range(3)]
    assert by_block[1] < min(by_block[0], by_block[2])
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    with pytest.raises(InputError, match="use Unstructured"):
        compress(model, "wanda", NofM(2, 4), calibration=TEXT, allocation=Owl(), **QUIET)


def test_dpruner_takes_its_gradient_from_the_last_source():
    """General statistics from all sources before it, the domain's gradient from it: the order of sources matters."""
    ab, ba = tiny_model("llama"), tiny_model("llama")
    compress(ab, "dpruner", HALF, calibration=TEXT, **QUIET)
    compress(ba, "dpruner", HALF, calibration=dict(reversed(TEXT.items())), **QUIET)
    assert not equal(ab, ba)
    with pytest.raises(InputError, match="needs general text"):
        compress(tiny_model("llama"), "dpruner", HALF, calibration=TEXT, weights={"a": 0.0, "b": 1.0}, **QUIET)


def test_failed_factorizations_raise_the_damping_and_start_the_block_again():
    """A Gram matrix of 8 tokens in 32 inputs is singular: without damping it cannot be factorized."""
    model = tiny_model("llama")
    report = compress(model, "sparsegpt", HALF, calibration={"t": random_windows(1, 8)}, damp=1e-9, **QUIET)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    damps = {layer.damp for layer in report.layers}
    assert max(damps) > 1e-9
    assert min(damps) >= 1e-9


def test_a_hopeless_factorization_names_its_layer():
    with pytest.raises(InputError, match=r"Hessian of layer 0\.self_attn\.q_proj is not positive definite"):
        compress(tiny_model("llama"), "sparsegpt", HALF, calibration={"t": random_windows(1, 8)}, damp=-1.0, **QUIET)


def test_a_bad_weight_is_named_before_anything_changes():
    model = tiny_model("llama")
    decoder_blocks(model)[2].mlp.down_proj.weight[0, 0] = float("nan")
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError, match=r"layer mlp\.down_proj is NaN or infinite"):
        compress(model, "magnitude", HALF, **QUIET)
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)


def test_unknown_options_are_refused():
    with pytest.raises(InputError, match="did you mean 'act_order'"):
        compress(tiny_model("llama"), "gptq", Grid(4), calibration=TEXT, act_ordr=True, **QUIET)


@pytest.mark.parametrize(("method", "target"), [("gptq", Grid(4)), ("sparsegpt", HALF)])
def test_a_block_without_columns_is_refused(method, target):
    with pytest.raises(InputError, match="block is 0"):
        compress(tiny_model("llama"), method, target, calibration=TEXT, block=0, **QUIET)


def test_the_block_asked_for_is_the_one_checked():
    with pytest.raises(InputError, match="do not divide the block of 6"):
        compress(tiny_model("llama"), "sparsegpt", NofM(2, 4), calibration=TEXT, block=6, **QUIET)


def test_act_order_is_passed_on():
    plain, ordered = tiny_model("llama"), tiny_model("llama")
    compress(plain, "gptq", Grid(3), calibration=TEXT, act_order=False, **QUIET)
    compress(ordered, "gptq", Grid(3), calibration=TEXT, **QUIET)
    assert not equal(plain, ordered)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_no_parked_micro_batch_and_no_hook(stop, monkeypatch):
    model = tiny_model("llama")

    def interrupted(*_, **__):
        raise stop

    monkeypatch.setattr("crosscal.engine.block._BlockWork.solve", interrupted)
    with pytest.raises(stop):
        compress(model, "wanda", HALF, calibration=TEXT, micro_batch=1, **QUIET)
    assert not any(module._forward_pre_hooks for module in model.modules())
    gc.collect()
    running = getcurrent()
    assert not [task for task in gc.get_objects() if type(task) is greenlet and task is not running and not task.dead]


def test_the_callers_torch_settings_stay():
    before = (
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.random.get_rng_state().tolist(),
    )
    compress(tiny_model("llama").bfloat16(), "sparsegpt", HALF, calibration=TEXT, **QUIET)
    after = (
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.random.get_rng_state().tolist(),
    )
    assert before == after


def test_magnitude_of_the_driver_is_magnitude():
    """The driver adds nothing of its own to a method."""
    dense, model = tiny_model("llama"), tiny_model("llama")
    compress(model, "magnitude", HALF, **QUIET)
    for a, b in zip(decoder_blocks(dense), decoder_blocks(model), strict=True):
        for before, after in zip(linear_layers(a), linear_layers(b), strict=True):
            assert torch.equal(magnitude(before.weight, HALF), after.weight)


def test_wanda_of_the_driver_is_wanda():
    dense, model = tiny_model("llama"), tiny_model("llama")
    compress(model, "wanda", HALF, calibration={"a": TEXT["a"]}, **QUIET)
    layer = decoder_blocks(dense)[0].self_attn.k_proj
    (inputs,) = layer_inputs(dense, [TEXT["a"]], layer)
    expected = wanda(layer.weight, InputStats(inputs.T @ inputs, len(inputs)), HALF)
    assert torch.equal(expected, decoder_blocks(model)[0].self_attn.k_proj.weight)


@pytest.mark.parametrize("schedule", ["sublayer", "block", "parallel"])
def test_memory_is_bounded_by_the_block(schedule, monkeypatch):
    """When a block is done, neither its sums nor its old weights are kept."""
    alive = []
    original = _BlockWork.__init__

    def counted(self, *arguments, **more):
        gc.collect()
        assert sum(ref() is not None for ref in alive) == 0
        alive.append(weakref.ref(self))
        original(self, *arguments, **more)

    monkeypatch.setattr(_BlockWork, "__init__", counted)
    compress(tiny_model("llama"), "sparsegpt", HALF, calibration=TEXT, schedule=schedule, micro_batch=2, **QUIET)
    assert len(alive) == 3


def test_new_weights_that_overflow_are_named():
    """Half precision ends at 65,504: two inputs that always cancel, one of which must take over a huge weight."""
    model = tiny_model("llama").half()
    decoder_blocks(model)[0].self_attn.q_proj.weight.fill_(6e4)
    with pytest.raises(InputError, match=r"new weights of layer 0\.self_attn\.q_proj do not fit into torch\.float16"):
        compress(model, "sparsegpt", HALF, calibration=TEXT, **QUIET)
