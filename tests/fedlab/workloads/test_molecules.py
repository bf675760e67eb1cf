"""The molecules workload: who holds what, what is measured, what is refused, and every strategy on it."""

from __future__ import annotations

import pytest
import torch

from configs import DATA, make
from fedlab import launch, registry
from fedlab.config.sections import parse_section
from fedlab.data.molecules import graphs, smiles
from fedlab.engines import inprocess
from fedlab.errors import ConfigError, DataError
from fedlab.evaluation import molecule_plots
from fedlab.evaluation import molecules as scores
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import seeded
from fedlab.workload import Score, missing_columns
from fedlab.workloads.molecules import Molecules, _holdings

SMALL = {"max_examples": 300, "adjacency_layers": 3, "node_layers": 3, "samples": 40, "pictures": False}
OPTIONS = {f"{'data' if name in DATA else 'molecules'}.{name}": value for name, value in SMALL.items()}


@pytest.fixture
def workload():
    return make(Molecules, **SMALL)


@pytest.fixture
def model(workload):
    with seeded("model"):
        return workload.model().eval()


def strings(workload, data):
    return graphs.batch_to_smiles(data.columns["adjacency"], data.columns["nodes"], workload.vocabulary)


# --- who holds what ---


@pytest.mark.parametrize("partition", ["iid", "scaffold", "size", "dirichlet"])
def test_every_molecule_has_one_owner_who_trains_or_tests_on_it(partition):
    workload = make(Molecules, **SMALL, partition=partition, alpha=5.0)
    holdings = _holdings(workload)
    rows = torch.cat([holdings.server, *(part for client in holdings.clients for part in client)])
    assert torch.equal(rows.sort().values, torch.arange(300))
    assert len(holdings.server) == 15
    assert workload.clients == tuple(f"{partition}-{number}" for number in range(4))
    for number, (train, test) in enumerate(holdings.clients):
        assert len(test) == round(0.1 * (len(train) + len(test)))
        assert torch.equal(workload.data(number, "train").columns["nodes"], holdings.training.atoms[train])
        assert torch.equal(workload.data(number, "test").columns["nodes"], holdings.training.atoms[test])


def test_the_server_has_a_public_part_or_for_the_bound_all_that_clients_train_on():
    public, pooled = make(Molecules, **SMALL), make(Molecules, **SMALL, server="pooled")
    assert len(public.data(None, "train")) == 15
    parts = [public.data(number, "train") for number in range(4)]
    assert len(pooled.data(None, "train")) == 15 + sum(map(len, parts))
    for workload in (public, pooled):
        reference = workload.data(None, "test")
        assert strings(workload, reference)[:3] == ["NC1NC2CC1NC2N", "CCn1cncc1OC", "OC1CCCCC(O)C1"]
        assert len(reference) == 300


def test_batches_are_one_hot_graphs_without_labels(workload):
    data = workload.data(0, "train")
    batch = data.sample_batch(6)
    assert set(batch) == {"adjacency", "nodes"}
    assert batch["adjacency"].shape == (6, 4, 9, 9) and batch["nodes"].shape == (6, 9, 5)
    assert batch["adjacency"].dtype == batch["nodes"].dtype == torch.float32
    assert (batch["adjacency"].sum(1) == 1).all() and (batch["nodes"].sum(2) == 1).all()
    assert not missing_columns(workload, data)


def test_a_random_order_is_drawn_anew_and_is_the_same_molecule():
    workload = make(Molecules, **SMALL, atom_order="random")
    data = workload.data(0, "train")
    first, second = data[:20], data[:20]
    assert not torch.equal(first["adjacency"], second["adjacency"])
    for batch in (first, second):
        found = graphs.batch_to_smiles(batch["adjacency"].argmax(1), batch["nodes"].argmax(2), workload.vocabulary)
        assert found == strings(workload, data)[:20]


def test_canonical_order_and_dropped_molecules(workload):
    canonical = make(Molecules, **SMALL, atom_order="canonical")
    assert strings(canonical, canonical.data(1, "train")) == strings(workload, workload.data(1, "train"))
    dropped = _holdings(make(Molecules, **SMALL, lossy="drop"))
    kept = _holdings(workload)
    assert (kept.training.lossy_flags & graphs.ALTERING_FLAGS > 0).sum() == 300 - len(dropped.training) > 10
    assert (dropped.training.lossy_flags & graphs.ALTERING_FLAGS == 0).all()


def test_a_file_of_ones_own_takes_the_place_of_the_set(tmp_path):
    texts = smiles.molecule_file("qm9", "test", None).read_text().splitlines()[1:201]
    file = tmp_path / "mine.smi"
    file.write_text("\n".join(texts))
    workload = make(Molecules, file=str(file), num_clients=2, partition="iid", server_fraction=0.1)
    assert len(workload.data(None, "test")) == 20
    assert [len(workload.data(number, "train")) + len(workload.data(number, "test")) for number in (0, 1)] == [81, 81]


def test_a_client_may_bring_a_file_of_its_own_in_place_of_its_share(tmp_path):
    texts = smiles.molecule_file("qm9", "test", None).read_text().splitlines()[1:51]
    file = tmp_path / "mine.smi"
    file.write_text("\n".join([*texts, "C[Si]"]))
    workload = make(Molecules, **SMALL, client_folder=str(file))
    with pytest.warns(smiles.SkippedLinesWarning, match="1 of 51"):
        train, test = workload.data(1, "train"), workload.data(1, "test")
    assert len(train) == 45 and len(test) == 5
    known = [graphs.canonical_smiles(graphs.parse_smiles(text, graphs.QM9)[0]) for text in texts]
    assert set(strings(workload, train)) < {*known, *_holdings(workload).reference.decoded_smiles}
    assert len(workload.data(None, "train")) == 15  # the server's part is the set's
    file.write_text("CC\nCO\n")
    smiles.load_molecules.cache_clear()
    with pytest.raises(DataError, match="mine.smi has 2 molecules that can be used; at least 20 are needed"):
        workload.data(1, "train")
    with pytest.raises(DataError, match="cannot be read"):
        make(Molecules, **SMALL, client_folder=str(tmp_path)).data(1, "train")


# --- what is measured ---


def test_metrics_are_means_over_the_molecules_however_they_are_batched(workload, model, monkeypatch):
    data = workload.data(2, "test")
    found = workload.evaluate(model, data)
    batch = data[:]
    with seeded(0, "test noise"):
        assert found["loss"] == pytest.approx(model.loss(batch["adjacency"], batch["nodes"]).item())
        assert found["nll"] == pytest.approx(model.nll(batch["adjacency"], batch["nodes"]).double().mean().item())
    monkeypatch.setattr("fedlab.workloads.molecules.EVALUATION_BATCH", 5)
    assert workload.evaluate(model, data)["nll"] == pytest.approx(found["nll"], rel=0.05)  # other noise


def test_scores_are_of_samples_against_both_files(workload, model):
    with seeded("score"):
        found = workload.score(model).metrics
    with seeded("score"):
        drawn = workload.draw(model, 40)
    training, reference = (
        smiles.load_molecules(smiles.molecule_file("qm9", split, None), graphs.QM9, 300) for split in ("train", "test")
    )
    wanted = scores.validity_metrics(drawn, set(training.decoded_smiles))
    assert {name: found[name] for name in wanted} == wanted and found["samples"] == 40
    valid = [one for one in drawn if one]
    distances = scores.distribution_metrics(valid, [text for text in reference.decoded_smiles if text])
    assert set(found) - set(wanted) == {*distances, "reconstruction"}
    assert found["reconstruction"] == 1  # a flow inverts
    assert make(Molecules, **{**SMALL, "samples": 0}).score(model) == Score()


def test_pictures_are_of_the_samples_that_are_scored(workload, model):
    with seeded("score"):
        plain = workload.score(model)
    with seeded("score"):
        shown = make(Molecules, **{**SMALL, "pictures": True}).score(model)
    assert shown.metrics == plain.metrics and not plain.pictures
    with seeded("score"):
        drawn = workload.draw(model, 40)
    assert shown.pictures["molecules"] == molecule_plots.sample_grid(drawn)
    assert shown.pictures["properties"].startswith(b"\x89PNG")


def test_corrected_samples_are_all_molecules(workload, model):
    with seeded("score"):
        drawn = workload.draw(model, 40, corrected=True)
    with seeded("score"):
        plain = workload.draw(model, 40)
    assert all(drawn) and not all(plain)
    assert all(one == other for one, other in zip(plain, drawn, strict=True) if one)


# --- mpgvae ---

VAE = {"network": "mpgvae", "width": 8, "latent": 4, "message_steps": 1}


def test_options_reach_an_mpgvae():
    options = {"beta": 0.25, "warmup": 7, "matching": "assignment", "decode_temperature": 0.5}
    model = make(Molecules, **SMALL, **VAE, **options).model()
    assert (model.sizes.width, model.sizes.latent, model.sizes.passes) == (8, 4, 1)
    assert (model.sizes.size, model.sizes.elements) == (9, 5)
    found = {"beta": model.ceiling, "warmup": model.warmup, "matching": model.matching}
    assert {**found, "decode_temperature": model.decode_temperature} == options


def test_an_mpgvae_is_scored_and_tested_like_any_family(monkeypatch):
    workload = make(Molecules, **SMALL, **VAE)
    with seeded("model"):
        model = workload.model()
    found = workload.evaluate(model, workload.data(1, "test"))
    assert found["nll"] == pytest.approx(45 * found["loss"], rel=0.05)  # beta is 1: both are the bound, of other draws
    with seeded("score"):
        assert workload.score(model).metrics["samples"] == 40
    assert workload.reconstruction_rate(model, 40) == {"reconstruction": 0}
    reference = workload.data(None, "test")[:20]
    monkeypatch.setattr(type(model), "decode", lambda *_, **__: (reference["adjacency"], reference["nodes"]))
    assert workload.reconstruction_rate(model, 20) == {"reconstruction": 1}
    assert workload.reconstruction_rate(model, 0) == {}  # as of a file with no molecule in one piece


# --- strategies ---

ROUND = {
    **OPTIONS,
    "molecules.adjacency_layers": 1,
    "molecules.node_layers": 1,
    "data.num_clients": 5,
    "molecules.samples": 10,
    "rounds": 1,
    "threads": 1,
    "device": "cpu",
    "client.steps": 5,
    "client.batch_size": 16,
    "client.learning_rate": 0.1,
    "server.steps": 3,
    "server.batch_size": 10,
}
READ_X_OR_Y = {
    "dualadapt": "needs a model with .features and .head",
    "adabn": "adabn takes statistics of inputs x; workload 'molecules' has adjacency, nodes",
    "self_training": "self_training needs inputs x and one class y for each; workload 'molecules' has adjacency, nodes",
    "fed_mcd": "needs a model with .features and .head",
    "fed_dann": "needs a model with .features and .head",
    "startup": "startup needs a model with .features",
    "moon": "moon needs a model with .features",
    "fedper": "fedper needs a model with .features",
    "source_free": "source_free needs a model with .features and .head",
    "shot": "shot needs a model with .features and .head",
    "adacontrast": "adacontrast needs a model with .features and .head",
    "semi_fl": "semi_fl needs a model with .features and .head",
    "fed_shot": "fed_shot needs a model with .features and .head",
    "fed_adacontrast": "fed_adacontrast needs a model with .features and .head",
    "fedrep": "fedrep needs a model with .features",
    "dp_fixed": "batch-norm statistics are taken of the server's inputs x, and its data has adjacency, nodes",
    "dp_adaptive": "batch-norm statistics are taken of the server's inputs x, and its data has adjacency, nodes",
}


@pytest.fixture
def one_round(tmp_path):
    """The lines of ``metrics.jsonl`` of one round through both apps."""

    def run(**options):
        config = launch.prepare("graphnvp-qm9", {**ROUND, **options})
        directory = RunDirectory.create(tmp_path, config)
        inprocess.run_config(launch.APPS, config, directory.path)
        return directory.rounds()

    return run


@pytest.mark.parametrize("strategy", [name for name in registry.STRATEGIES if name not in READ_X_OR_Y])
def test_strategies_that_need_the_loss_alone_lower_it_on_every_client(one_round, strategy):
    before, after = one_round(strategy=strategy)
    assert len(after["clients"]) == 5 and not after["failures"]
    for name, metrics in after["clients"].items():
        of_the_model = [metric for metric in metrics if metric.startswith(("loss", "nll"))]  # a personal one, too
        assert len(of_the_model) >= 2
        assert all(metrics[metric] < before["clients"][name][metric] for metric in of_the_model)
    assert after["score"]["samples"] == 10 and "validity" in after["score"] and after["seconds"]["score"] > 0


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "dp_fixed"])
def test_the_warm_up_of_an_mpgvae_counts_the_steps_behind_the_global_model(one_round, tmp_path, strategy):
    """Counters take the largest; differential privacy lets none through, and trains it all the same."""
    options = {f"molecules.{name}": value for name, value in VAE.items()}
    options |= {"molecules.warmup": 20, "client.learning_rate": 0.02, "client.steps": 4, "rounds": 2}
    if strategy not in ("scaffold",):
        options |= {"client.optimizer": "adam"}
    first, _, last = one_round(strategy=strategy, **options)
    assert len(last["clients"]) == 5 and not last["failures"]
    _, state = RunDirectory.open(next(tmp_path.glob("graphnvp*"))).checkpoints.latest()
    assert state["arrays"]["steps"] == (0 if strategy == "dp_fixed" else 8)
    assert last["mean"]["loss"] < first["mean"]["loss"] or strategy == "dp_fixed"


@pytest.mark.parametrize("strategy", READ_X_OR_Y)
def test_strategies_that_read_inputs_or_labels_are_refused_before_the_run(strategy):
    with pytest.raises(ConfigError, match=READ_X_OR_Y[strategy]):
        launch.prepare("graphnvp-qm9", {**ROUND, "strategy": strategy})


def test_the_servers_public_part_can_start_a_federation_and_all_of_it_is_the_bound(one_round):
    begun, _ = one_round(**{"server.pretrain_steps": 4, "name": "pretrained"})
    fresh, bound = one_round(**{"strategy": "source_only", "molecules.server": "pooled", "server.ema_decay": 0.0})
    assert begun["mean"]["loss"] < fresh["mean"]["loss"] and bound["mean"]["loss"] < fresh["mean"]["loss"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"max_examples": 100}, ConfigError, "the server's public part would be 5 of 100 molecules"),
        ({"num_clients": 40}, ConfigError, "would hold . of 285 molecules shared out by scaffold"),
        ({"dataset": "zinc"}, DataError, "expected FOLDER/molecules/zinc_subset_train.smi"),
        ({"file": "nowhere.smi"}, DataError, "the SMILES file nowhere.smi cannot be read"),
        ({"root": "/nowhere"}, DataError, "expected /nowhere/molecules/qm9_train.smi"),
    ],
)
def test_data_that_cannot_be_shared_out_is_refused(options, error, sentence):
    with pytest.raises(error, match=sentence):
        make(Molecules, **{**SMALL, **options}).data(0, "train")


def test_a_short_file_and_lines_that_are_no_molecules_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "mine.smi"
    file.write_text("CC\nCO\nC1CC\n")
    with (
        pytest.warns(smiles.SkippedLinesWarning, match="1 of 3 molecules of .* line 3: 'C1CC'"),
        pytest.raises(DataError, match="mine.smi has 2 molecules that can be used; at least 20 are needed"),
    ):
        Molecules(file=str(file)).data(0, "train")


def test_a_set_of_charges_alone_cannot_be_cleaned(tmp_path):
    file = tmp_path / "charged.smi"
    file.write_text("\n".join(f"{'C' * (1 + i % 8)}[NH3+]" for i in range(30)))
    with pytest.raises(DataError, match="no molecule is left without charges"):
        Molecules(file=str(file), lossy="drop").data(0, "train")


def test_partitions_splits_and_options_that_do_not_exist_are_refused(workload):
    with pytest.raises(DataError, match="there is no partition 4; this workload has 4: scaffold-0, scaffold-1"):
        workload.data(4, "train")
    with pytest.raises(DataError, match="no split 'valid'"):
        workload.data(0, "valid")
    with pytest.raises(ConfigError, match=r"option 'molecules.network'.*got 'moflow'"):
        parse_section(Molecules, "molecules", {"molecules.network": "moflow"})
