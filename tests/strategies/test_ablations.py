"""Every name of a variant runs as its strategy with its options."""

from __future__ import annotations

import pytest

import toy
from fedlab import launch, registry
from fedlab.config.presets import read_preset
from fedlab.strategies.ablations import ABLATIONS
from tables import put


@pytest.fixture
def preset(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    return toy.write_preset(tmp_path)


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_variant_is_its_strategy_with_its_options_and_differs_from_it(preset, name):
    variant, options = ABLATIONS[name], launch.prepare(preset, {"strategy": name}).options()
    assert options == launch.prepare(preset, {"strategy": variant.strategy, **variant.options}).options()
    assert options != launch.prepare(preset, {"strategy": variant.strategy}).options()


def test_no_variant_hides_a_strategy_and_no_two_are_alike():
    assert not set(ABLATIONS) & set(registry.STRATEGIES)
    assert len({str(sorted(variant.options.items())) for variant in ABLATIONS.values()}) == len(ABLATIONS)


def test_the_published_pseudo_code_is_a_row_and_a_preset_alike():
    chosen = read_preset("dualadapt-paper")[1]
    assert ABLATIONS["dualadapt_paper"].options.items() <= chosen.items()


def test_a_preset_may_name_one_and_what_the_user_sets_goes_over_it(tmp_path, preset):
    named = toy.write_preset(tmp_path, strategy="dualadapt_no_mixup")
    assert launch.prepare(named, {}).strategy.mixup == "off"
    assert launch.prepare(named, {"dualadapt.mixup": "difference"}).strategy.mixup == "difference"
