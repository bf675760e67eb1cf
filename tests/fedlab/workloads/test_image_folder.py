"""Photographs of one's own: who has which, what folders say, odd clients, and runs of every kind of strategy."""

from __future__ import annotations

import shutil

import pytest
import torch

import fedlab
from configs import workload
from fedlab.data.digits.folder_files import SkippedFilesWarning
from fedlab.data.images import photo_domains, photo_folders
from fedlab.data.images.pacs import PACS
from fedlab.errors import ConfigError, DataError
from fedlab.models.convnet import ConvNet
from fedlab.registry import load_config
from fedlab.seeds import seeded
from photos import HUES, needs_backbone, write_photo, write_photos

BACKBONE = {"image_folder.network": "efficientnet_lite0", "image_folder.freeze": "backbone"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photo_folders._photos.cache_clear()
    photo_domains._warned.clear()


@pytest.fixture
def root(tmp_path):
    return write_photos(tmp_path / "photos")


def mine(root, **options):
    return workload("image_folder", **{"data.root": str(root), "image_folder.size": 64, **options})


def test_without_folders_the_domains_are_those_of_pacs():
    task = workload("image_folder")
    assert (task.domains, task.source, task.classes) == ("pacs", "photo", PACS.classes)
    assert task.clients == ("art_painting", "cartoon", "sketch")
    train, test = task.data(0, "train"), task.data(0, "test")
    assert set(train.columns) == {"x"} and set(test.columns) == {"x", "y"}
    assert train[:2]["x"].shape == (2, 3, 64, 64)
    assert isinstance(task.model(), ConvNet)
    other = workload("image_folder", **{"image_folder.source": "sketch", "image_folder.targets": "photo"})
    assert other.clients == ("photo",)


def test_folders_name_classes_and_clients(root):
    task = mine(root)
    assert (task.domains, task.source, task.classes) == ("folders", "source", tuple(HUES))
    assert task.clients == ("alice", "bob")
    train, test = task.data(None, "train"), task.data(None, "test")
    assert (len(train), len(test)) == (15, 3)  # one of six of each class is held out
    assert not set(train.columns["x"].tolist()) & set(test.columns["x"].tolist())
    assert torch.bincount(train.columns["y"]).tolist() == [5, 5, 5]
    with seeded("view"):
        first = train[:4]["x"]
    with seeded("view"):
        assert torch.equal(train[:4]["x"], first)
    assert not torch.equal(train[:4]["x"], first) and first.abs().max() <= 1


def test_what_folders_decide_is_in_the_configuration_that_clients_get(root, tmp_path):
    config = load_config({"workload": "image_folder", "data.root": str(root)})
    again = load_config({**config.options(), "data.root": ""}, client_folder=str(root / "targets" / "bob"))
    assert again.workload.classes == tuple(HUES) and again.workload.clients == ("alice", "bob")
    assert len(again.workload.data(1, "train")) == 18
    with pytest.raises(DataError, match="the source's images are on the server's machine"):
        again.workload.data(None, "train")


def test_clients_train_without_labels_and_test_on_the_folders_of_classes(root):
    task = mine(root)
    assert set(task.data(0, "train").columns) == {"x"} and len(task.data(0, "train")) == 18
    test = task.data(0, "test")
    assert torch.bincount(test.columns["y"]).tolist() == [6, 6, 6]
    assert torch.equal(task.labels(0), mine(root, **{"image_folder.client_labels": True}).data(0, "train").columns["y"])


def test_a_folder_test_is_never_trained_on(root):
    bob = root / "targets" / "bob"
    shutil.move(bob / "apple", bob / "test" / "apple")
    task = mine(root)
    assert len(task.data(1, "train")) == 12
    assert task.data(1, "test").columns["y"].tolist() == [0] * 6


def test_images_in_no_folder_of_a_class_are_trained_on_without_metrics(root):
    alice = root / "targets" / "alice"
    for name in HUES:
        (alice / name).rename(alice / f"holiday-{name}")
    task = mine(root)
    data = task.data(0, "test")
    assert set(data.columns) == {"x"} and len(data) == 18
    assert task.evaluate(task.model(), data) == {} and task.labels(0) is None
    with pytest.raises(DataError, match=r"no image of .*/alice lies in a folder of a class"):
        mine(root, **{"image_folder.client_labels": True}).data(0, "train")


def test_a_class_that_only_the_client_has_is_left_out_of_the_test_and_said(root):
    bob = root / "targets" / "bob"
    (bob / "test").mkdir()
    (bob / "apple").rename(bob / "test" / "Apple")  # another case of letters
    (bob / "leaf").rename(bob / "test" / "leafs")
    with pytest.warns(SkippedFilesWarning, match="6 images of .*/test left out.*6 in 'leafs', did you mean 'leaf'"):
        test = mine(root).data(1, "test")
    assert test.columns["y"].tolist() == [0] * 6


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda root: shutil.rmtree(root / "source"), {}, "has no folder 'source'; put the server's images into"),
        (lambda root: shutil.rmtree(root / "targets"), {}, "has no folder 'targets'; .* image_folder.targets=alice"),
        (lambda root: [shutil.rmtree(root / "source" / name) for name in ("leaf", "sky")], {}, "has one sub-folder"),
        (lambda root: (root / "targets" / "a b").mkdir(), {}, "target 'a b' is no client's name"),
        (lambda root: None, {"image_folder.network": "efficientnet"}, "did you mean 'efficientnet_lite0'"),
        (lambda root: None, {"image_folder.freeze": "backbone"}, "needs a pre-trained network, and network=conv"),
        (lambda root: None, {"image_folder.bottleneck": 9}, "a layer above a pre-trained network, and network=conv"),
        (lambda root: None, {"image_folder.domains": "pacs", "image_folder.source": "photos"}, "did you mean 'photo'"),
        (lambda root: None, {"image_folder.size": 32}, "greater than or equal to 64"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(root, change, options, message):
    change(root)
    with pytest.raises(ConfigError, match=message):
        mine(root, **options)


def test_a_class_without_images_and_a_client_without_any_are_refused(root):
    (root / "source" / "void").mkdir()
    (root / "targets" / "carol").mkdir()
    task = mine(root)
    with pytest.raises(DataError, match=r"source/void holds no image that can be used"):
        task.data(None, "train")
    with pytest.raises(DataError, match=r"targets/carol holds no image that can be used; put photographs into it"):
        task.data(2, "train")
    with pytest.raises(DataError, match="client 'dora' brings its own images, .* join it with `fedlab join"):
        mine(root, **{"image_folder.targets": "dora"}).data(0, "train")


def test_several_clients_share_a_domain(root):
    write_photos(root, count=8)
    task = mine(root, **{"data.clients_per_domain": 2})
    parts = [task.data(number, "train").columns["x"].tolist() for number in (0, 1)]
    assert task.clients[:2] == ("alice-0", "alice-1") and len(parts[0]) + len(parts[1]) == 24
    assert not set(parts[0]) & set(parts[1])
    write_photo(root / "targets" / "alice" / "loose.png", (1, 2, 3), 5)
    with pytest.raises(ConfigError, match="data.partition=dirichlet needs the class of every training image"):
        mine(root, **{"data.clients_per_domain": 2, "data.partition": "dirichlet"}).data(0, "train")


def test_textures_change_the_sources_views_alone(root):
    bare = {"image_folder.augment": False}
    plain, textured = (mine(root, **bare, **{"image_folder.texture": kind}) for kind in ("off", "randconv"))
    assert torch.equal(plain.data(0, "train")[:]["x"], textured.data(0, "train")[:]["x"])
    assert torch.equal(plain.data(None, "test")[:]["x"], textured.data(None, "test")[:]["x"])
    with seeded("texture"):
        assert not torch.equal(plain.data(None, "train")[:]["x"], textured.data(None, "train")[:]["x"])


# --- backbones --------------------------------------------------------------------------------------------------------


@needs_backbone
def test_frozen_features_are_small_inputs_of_a_small_model(root):
    task = mine(root, **BACKBONE)
    train = task.data(None, "train")
    assert train.columns["x"].shape == (15, 1280) and train.columns["x"].dtype == torch.float32
    model = task.model()
    assert {name for name, _ in model.named_parameters()} == {"head.weight", "head.bias"}
    pixels = mine(root).data(0, "test")[:]["x"]
    torch.testing.assert_close(task._frozen(pixels), task.data(0, "test")[:]["x"])
    torch.testing.assert_close(
        task.images([photo.path for photo in photo_folders.find_photos(root / "targets" / "alice")])[:]["x"],
        task.data(0, "train")[:]["x"],
    )


@needs_backbone
def test_views_of_the_source_are_computed_once_and_drawn(root):
    task = mine(root, **BACKBONE, **{"image_folder.views": 2})
    train = task.data(None, "train")
    assert train.columns["x"].shape == (15, 3, 1280)
    plain = mine(root, **BACKBONE).data(None, "train")
    torch.testing.assert_close(train.columns["x"][:, 0], plain.columns["x"])
    with seeded("views"):
        batch = train[torch.zeros(200, dtype=torch.long)]
    assert len(batch["x"].unique(dim=0)) == 3
    assert task.data(None, "test")[:]["x"].shape == (3, 1280)


@needs_backbone
def test_some_stages_train_on_what_the_frozen_ones_give(root):
    frozen, whole = (mine(root, **{**BACKBONE, "image_folder.freeze": freeze}) for freeze in ("stages", "none"))
    maps = frozen.data(0, "test")[:]["x"]
    assert maps.shape == (18, 192, 2, 2)
    with seeded("model"):
        model = frozen.model().eval()
    with seeded("model"):
        full = whole.model().eval()
    with torch.no_grad():
        torch.testing.assert_close(model(maps), full(whole.data(0, "test")[:]["x"]), atol=1e-3, rtol=1e-3)
    trained = {name for name, _ in model.named_parameters()}
    assert len(trained) < len(dict(full.named_parameters())) and any(name.startswith("features") for name in trained)
    with pytest.raises(ConfigError, match="has 9 stages, of which 9 cannot be trained with the others frozen"):
        mine(root, **{**BACKBONE, "image_folder.freeze": "stages", "image_folder.trained_stages": 9}).model()


@needs_backbone
def test_features_do_not_depend_on_the_number_of_threads_or_on_who_asks_first(root, monkeypatch, tmp_path):
    first = mine(root, **BACKBONE).data(0, "train").columns["x"].clone()
    torch.set_num_threads(2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    photo_folders._photos.cache_clear()
    from fedlab.data.images import feature_cache

    monkeypatch.setattr(feature_cache, "_known", {})
    assert torch.equal(mine(root, **BACKBONE).data(0, "train").columns["x"], first)


TINY = {
    "rounds": 1,
    "threads": 1,
    "device": "cpu",
    "server.pretrain_steps": 30,
    "server.steps": 3,
    "server.batch_size": 16,
    "client.steps": 5,
    "client.batch_size": 8,
    "image_folder.size": 64,
}


@needs_backbone
@pytest.mark.parametrize("strategy", ["dualadapt", "source_only", "self_training", "adabn", "fedavg", "source_free"])
def test_every_kind_of_strategy_runs_on_it(root, tmp_path, strategy):
    own = {"dualadapt.components": 3} if strategy == "dualadapt" else {}
    own |= {"image_folder.client_labels": True} if strategy == "fedavg" else {}
    if strategy == "source_free":
        own = {"image_folder.bottleneck": 16, "source_free.steps": 3, "source_free.guard": False}
    overrides = {**TINY, "data.root": str(root), "strategy": strategy, **own}
    result = fedlab.run("adapt-photos", runs=tmp_path / "runs", overrides=overrides)
    accuracies = [value for client in result.final().values() for key, value in client.items() if "accuracy" in key]
    assert accuracies and all(0 <= value <= 1 for value in accuracies)


@needs_backbone
@pytest.mark.engine
@pytest.mark.parametrize(("freeze", "strategy"), [("none", "self_training"), ("stages", "dualadapt")])
def test_what_is_not_frozen_is_trained_and_sent(root, tmp_path, freeze, strategy):
    own = {"dualadapt.components": 3} if strategy == "dualadapt" else {}
    overrides = {**TINY, "data.root": str(root), "strategy": strategy, "image_folder.freeze": freeze, **own}
    overrides |= {"server.pretrain_steps": 3, "data.max_examples": 6, "image_folder.targets": "alice"}
    result = fedlab.run("adapt-photos", runs=tmp_path / "runs", overrides=overrides)
    sent = result.rounds[-1]["bytes"]["alice"]["train_down"]
    assert sent > 4 * {"none": 3_300_000, "stages": 1_000_000}[freeze]


@needs_backbone
@pytest.mark.parametrize("strategy", ["dualadapt", "self_training", "adabn"])
def test_odd_clients_do_no_harm(root, tmp_path, strategy):
    """One with a single image, one with images of one class only, one with none of the source's classes."""
    targets = root / "targets"
    write_photo(targets / "single" / "one.png", (90, 90, 90), 1)
    for number in range(4):
        write_photo(targets / "narrow" / "apple" / f"{number}.png", (150, 60, 60), number)
        write_photo(targets / "foreign" / "zebra" / f"{number}.png", (128, 128, 128), 10 + number)
    own = {"dualadapt.components": 3} if strategy == "dualadapt" else {}
    overrides = {**TINY, "data.root": str(root), "strategy": strategy, **own}
    result = fedlab.run("adapt-photos", runs=tmp_path / "runs", overrides=overrides)
    line = result.rounds[-1]
    assert not line["failures"] and set(line["clients"]) == {"alice", "bob", "single", "narrow", "foreign"}
    assert not any("accuracy" in key for name in ("single", "foreign") for key in line["clients"][name])
    assert any("accuracy" in key for key in line["clients"]["narrow"])
