"""What a run chooses by name: the tables, import paths, entry points, and objects of this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from textwrap import dedent

import pytest

import fedlab
import toy
from fedlab import plugins, registry
from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.config.schema import NoOptions
from fedlab.errors import ConfigError
from fedlab.plugins import reference_to
from fedlab.registry import find, load_config
from fedlab.strategies import fedprox
from fedlab.strategies.ablations import Ablation
from fedlab.strategies.aggregation.server_optimizers import FEDAVG
from fedlab.workloads.digits import Digits

QUICK = {"rounds": 1, "threads": 1, "server.pretrain_steps": 2, "server.steps": 1, "client.steps": 1}


@dataclass(frozen=True)
class Task:
    """A workload of a user's own: a dataclass of the standard library."""

    domains: str = "near,far"
    client_labels: bool = True
    headless: bool = False
    linear: bool = False
    broken: int = -1
    poison: bool = False
    data_config: DataConfig = field(default=DEFAULT_DATA)

    clients = toy.Blobs.clients
    model, data, loss, evaluate = toy.Blobs.model, toy.Blobs.data, toy.Blobs.loss, toy.Blobs.evaluate


class Plain:
    """A workload that is no dataclass."""

    clients = ("near", "far")

    def __init__(self, *domains: str) -> None:
        self.blobs = toy.Blobs(domains=",".join(domains or self.clients), client_labels=True)
        self.clients = self.blobs.clients

    def model(self):
        return self.blobs.model()

    def data(self, partition, split):
        return self.blobs.data(partition, split)

    def loss(self, model, batch):
        return self.blobs.loss(model, batch)

    def evaluate(self, model, data):
        return self.blobs.evaluate(model, data)


HERE = Plain.__module__
KNOWN = Plain("one", "two", "three")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that only our own ``sys.path`` knows; gives its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text, name="someones"):
        (tmp_path / f"{name}.py").write_text(dedent(text))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    yield write
    sys.modules.pop("someones", None)


@pytest.fixture
def entry_points(monkeypatch, tmp_path):
    """Install packages with entry points in a folder of the search path: ``(package, group, name, value)``."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])

    def install(*rows):
        for package in {row[0] for row in rows}:
            folder = site / f"{package.replace('-', '_')}-1.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
            lines = [f"[{group}]\n{name} = {value}\n" for owner, group, name, value in rows if owner == package]
            (folder / "entry_points.txt").write_text("".join(lines))
        registry.forget()

    return install


# --- the tables ---


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_every_row_leads_to_a_spec_and_has_a_summary(kind):
    for name in registry.KINDS[kind].table:
        plugin = find(kind, name)
        assert (plugin.reference, plugin.section) == (name, name)
        assert registry.summary(kind, name)


def test_sections_of_all_that_has_a_name():
    found = registry.all_sections()
    assert {"", "comm", "data", "server", "client", "ray", "digits", "dualadapt", "fedavg", "fedprox"} <= set(found)
    assert found["digits"] is Digits


def test_a_name_that_nothing_has_gets_a_near_match_and_the_way_out():
    with pytest.raises(ConfigError, match="unknown strategy 'dualadpt'; did you mean 'dualadapt'.* pkg.module:Name"):
        find("strategy", "dualadpt")
    with pytest.raises(ConfigError, match="did you mean 'dualadapt_no_mixup'"):
        find("strategy", "dualadapt_no_mixp")


# --- by import path ---

TASK = """
    from pydantic import Field
    from pydantic.dataclasses import dataclass
    import toy

    @dataclass(frozen=True)
    class MyTask(toy.Blobs):
        size: int = Field(3, description="of the task")

    LARGE = MyTask(size=9)

    class Half:
        clients = ("a",)
        def model(self): ...
        def data(self, partition, split): ...
"""


def test_a_class_is_named_by_its_path_and_its_options_by_its_name(module):
    path = f"{module(TASK)}:MyTask"
    config = load_config({"workload": path, "strategy": "source_only"}, {"my_task.size": "5", "my_task.domains": "a"})
    assert type(config.workload).__name__ == "MyTask"
    assert (config.workload.size, config.clients) == (5, ("a",))
    assert config.options()["my_task.size"] == 5
    assert load_config(config.options()) == config
    with pytest.raises(ConfigError, match=r"option 'my_task.size' \(of the task\): got 'x'"):
        load_config({"workload": path, "my_task.size": "x"})
    with pytest.raises(ConfigError, match="unknown option 'my_task.sise'; did you mean 'my_task.size'"):
        load_config({"workload": path}, {"my_task.sise": 1})


def test_a_spec_names_its_section_or_its_module_does(module):
    name = module("""
        from dataclasses import replace
        from toy import SPEC
        NAMED = replace(SPEC, name="dots")
    """)
    assert find("workload", f"{name}:SPEC").section == name
    assert find("workload", f"{name}:NAMED").section == "dots"


def test_an_object_of_a_module_is_taken_as_it_is(module):
    config = load_config({"workload": f"{module(TASK)}:LARGE", "strategy": "source_only"})
    assert config.workload.size == 9
    assert config.plugins["workload"].spec.options is NoOptions
    assert load_config(config.options()) == config


def test_a_strategy_and_a_rule_of_ones_own(module):
    name = module("""
        from dataclasses import replace
        from fedlab.strategies.fedprox import SPEC
        from fedlab.strategies.aggregation.server_optimizers import FEDADAM as OTHER
        MINE = replace(SPEC, name="mine")
    """)
    config = load_config({"workload": f"{HERE}:Task", "strategy": f"{name}:MINE", "mine.mu": 0.5})
    assert config.strategy.mu == 0.5 and "fedprox.mu" not in config.options()
    rule = load_config({"workload": f"{HERE}:Task", "strategy": f"{name}:OTHER", f"{name}.learning_rate": 0.5})
    assert rule.aggregation.learning_rate == 0.5
    chosen = {"strategy": "self_training", "self_training.aggregation": f"{name}:OTHER", f"{name}.learning_rate": 0.5}
    assert load_config(chosen).aggregation == rule.aggregation


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        (
            "not_here.tasks:Task",
            "workload 'not_here.tasks:Task': there is no module 'not_here' on this machine; install",
        ),
        ("someones.deeper:Task", "there is no module 'someones.deeper' on this machine|is not a package"),
        ("someones:MyTusk", "module 'someones' has no 'MyTusk'; did you mean 'MyTask'"),
        ("someones:MyTask.small", "module 'someones' has no 'MyTask.small'"),
        ("someones:", "'someones:' is no import path; write pkg.module:Name"),
        (":MyTask", "':MyTask' is no import path"),
        ("someones:Half", "'someones:Half' is no workload: it lacks loss, evaluate"),
        ("someones:toy", "is no workload: a module without clients, model, data, loss, evaluate"),
    ],
)
def test_a_path_that_leads_nowhere_is_a_sentence(module, reference, sentence):
    module(TASK)
    with pytest.raises(ConfigError, match=sentence):
        find("workload", reference)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 / 0", "importing 'someones' raised ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "importing 'someones' raised SystemExit: 3"),
        ("import not_installed_anywhere", "module 'someones' needs 'not_installed_anywhere', which is not installed"),
        ("def broken(:", "importing 'someones' raised SyntaxError"),
        ("from fedlab import nothing_of_ours", "importing 'someones' raised ImportError: cannot import name"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(module, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        find("workload", f"{module(text)}:Task")


@pytest.mark.parametrize("kind", ["strategy", "aggregation", "engine"])
def test_what_is_of_another_kind_is_refused(kind):
    with pytest.raises(ConfigError, match=rf"{kind} '{HERE}:KNOWN' is a Plain; an? \w+Spec"):
        find(kind, f"{HERE}:KNOWN")


def test_a_workload_cannot_have_the_options_of_another_section(module):
    name = module("""
        from dataclasses import dataclass
        import toy

        @dataclass(frozen=True)
        class Server(toy.Blobs):
            pass
    """)
    with pytest.raises(ConfigError, match=f"workload '{name}:Server' would have its options under 'server'"):
        load_config({"workload": f"{name}:Server"})


# --- entry points ---


def test_a_package_gives_its_things_short_names(module, entry_points):
    path = f"{module(TASK)}:MyTask"
    entry_points(("someones-package", "fedlab.workloads", "task", path))
    config = load_config({"workload": "task", "task.size": 4})
    assert config.workload.size == 4
    assert registry.names("workload")[-1] == "task"
    assert registry.summary("workload", "task") == f"plug-in {path}"
    assert "task" in registry.all_sections()
    with pytest.raises(ConfigError, match="unknown workload 'tusk'; did you mean 'task'"):
        find("workload", "tusk")


def test_a_name_of_two_packages_is_refused_and_one_of_ours_is_ours(module, entry_points):
    path = f"{module(TASK)}:MyTask"
    entry_points(
        ("first-package", "fedlab.workloads", "task", path),
        ("second-package", "fedlab.workloads", "task", "elsewhere:Task"),
        ("first-package", "fedlab.workloads", "digits", path),
    )
    with pytest.raises(ConfigError, match=r"two plug-ins, of first-package .* and second-package \(elsewhere:Task\)"):
        find("workload", "task")
    assert find("workload", path).section == "my_task"  # by its path it is clear
    assert find("workload", "digits").spec.workload is Digits
    assert registry.names("workload").count("digits") == 1


def test_two_packages_with_a_preset_of_one_name(entry_points):
    entry_points(("first", "fedlab.presets", "mine", "aa:PRESET"), ("second", "fedlab.presets", "mine", "bb:PRESET"))
    with pytest.raises(ConfigError, match=r"preset 'mine' is the name of two plug-ins, of first \(aa:PRESET\)"):
        load_config("mine")


def test_a_package_that_is_installed_meanwhile_is_found(module, entry_points):
    with pytest.raises(ConfigError, match="unknown workload 'task'"):
        find("workload", "task")
    entry_points(("package", "fedlab.workloads", "task", f"{module(TASK)}:MyTask"))
    assert find("workload", "task").section == "task"


def test_a_broken_package_does_not_hide_a_wrong_option(module, entry_points):
    entry_points(("package", "fedlab.workloads", "task", f"{module('1 / 0')}:MyTask"))
    with pytest.raises(ConfigError, match="unknown option 'rnds'; did you mean 'rounds'"):
        load_config("dualadapt-digits", {"rnds": 3})


def test_a_workload_that_cannot_be_made_or_has_options_of_another_type(module):
    name = module("""
        from dataclasses import dataclass
        import toy


        class Something: ...

        @dataclass(frozen=True)
        class Strange(toy.Blobs):
            thing: Something = Something()
    """)
    with pytest.raises(ConfigError, match="the options under 'strange' have a field whose type is none of bool"):
        load_config({"workload": f"{name}:Strange"})


def test_a_package_that_is_found_twice_is_one(module, entry_points):
    row = ("fedlab.workloads", "task", f"{module(TASK)}:MyTask")
    entry_points(("package", *row), ("fork-of-package", *row))
    assert find("workload", "task").section == "task"


def test_a_package_may_bring_presets(module, entry_points, tmp_path):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.toml").write_text('workload = "someones:MyTask"\n[my_task]\nsize = 8\n')
    entry_points(("package", "fedlab.presets", "mine", f"{module(TASK)}:presets/mine.toml"))
    assert load_config("mine").workload.size == 8
    with pytest.raises(ConfigError, match="unknown preset 'mein'"):
        load_config("mein")


# --- objects ---


def test_a_dataclass_is_named_by_its_class_with_its_values_as_options():
    reference, values = reference_to("workload", Task(domains="a,b", broken=1, data_config=DataConfig(alpha=0.1)))
    assert reference == f"{HERE}:Task"
    assert values == {
        "task.domains": "a,b",
        "task.client_labels": True,
        "task.headless": False,
        "task.linear": False,
        "task.broken": 1,
        "task.poison": False,
        "data.alpha": 0.1,
    }
    config = load_config({"workload": reference, **values})
    assert config.workload == Task(domains="a,b", broken=1, data_config=config.data)


def test_what_a_module_holds_is_named_by_its_variable():
    assert reference_to("workload", KNOWN) == (f"{HERE}:KNOWN", {})
    reference, values = reference_to("strategy", fedprox.SPEC)
    assert values == {} and find("strategy", reference).spec is fedprox.SPEC


def test_what_a_script_or_a_notebook_has_imported_is_named_by_the_module_that_others_can_import(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "FIRST_OF_ALL", KNOWN, raising=False)
    assert reference_to("workload", KNOWN) == (f"{HERE}:KNOWN", {})


@pytest.fixture
def _nothing_live(monkeypatch):
    monkeypatch.setattr(plugins, "live_objects", {})


@pytest.mark.usefixtures("_nothing_live")
def test_what_is_left_is_known_to_this_process_alone(monkeypatch):
    reference, values = reference_to("workload", mine := Plain("a", "b"))
    assert (reference, values) == ("live:plain", {})
    assert find("workload", reference).spec.workload is mine
    monkeypatch.setattr(plugins, "live_objects", {})
    registry.forget()
    with pytest.raises(ConfigError, match="'live:plain' is an object of the process.*fedlab.resume.*in a module"):
        find("workload", reference)


@pytest.mark.usefixtures("_nothing_live")
def test_two_objects_of_one_class_do_not_take_each_others_place():
    """A run that is recorded under the name of the first finds the first again."""
    objects = Plain("a"), Plain("b")
    first, second = (reference_to("workload", one)[0] for one in objects)
    assert (first, second) == ("live:plain", "live:plain#2")
    assert reference_to("workload", objects[1])[0] == second
    assert find("workload", first).spec.workload.clients == ("a",)
    assert find("workload", second).spec.workload.clients == ("b",)
    assert find("workload", second).section == "plain"


def test_a_run_of_a_dataclass_can_be_found_again(tmp_path):
    result = fedlab.run(workload=Task(domains="a,b,c"), strategy="fedavg", runs=tmp_path, overrides=QUICK)
    assert set(result.final()) == {"a", "b", "c"}
    assert result.config["workload"] == f"{HERE}:Task" and result.config["task.domains"] == "a,b,c"
    assert result.directory.name == "fedavg-task-0"
    again = fedlab.run(result.directory / "config.toml", runs=tmp_path)
    assert again.weights_sha256 == result.weights_sha256
    named = fedlab.run(
        workload=f"{HERE}:Task", strategy="fedavg", runs=tmp_path, overrides={**QUICK, "task.domains": "a,b,c"}
    )
    assert named.weights_sha256 == result.weights_sha256


@pytest.mark.parametrize("local", [True, False])
def test_a_run_of_a_live_object(tmp_path, local):
    @dataclass(frozen=True)
    class Local(Task):
        """A dataclass that no import path leads to."""

    result = fedlab.run(
        workload=Local(domains="a,b") if local else Plain("a", "b"),
        strategy=replace(find("strategy", "fedavg").spec, name="mine"),
        rounds=1,
        runs=tmp_path,
        overrides={key: value for key, value in QUICK.items() if key != "rounds"},
    )
    assert set(result.final()) == {"a", "b"}
    twin = fedlab.run(workload=Task(domains="a,b"), strategy="fedavg", runs=tmp_path, overrides=QUICK)
    assert result.weights_sha256 == twin.weights_sha256


@pytest.mark.usefixtures("_nothing_live")
def test_a_live_object_is_refused_where_clients_cannot_find_it_and_given_again_by_another_process(tmp_path):
    options = {"strategy": "fedavg", "runs": tmp_path}
    for engine in ("pool", "ray"):
        with pytest.raises(ConfigError, match=f"'live:plain.*' is an object of this.*engine={engine}.*=inprocess"):
            fedlab.run(workload=Plain("a", "b"), **options, overrides={**QUICK, "engine": engine})
    assert not list(tmp_path.iterdir())
    begun = fedlab.run(workload=Plain("a", "b"), **options, overrides={**QUICK, "rounds": 1})
    plugins.live_objects.clear()  # as in another process
    with pytest.raises(ConfigError, match="is an object of the process that began the run"):
        fedlab.resume(begun.directory, rounds=2)
    with pytest.raises(ConfigError, match="'fedavg', which is found without an object"):
        fedlab.resume(begun.directory, strategy=FEDAVG)
    longer = fedlab.resume(begun.directory, workload=Plain("a", "b"), rounds=2)
    whole = fedlab.run(workload=Plain("a", "b"), **options, overrides={**QUICK, "rounds": 2})
    assert longer.weights_sha256 == whole.weights_sha256


def test_a_rule_makes_a_strategy_of_an_object(tmp_path):
    result = fedlab.run(workload=Task(), strategy=FEDAVG, runs=tmp_path, overrides=QUICK)
    assert find("strategy", result.config["strategy"]).spec.aggregation is FEDAVG


# --- defaults of a strategy ---

AVERAGE = {"strategy": "fedavg", "client.steps": 30, "client.momentum": 0.5}


def local(preset, **overrides):
    client = load_config(preset, overrides).client
    return client.steps, client.epochs, client.momentum


def test_a_strategys_defaults_go_over_a_preset_for_another_and_below_one_for_itself():
    assert local({}, strategy="fednova") == (200, 1.0, 0.9)
    assert local(AVERAGE) == (30, 0.0, 0.5)
    assert local(AVERAGE, strategy="fednova") == (30, 1.0, 0.5)
    assert local({**AVERAGE, "strategy": "fednova"}) == (30, 0.0, 0.5)
    assert local({"strategy": "fednova", "client.epochs": 3.0}) == (200, 3.0, 0.9)


def test_a_users_options_go_over_both():
    assert local(AVERAGE, strategy="fednova", **{"client.epochs": 2.0}) == (30, 2.0, 0.5)
    assert local(AVERAGE, strategy="fednova", **{"client.steps": 7}) == (7, 0.0, 0.5)  # steps and not epochs
    assert local({"strategy": "fednova"}, strategy="fednova", **{"client.steps": 7}) == (7, 0.0, 0.9)
    assert local(AVERAGE, **{"client.steps": 7, "client.epochs": 2.0}) == (7, 2.0, 0.5)


def test_what_is_resolved_resolves_to_itself():
    config = load_config(AVERAGE, {"strategy": "fednova"})
    assert load_config(config.options()) == config == load_config("", config.options())


def test_an_ablation_is_its_strategy_in_another_form(monkeypatch):
    ablation = Ablation("fednova", "three passes", {"client.epochs": 3.0})
    monkeypatch.setitem(registry.ABLATIONS, "fednova_long", ablation)
    assert local(AVERAGE, strategy="fednova_long") == (30, 3.0, 0.5)
    assert local({"strategy": "fednova_long", "client.momentum": 0.1}) == (200, 3.0, 0.1)
