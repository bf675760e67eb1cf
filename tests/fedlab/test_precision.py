import pytest
import torch

from fedlab.optimizers import SGD
from fedlab.precision import autocast, computing_in, current_precision, resolve_precision
from fedlab.runs.numerics import numerics
from fedlab.training import train_steps

CPU = torch.device("cpu")


def test_a_cpu_computes_in_float32_unless_bfloat16_is_asked_for():
    assert [resolve_precision(name, CPU) for name in ("auto", "float32", "tf32", "bf16")] == [
        "float32",
        "float32",
        "float32",
        "bf16",
    ]


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "tf32"), ((9, 0), "tf32")])
def test_auto_is_tf32_where_the_gpu_has_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", torch.device("cuda")) == expected
    assert resolve_precision("float32", torch.device("cuda")) == "float32"


def test_the_precision_lasts_as_long_as_its_context_and_no_setting_of_a_cpu_changes():
    products = torch.get_float32_matmul_precision()
    with computing_in("bf16", CPU):
        assert current_precision() == "bf16"
        with computing_in("tf32", CPU):
            assert current_precision() == "float32"
            assert torch.get_float32_matmul_precision() == products
        assert current_precision() == "bf16"
    assert current_precision() == "float32"


def test_a_scope_within_a_scope_of_the_same_precision_sets_what_was_changed_in_between():
    before = torch.get_float32_matmul_precision()
    with computing_in("float32", CPU):
        torch.set_float32_matmul_precision("medium")
        with computing_in("float32", CPU):
            assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


def test_an_error_ends_the_precision():
    with pytest.raises(ZeroDivisionError), computing_in("bf16", CPU):
        raise ZeroDivisionError
    assert current_precision() == "float32"


def trained(precision):
    torch.manual_seed(0)
    model, x = torch.nn.Linear(8, 3), torch.randn(16, 8)
    kinds = set()

    def loss():
        y = model(x)
        kinds.add(y.dtype)
        return y.float().square().mean()

    with computing_in(precision, CPU):
        train_steps(loss, SGD(model.parameters(), 0.1), 3, name="training")
    return kinds, model.weight.detach()


def test_training_in_bf16_has_bfloat16_activations_over_float32_weights():
    (whole, exact), (half, rough) = trained("float32"), trained("bf16")
    assert (whole, half) == ({torch.float32}, {torch.bfloat16})
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.allclose(exact, rough, atol=0.01)


def test_float64_stays_float64_in_bf16():
    x = torch.randn(4, 4, dtype=torch.float64)
    with computing_in("bf16", CPU), autocast():
        assert (x @ x).dtype == torch.float64


def test_the_manifest_says_in_which_precision_a_run_is_trained():
    assert numerics("cpu")["float_precision"] == "float32"
    assert numerics("cpu", precision="bf16", compiled=True)["float_precision"] == "bf16, compiled"
