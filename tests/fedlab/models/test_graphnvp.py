"""GraphNVP: published sizes, log-determinants against autograd, exact inversion, likelihoods by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from fedlab.data.molecules import graphs, smiles
from fedlab.data.molecules.graphs import QM9
from fedlab.models.graph_generator import GraphGenerator, argmax_one_hot, symmetrize
from fedlab.models.graphnvp import GraphNVP
from fedlab.models.graphnvp_conditioners import (
    QM9_SIZES,
    ZINC_SIZES,
    AdjacencyConditioner,
    GraphNVPSizes,
    NodeConditioner,
)
from fedlab.seeds import seeded

TINY = GraphNVPSizes(3, 3, 5, 4, (6, 5), (4, 6), (5, 4))  # more layers than atoms: columns take turns


def weights(module):
    return sum(parameter.numel() for parameter in module.parameters())


def shaken(sizes=TINY, **how):
    """A flow whose layers do something: random last layers, batch norms that have seen data; in eval mode."""
    with seeded("flow"):
        model = GraphNVP(sizes, **how).double()
        for name, parameter in model.named_parameters():
            if "head" in name or "log_variance" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                torch.nn.init.normal_(module.running_mean)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def continuous(count=4, sizes=TINY):
    with seeded("graphs"):
        adjacency = torch.randn(count, sizes.channels, sizes.size, sizes.size, dtype=torch.double)
        return adjacency, torch.randn(count, sizes.size, sizes.elements, dtype=torch.double)


# --- sizes ---


def test_numbers_of_weights_are_the_published_ones():
    with torch.device("meta"):
        qm9, zinc = GraphNVP(QM9_SIZES), GraphNVP(ZINC_SIZES)
    assert weights(qm9) == 6_145_831
    assert weights(zinc) == 245_792_665


def test_one_layer_of_each_kind_by_hand():
    with torch.device("meta"):
        layers = [
            make(sizes, False) for sizes in (QM9_SIZES, ZINC_SIZES) for make in (AdjacencyConditioner, NodeConditioner)
        ]
    assert [weights(layer) for layer in layers] == [149_605, 28_150, 6_374_025, 94_203]
    # BN(8 * 36) + 288 * 256 + 256 * 256 + 256 * 36 with biases, and one scale
    assert 149_605 == 2 * 288 + 289 * 256 + 257 * 256 + 257 * 36 + 1


def test_it_is_a_generator_of_graphs():
    assert isinstance(GraphNVP(TINY), GraphGenerator)


# --- the maps ---


@pytest.mark.parametrize("affine", [False, True])
def test_log_determinants_are_those_of_the_autograd_jacobian(affine):
    model, (adjacency, nodes) = shaken(affine=affine, affine_nodes=affine), continuous()
    _, of_adjacency = model.adjacency_forward(adjacency)
    _, of_nodes = model.nodes_forward(nodes, adjacency)
    for row in range(len(nodes)):
        jacobian = torch.autograd.functional.jacobian(
            lambda flat: model.adjacency_forward(flat.view(1, 4, 3, 3))[0].flatten(), adjacency[row].flatten()
        )
        assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(of_adjacency[row].item(), abs=1e-9)
        given = adjacency[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda flat, given=given: model.nodes_forward(flat.view(1, 3, 3), given)[0].flatten(), nodes[row].flatten()
        )
        assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(of_nodes[row].item(), abs=1e-9)
    assert (of_adjacency.abs() > 0.5).all() if affine else (of_adjacency == 0).all()
    assert (of_nodes.abs() > 0.1).all() if affine else (of_nodes == 0).all()


@pytest.mark.parametrize("affine", [False, True])
def test_both_maps_invert(affine):
    model, (adjacency, nodes) = shaken(affine=affine, affine_nodes=affine), continuous()
    z, z_nodes = model.adjacency_forward(adjacency)[0], model.nodes_forward(nodes, adjacency)[0]
    assert (z - adjacency).abs().mean() > 0.05 and (z_nodes - nodes).abs().mean() > 0.05
    torch.testing.assert_close(model.adjacency_inverse(z), adjacency, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.nodes_inverse(z_nodes, adjacency), nodes, rtol=0, atol=1e-12)


def test_layer_l_changes_column_or_row_l_mod_n_by_the_others_alone():
    model, (adjacency, nodes) = shaken(), continuous(1)
    for number in range(5):
        for layers in (model.adjacency, model.nodes):
            for other, layer in enumerate(layers):
                layer.head.scale.data.fill_(0.0 if other == number else -50.0)  # every other layer is the identity
        i = number % 3
        moved = (model.adjacency_forward(adjacency)[0] - adjacency)[0].abs()
        assert (moved[:, :, i] > 1e-4).any() and (moved[:, :, [j for j in range(3) if j != i]] < 1e-12).all()
        changed = adjacency.clone()
        changed[..., i] += 1.0
        again = (model.adjacency_forward(changed)[0] - changed)[0].abs()
        torch.testing.assert_close(again, moved)  # its own column does not speak
        if number < 4:
            moved = (model.nodes_forward(nodes, adjacency)[0] - nodes)[0].abs()
            assert (moved[i] > 1e-5).any() and (moved[[j for j in range(3) if j != i]] < 1e-12).all()


def test_a_new_flow_is_nearly_the_identity():
    with seeded("flow"):
        model = GraphNVP(TINY).eval()
    adjacency, nodes = (part.float() for part in continuous())
    torch.testing.assert_close(model.adjacency_forward(adjacency)[0], adjacency, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.nodes_forward(nodes, adjacency)[0], nodes, rtol=0, atol=1e-6)


# --- likelihoods ---


def random_graphs(sizes=TINY, count=6):
    with seeded("one-hot"):
        adjacency = argmax_one_hot(symmetrize(torch.randn(count, sizes.channels, sizes.size, sizes.size)), 1)
        return adjacency.double(), argmax_one_hot(torch.randn(count, sizes.size, sizes.elements), 2).double()


@pytest.mark.parametrize("affine", [False, True])
def test_loss_and_bound_are_the_formulas(affine):
    """-log p of z by torch's Normal, log-determinants by the maps; the same noise is drawn in the same order."""
    model, (adjacency, nodes) = shaken(affine=affine, noise=0.7), random_graphs()
    sigma = math.exp(0.5 * model.log_variance.item())
    with seeded("noise"):
        noisy_nodes = nodes + 0.7 * torch.rand_like(nodes)
        noisy = adjacency + 0.7 * torch.rand_like(adjacency)
    z_nodes, its = model.nodes_forward(noisy_nodes, adjacency)
    z, log_det = model.adjacency_forward(noisy)
    nll_nodes = -Normal(0.0, sigma).log_prob(z_nodes).sum((1, 2)) - its
    nll = -Normal(0.0, sigma).log_prob(z).sum((1, 2, 3)) - log_det
    with seeded("noise"):
        torch.testing.assert_close(model.loss(adjacency, nodes), (nll.mean() / 36 + nll_nodes.mean() / 9) / 2)
    with seeded("noise"):
        torch.testing.assert_close(model.nll(adjacency, nodes), nll + nll_nodes - 45 * math.log(0.7))


def test_the_bound_is_no_smaller_than_the_entropy_of_what_it_is_trained_on():
    """Two graphs with probability 1/2 each: no model can be below log 2, and this one learns to come nearer."""
    adjacency, nodes = random_graphs(count=2)
    adjacency, nodes = adjacency.float().repeat(32, 1, 1, 1), nodes.float().repeat(32, 1, 1)
    with seeded("training"):
        model = GraphNVP(TINY)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        before = model.eval().nll(adjacency, nodes).mean().item()
        for _ in range(40):
            optimizer.zero_grad()
            model.train().loss(adjacency, nodes).backward()
            optimizer.step()
        after = model.eval().nll(adjacency, nodes).mean().item()
    assert math.log(2) < after < before - 10


# --- graphs from latents ---


def test_real_molecules_come_back_whole_from_a_trained_flow():
    """In eval mode, every single one: 400 molecules of QM9 through the published sizes."""
    found = smiles.load_molecules(smiles.molecule_file("qm9", "test", None), QM9, limit=400)
    adjacency, nodes = graphs.one_hot(found.bonds, found.atoms, QM9)
    with seeded("training"):
        model = GraphNVP(QM9_SIZES).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
        for rows in torch.randint(400, (2, 32)):
            optimizer.zero_grad()
            model.loss(adjacency[rows], nodes[rows]).backward()
            optimizer.step()
        for layer in [*model.adjacency, *model.nodes]:
            torch.nn.init.normal_(layer.head.linear.weight, std=0.05)  # far from the identity
    model.eval()
    latent = model.encode(adjacency, nodes)
    assert latent.shape == (400, 369)
    assert (latent[:, :324] - adjacency.flatten(1)).abs().mean() > 0.05
    decoded, its = model.decode(latent)
    assert torch.equal(decoded, adjacency) and torch.equal(its, nodes)


def test_samples_are_one_hot_symmetric_and_of_one_generator():
    model = shaken().float()
    draws = [model.sample(50, 0.8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    adjacency, nodes = draws[0]
    assert adjacency.shape == (50, 4, 3, 3) and nodes.shape == (50, 3, 3)
    assert (adjacency.sum(1) == 1).all() and (nodes.sum(2) == 1).all()
    assert torch.equal(adjacency, adjacency.transpose(2, 3))
    assert all(torch.equal(one, again) for one, again in zip(*draws[:2], strict=True))
    assert not torch.equal(adjacency, draws[2][0])
    with seeded("sample"):
        one = model.sample(5)
    with seeded("sample"):
        assert torch.equal(one[0], model.sample(5)[0])


def test_sampling_is_bonds_first_then_atoms_given_them():
    model, generator = shaken().float(), torch.Generator().manual_seed(3)
    adjacency, nodes = model.sample(20, 0.5, generator)
    z = 0.5 * torch.exp(0.5 * model.log_variance) * torch.randn(20, 45, generator=generator.manual_seed(3))
    a = model.adjacency_inverse(z[:, :36].view(-1, 4, 3, 3))
    a = torch.nn.functional.one_hot(((a + a.transpose(2, 3)) / 2).softmax(1).argmax(1), 4).permute(0, 3, 1, 2).float()
    x = model.nodes_inverse(z[:, 36:].view(-1, 3, 3), a).argmax(2)
    assert torch.equal(adjacency, a) and torch.equal(nodes.argmax(2), x)


def test_a_low_temperature_draws_the_same_graph_over_and_over():
    model = shaken().float()

    def different(temperature):
        adjacency, nodes = model.sample(100, temperature, torch.Generator().manual_seed(0))
        return len(torch.cat([adjacency.flatten(1), nodes.flatten(1)], 1).unique(dim=0))

    assert different(1e-3) <= 2 < 50 < different(1.0)


def test_it_does_not_invert_in_training_mode():
    with pytest.raises(RuntimeError, match="inverts in eval mode only"):
        GraphNVP(TINY).train().sample(2)


def test_hard_and_symmetric_by_hand():
    scores = torch.tensor([[[0.0, 3.0], [1.0, 1.0]]])  # (1, 2, 2)
    assert argmax_one_hot(scores, 1).tolist() == [[[0.0, 1.0], [1.0, 0.0]]]
    assert argmax_one_hot(scores, 2).tolist() == [[[0.0, 1.0], [1.0, 0.0]]]
    assert symmetrize(scores).tolist() == [[[0.0, 2.0], [2.0, 1.0]]]
