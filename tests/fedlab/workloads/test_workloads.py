"""The table of workloads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from configs import make, workload
from fedlab import registry
from fedlab.config.run_options import RunConfig
from fedlab.data.sources import PACKAGE, DataSource
from fedlab.errors import ConfigError
from fedlab.tables import WORKLOADS
from fedlab.workload import SupportsDataSources, unused_options
from fedlab.workloads.digits import Digits


def test_options_make_the_workload_that_they_name():
    made = workload("digits", **{"digits.targets": "usps", "digits.augment": "false", "data.alpha": "0.1", "seed": 9})
    assert made == make(Digits, targets="usps", augment=False, alpha=0.1, seed=9)


def test_the_default_workload_is_in_the_table():
    assert registry.find("workload", RunConfig().workload).spec.workload is type(registry.load_config({}).workload)


def test_an_unknown_workload_gets_a_near_match():
    with pytest.raises(ConfigError, match="unknown workload 'digit'; did you mean 'digits'"):
        workload("digit")


def test_a_wrong_value_is_a_sentence_with_its_key():
    with pytest.raises(ConfigError, match=r"option 'digits.setting'.*got 'orakel'; .*'domains' or 'shards'"):
        workload("digits", **{"digits.setting": "orakel"})
    with pytest.raises(ConfigError, match="domain 'usps' appears twice"):
        workload("digits", **{"digits.targets": "usps,usps"})


@pytest.mark.parametrize("name", list(registry.WORKLOADS))
def test_every_line_has_a_summary_and_defaults_that_work(name):
    assert registry.WORKLOADS[name].summary
    assert workload(name) == make(registry.find("workload", name).spec.workload)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_names_the_data_that_it_has(name):
    made = workload(name, **{"data.max_examples": "200"})
    assert isinstance(made, SupportsDataSources)
    for partition in (None, len(made.clients) - 1):
        for source in made.data_sources(partition):
            assert source.name and source.place in (PACKAGE, "scikit-learn")
            assert 0 < source.examples <= 200 or "data.max_examples" in unused_options(made)


def test_a_set_below_the_data_root_is_named_with_its_folder(tmp_path):
    (tmp_path / "molecules").mkdir()
    for split in ("train", "test"):
        (tmp_path / "molecules" / f"qm9_{split}.smi").write_text("smiles\n" + "C\nCC\nCCC\n" * 40)
    options = {"data.partition": "iid", "data.num_clients": "1", "molecules.server_fraction": "0.3"}
    small = workload("molecules", **options, **{"data.max_examples": "120"})
    whole = workload("molecules", **options, **{"data.root": str(tmp_path)})
    assert [bool(source.missing) for made in (small, whole) for source in made.data_sources(None)] == [True, False]
    assert whole.data_sources(0) == [DataSource("qm9", 120, str(tmp_path / "molecules"))]


@pytest.mark.parametrize("name", [name for name in WORKLOADS if registry.find("workload", name).spec.smooths_labels])
def test_a_smoothed_loss_spreads_a_fraction_of_each_label_over_all_classes(name):
    options = {"camvid.class_weight_power": 0.0} if name == "camvid" else {}
    y = torch.tensor([3, 0, 7])
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(1)
    found = workload(name, **options, **{"data.label_smoothing": 0.3}).loss(nn.Identity(), {"x": logits, "y": y})
    expected = -0.7 * log_p[range(3), y].mean() - 0.3 * log_p.mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_workloads_without_labels_smooth_none():
    smoothing = {name for name in WORKLOADS if registry.find("workload", name).spec.smooths_labels}
    assert set(WORKLOADS) - smoothing == {"generation", "molecules"}
