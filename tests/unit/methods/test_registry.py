"""Methods describe themselves: read without torch, found by their files, and every one keeps the properties of all."""

import subprocess
import sys
from dataclasses import fields
from importlib import import_module

import pytest
import torch

import crosscal.methods
from crosscal.cli import main
from crosscal.engine.driver import compress
from crosscal.errors import InputError
from crosscal.methods import Evidence, Method, check_method, registry
from crosscal.methods.compose import composed
from crosscal.methods.registry import METHODS, check_request, find_method, register_method
from crosscal.types import Grid, LowRank, NofM, SparseGrid, Unstructured
from crosscal_book.pages.api import methods_table
from crosscal_book.style import style_of
from tests.unit.families import tiny_model

TOY = '''
"""A toy: every other weight of a row goes."""

import torch

from crosscal.methods.registry import Method
from crosscal.types import NofM

SKIPPED = 2


def _solve(weights, evidence, target, *, first=0):
    keep = torch.arange(weights[0].shape[1]) % target.m < target.n
    return [weight * keep.to(weight.dtype) for weight in weights], {}


METHOD = Method("toy", version=1, targets=(NofM,), solve=_solve, options={"first": 0}, label="Toy", source="nobody2026")
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A file with a method, as if it lay in the package."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(crosscal.methods, "__path__", [*crosscal.methods.__path__, str(tmp_path)])
    before = dict(METHODS)
    METHODS.update(registry._discover())
    yield METHODS["toy"]
    METHODS.clear()
    METHODS.update(before)
    sys.modules.pop("crosscal.methods.toy", None)


@pytest.mark.parametrize("name", METHODS)
def test_method_keeps_every_property(name):
    assert len(check_method(METHODS[name])) >= 9


ADDED = {
    "lsq": {"refine": "lsq"},
    "swaps": {"refine": "swaps"},
    "anchor": {"anchor": 0.25},
    "rotate": {"rotate": True},
    "lsq, anchor": {"refine": "lsq", "anchor": 0.25},
    "rotate, anchor": {"rotate": True, "anchor": 0.25},
}


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_composed_keeps_every_property(name, added):
    try:
        method = composed(METHODS[name], **ADDED[added])
    except InputError:
        pytest.skip(f"{name} takes no {added}")
    assert len(check_method(method)) >= 9


def test_registry_is_read_without_torch():
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'numpy'))); "
    code = "from crosscal.methods.registry import METHODS; assert METHODS['gptq'].options['block'] == 128"
    subprocess.run([sys.executable, "-c", blocked + code], check=True)


def test_importing_the_package_loads_no_transformers():
    code = "import sys, crosscal.methods as m; assert 'torch' not in sys.modules; m.gptq; m.Method; "
    code += "assert callable(m.gptq) and 'torch' in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_read_is_what_runs(name):
    read = METHODS[name]
    module = import_module(read.solve.module)
    (real,) = [value for value in vars(module).values() if isinstance(value, Method) and value.name == name]
    for field in fields(Method):
        found, expected = getattr(read, field.name), getattr(real, field.name)
        if isinstance(found, registry._Later):
            assert getattr(import_module(found.module), found.name) is expected
        elif field.name != "page":
            assert found == expected, field.name


def test_functions_keep_their_names_beside_their_files():
    for name in ("gptq", "wanda", "lowrank", "rtn"):
        import_module(f"crosscal.methods.{name}")
    assert all(callable(getattr(crosscal.methods, name)) for name in crosscal.methods.__all__)
    assert set(crosscal.methods.__all__) <= set(dir(crosscal.methods))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        crosscal.methods.nothing  # noqa: B018


def test_methods_come_in_the_order_of_the_tables():
    order = ["magnitude", "wanda", "sparsegpt", "alps", "fisher", "rtn", "gptq", "awq", "dpruner"]
    order += ["svd", "fwsvd", "asvd", "joint_rank", "width"]
    assert list(METHODS) == order
    assert len({method.style for method in METHODS.values()}) == len(METHODS)


def test_toy_file_is_a_method_everywhere(toy, capsys, tmp_path):
    assert (toy.label, toy.page, list(METHODS)[-1]) == ("Toy", "toy", "toy")
    assert "crosscal.methods.toy" not in sys.modules
    model = tiny_model("llama")
    report = compress(model, "toy", NofM(2, 4), progress=False, first=1)
    assert report.sparsity == 0.5
    assert main(["compress", "--model", "smollm2-135m", "--method", "toys", "--pattern", "2:4", "--output", "x"]) == 1
    assert "did you mean 'toy'?" in capsys.readouterr().err
    assert main(["report", "--model", "smollm2-135m", "--domain", "pubmed", "--method", "toy", "--target", "2:4",
                 "--preset", "smoke", "--output", str(tmp_path / "card.html"), "--dry-run"]) == 0  # fmt: skip
    assert style_of("toy").label == "Toy"
    assert "[`toy`](toy.md) | N:M | nothing" in methods_table()


def test_unknown_and_doubled_names_are_refused(toy):
    with pytest.raises(InputError, match="did you mean 'wanda'"):
        find_method("wnda")
    with pytest.raises(InputError, match="a method 'toy' already"):
        register_method(toy)


def test_requests_are_checked_before_any_work():
    gptq, dpruner = METHODS["gptq"], METHODS["dpruner"]
    with pytest.raises(InputError, match=r"gptq does not compress to 50%; give a target such as 4 bits g128 \(Grid\)"):
        check_request(gptq, Unstructured(0.5), {}, [])
    with pytest.raises(InputError, match=r"no option 'actorder'; did you mean 'act_order'"):
        check_request(gptq, Grid(4), {"actorder": True}, [])
    for option, value in (("act_order", 1), ("act_order", "yes"), ("block", 1.5), ("block", True), ("block", 0)):
        with pytest.raises(InputError, match=f"{option} is"):
            check_request(gptq, Grid(4), {option: value}, [64])
    with pytest.raises(InputError, match=r"strength is 'much'"):
        check_request(dpruner, NofM(2, 4), {"strength": "much"}, [])
    with pytest.raises(InputError, match="groups of 4 do not divide 66 inputs"):
        check_request(METHODS["sparsegpt"], SparseGrid(NofM(2, 4), Grid(4)), {}, [64, 66])
    check_request(gptq, Grid(4), {"act_order": True, "block": 64}, [66])


def spoilt(**changes):
    """A pruner with one fault, or none: the smallest of each row go."""

    def solve(weights, evidence, target):
        new = [crosscal.methods.magnitude(weight, target) for weight in weights]
        return [changes.get("bend", lambda weight: weight)(weight) for weight in new], {}

    return Method("spoilt", 1, (Unstructured, NofM), solve, damped="damp" in changes)


FAULTS = {
    "comes back": lambda weight: weight.double(),
    "NaN or infinite": lambda weight: weight / (weight.abs() > 1e-3),
    "two calls differ": lambda weight: weight + 1e-3 * torch.rand(weight.shape).to(weight.dtype) * (weight != 0),
    "more weights are zero": lambda weight: weight * (torch.arange(weight.shape[1]) % 4 != 0).to(weight.dtype),
    "sparsity 0 changes": lambda weight: (1.001 * weight.float()).to(weight.dtype),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_method_names_the_fault(fault):
    check_method(spoilt())
    with pytest.raises(AssertionError, match=f"spoilt, .*{fault}"):
        check_method(spoilt(bend=FAULTS[fault]))


def test_check_method_wants_what_was_declared():
    def solve(weights, evidence, target, damp):
        return [weight.clone() for weight in weights], {}

    with pytest.raises(AssertionError, match="lacks the fact 'failed'"):
        check_method(Method("spoilt", 1, (Grid,), solve, reads="gram", damped=True))
    with pytest.raises(AssertionError, match="levels in a group of 4 bits"):
        check_method(Method("spoilt", 1, (Grid,), lambda w, e, t: ([x.clone() for x in w], {}), packs=("any",)))
    with pytest.raises(AssertionError, match="the rank is above"):
        check_method(Method("spoilt", 1, (LowRank,), lambda w, e, t: ([x.clone() for x in w], {})))
    assert Evidence().stats is None
