"""MPGVAE: number of weights, symmetries, the bound by a plain loop, a distribution over graphs, warm-up, samples."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fedlab.losses.graph_matching import permute_graph
from fedlab.models import message_passing, mpgvae
from fedlab.models.graph_generator import GraphGenerator, argmax_one_hot, symmetrize
from fedlab.models.mpgvae import MPGVAE, MPGVAESizes, mask_absent, reconstruction_nll
from fedlab.seeds import seeded

TINY = MPGVAESizes(4, 3, width=6, latent=3, passes=2, readout=2)


def made(sizes=TINY, **how):
    with seeded("model"):
        return MPGVAE(sizes, **how).double()


def graphs(count=8, sizes=TINY):
    """Random graphs, absent atoms last and without bonds, as files give them; the first has two atoms."""
    with seeded("graphs"):
        adjacency = argmax_one_hot(symmetrize(torch.randn(count, sizes.channels, sizes.size, sizes.size)), 1)
        elements = torch.randint(sizes.elements - 1, (count, sizes.size))
        atoms = 1 + torch.randint(sizes.size, (count,))
        atoms[0] = 2
        elements[torch.arange(sizes.size) >= atoms[:, None]] = sizes.elements - 1
        nodes = torch.nn.functional.one_hot(elements, sizes.elements)
        return mask_absent(adjacency, nodes).double(), nodes.double()


def test_number_of_weights_by_hand():
    """Layer by layer, for width d, latent l, F elements, R kinds of bonds and three steps."""
    d, latent, f, r, passes = 64, 32, 5, 4, 3
    gru = 6 * d * d + 6 * d  # three gates of input and state, with both biases

    def messages(edges):  # of pairs, then the network's last layer, attention, GRU, norm
        return (2 * d + edges + 1) * d + (d + 1) * d + (2 * d + edges + 1) + gru + 2 * d

    encoder = (f + 1) * d + messages(r) + 4 * (3 * d * d + 2 * d) + (2 * d + 1) * 2 * latent
    seeds = (latent + 1) * d + 9 * d + gru + 2 * d
    start = (2 * d + 1) * d + (d + 1) * d
    turns = passes * (messages(d) + (3 * d + 1) * d + (d + 1) * d + 2 * d)
    heads = 2 * (d + 1) * d + (d + 1) * f + (d + 1) * r
    with torch.device("meta"):
        model, larger = MPGVAE(MPGVAESizes(9, 5)), MPGVAE(MPGVAESizes(9, 5, width=160, latent=56, passes=4))
    assert sum(weight.numel() for weight in model.parameters()) == encoder + seeds + start + turns + heads == 320_593
    assert sum(weight.numel() for weight in larger.parameters()) == 2_318_370


def test_it_is_a_generator_of_graphs():
    assert isinstance(MPGVAE(TINY), GraphGenerator)


# --- symmetries ---


def test_the_encoder_sees_no_order_and_no_absent_atoms():
    model, (adjacency, nodes) = made(), graphs()
    latent = model.encode(adjacency, nodes)
    with seeded("orders"):
        orders = torch.rand(8, 4).argsort(1)
    torch.testing.assert_close(model.encode(*permute_graph(adjacency, nodes, orders)), latent)
    assert (latent[1:] - latent[:-1]).abs().amax(1).gt(1e-3).all()
    larger = made(MPGVAESizes(6, 3, width=6, latent=3, passes=2, readout=2))  # two more places, nobody there
    larger.encoder.load_state_dict(model.encoder.state_dict())
    wide, more = torch.zeros(8, 4, 6, 6).double(), torch.zeros(8, 6, 3).double()
    wide[:, -1], more[..., -1] = 1, 1
    wide[:, :, :4, :4], more[:, :4] = adjacency, nodes
    torch.testing.assert_close(larger.encode(wide, more), latent)


def test_wide_first_weights_set_latents_apart_in_more_directions(monkeypatch):
    sizes = MPGVAESizes(4, 3)
    adjacency, nodes = graphs(60, sizes)

    def apart():
        latent = made(sizes).encode(adjacency, nodes)
        return torch.linalg.svdvals(latent - latent.mean(0))

    wide = apart()
    monkeypatch.setattr(message_passing, "INIT_GAIN", 1.0)
    narrow = apart()
    assert wide[0] > narrow[0] and wide[4] / wide[0] > 2 * narrow[4] / narrow[0]


def test_places_of_the_decoder_differ_and_its_bonds_are_symmetric():
    model = made()
    bonds, atoms = model.decoder(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double())
    torch.testing.assert_close(bonds, bonds.transpose(2, 3))
    torch.testing.assert_close(bonds.exp().sum(1), torch.ones(5, 4, 4).double())
    torch.testing.assert_close(atoms.exp().sum(2), torch.ones(5, 4).double())
    assert (atoms[:, 1:] - atoms[:, :-1]).abs().amax((0, 2)).gt(1e-3).all()


# --- the bound ---


def test_the_bound_is_a_plain_loop_over_atoms_and_pairs_and_torchs_divergence():
    model, (adjacency, nodes) = made(beta=0.3), graphs()
    with seeded("noise"):
        found = model.nll(adjacency, nodes)
    with seeded("noise"):
        loss = model.eval().loss(adjacency, nodes)
    mu, log_variance = model.encoder(adjacency, nodes)
    with seeded("noise"):
        z = mu + log_variance.mul(0.5).exp() * torch.randn_like(mu)
    bonds, atoms = model.decoder(z)
    q = Normal(mu, log_variance.mul(0.5).exp())
    divergence = kl_divergence(q, Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
    costs = []
    for graph in range(len(nodes)):
        there, total = [v for v in range(4) if nodes[graph, v, -1] == 0], 0.0
        for v in range(4):
            total -= atoms[graph, v, int(nodes[graph, v].argmax())].item()
        for v in there:
            for w in there:
                if v < w:
                    total -= bonds[graph, int(adjacency[graph, :, v, w].argmax()), v, w].item()
        costs.append(total)
    costs = torch.tensor(costs).double()
    torch.testing.assert_close(found, costs + divergence)
    torch.testing.assert_close(loss, (costs + 0.3 * divergence).mean() / 10)


def test_probabilities_of_all_graphs_sum_to_one():
    sizes = MPGVAESizes(3, 3, width=6, latent=3, passes=1, channels=3)
    model = made(sizes)
    bonds, atoms = model.decoder(torch.randn(1, 3, generator=torch.Generator().manual_seed(1)).double())
    total, seen = 0.0, 0
    for elements in product(range(3), repeat=3):
        nodes = torch.nn.functional.one_hot(torch.tensor(elements), 3)[None].double()
        pairs = [(v, w) for v in range(3) for w in range(v) if elements[v] != 2 and elements[w] != 2]
        for kinds in product(range(3), repeat=len(pairs)):
            adjacency = torch.zeros(1, 3, 3, 3).double()
            adjacency[:, 2] = 1
            for (v, w), kind in zip(pairs, kinds, strict=True):
                adjacency[0, :, v, w] = adjacency[0, :, w, v] = 0
                adjacency[0, kind, v, w] = adjacency[0, kind, w, v] = 1
            total += math.exp(-reconstruction_nll(bonds, atoms, adjacency, nodes).item())
            seen += 1
    assert total == pytest.approx(1.0) and seen == 8 * 27 + 12 * 3 + 6 + 1


def test_matched_costs_are_below_those_in_order_and_of_no_order():
    plain, matched = made(), made(matching="assignment")
    adjacency, nodes = graphs()
    with seeded("orders"):
        orders = torch.rand(8, 4).argsort(1)

    def costs(model, adjacency, nodes):
        with seeded("noise"):
            return model.terms(adjacency, nodes)[0]

    least = costs(matched, adjacency, nodes)
    assert (least <= costs(plain, adjacency, nodes) + 1e-9).all() and (least < costs(plain, adjacency, nodes)).any()
    again = costs(matched, *permute_graph(adjacency, nodes, orders))
    assert (again - least).abs().mean() < 0.05 * (costs(plain, adjacency, nodes) - least).abs().mean()


@pytest.mark.parametrize("matching", ["order", "assignment"])
def test_every_weight_gets_a_finite_gradient_also_of_single_atoms(matching):
    model, (adjacency, nodes) = made(matching=matching), graphs()
    assert (nodes[..., :-1].sum((1, 2)) == 1).any()
    model.train().loss(adjacency, nodes).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.abs().sum() > 0, name


# --- warm-up ---


def test_beta_rises_with_training_steps_alone_and_travels_with_the_weights():
    model, (adjacency, nodes) = made(beta=0.5, warmup=4), graphs()
    betas = []
    for _ in range(6):
        betas.append(model.beta().item())
        with seeded("noise"):
            loss = model.train().loss(adjacency, nodes)
        with seeded("noise"):
            cost, divergence = model.terms(adjacency, nodes)
        torch.testing.assert_close(loss, (cost + betas[-1] * divergence).mean() / 10)
        model.eval().loss(adjacency, nodes)
        model.nll(adjacency, nodes)
    assert betas == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.5])
    other = made(beta=0.5, warmup=4)
    other.load_state_dict(model.state_dict())
    assert other.steps == 6 and not other.steps.is_floating_point()
    assert made(beta=0.5).beta() == 0.5
    with seeded("noise"):
        outside = made(beta=0.5, warmup=4).eval().loss(adjacency, nodes)
    with seeded("noise"):
        torch.testing.assert_close(outside, made(beta=0.5).eval().loss(adjacency, nodes))


# --- graphs from latents ---


@pytest.mark.parametrize("decode_temperature", [0.0, 1.0])
def test_samples_are_one_hot_symmetric_without_bonds_to_nobody_and_of_one_generator(decode_temperature):
    model = made(decode_temperature=decode_temperature).float().eval()
    with seeded("last layers"):
        for layer in (model.decoder.latent, model.decoder.atoms[2], model.decoder.bonds[2]):
            torch.nn.init.normal_(layer.weight, std=2.0)
    draws = [model.sample(200, 1.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    adjacency, nodes = draws[0]
    assert adjacency.shape == (200, 4, 4, 4) and nodes.shape == (200, 4, 3)
    assert (adjacency.sum(1) == 1).all() and (nodes.sum(2) == 1).all()
    assert torch.equal(adjacency, adjacency.transpose(2, 3))
    absent = nodes[..., -1] == 1
    assert absent.any() and (adjacency[:, -1][absent] == 1).all()
    assert (adjacency[:, -1].diagonal(dim1=1, dim2=2) == 1).all()
    assert all(torch.equal(one, again) for one, again in zip(*draws[:2], strict=True))
    assert not torch.equal(adjacency, draws[2][0])


def test_likeliest_graphs_are_the_decoders_arguments_and_drawn_ones_follow_its_probabilities():
    model = made().eval()
    z = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).double()
    bonds, atoms = model.decoder(z)
    adjacency, nodes = model.decode(z)
    assert torch.equal(nodes.argmax(2), atoms.argmax(2))
    there = nodes[..., -1] == 0
    pairs = (there[:, None] & there[:, :, None]).triu(1)
    assert torch.equal(adjacency.argmax(1)[pairs], bonds.argmax(1)[pairs])
    model.decode_temperature = 0.7
    with seeded("draw"):
        wanted = model.graphs(z, 0.7)
    with seeded("draw"):
        assert all(torch.equal(one, other) for one, other in zip(model.decode(z, sampled=True), wanted, strict=True))
    for decode_temperature in (1.0, 0.5):
        with seeded("draw"):
            adjacency, nodes = model.graphs(z.expand(20_000, -1), decode_temperature)
        torch.testing.assert_close(nodes.mean(0), (atoms[0] / decode_temperature).softmax(1), rtol=0, atol=0.02)
        both = (nodes[:, 0, -1] == 0) & (nodes[:, 1, -1] == 0)
        wanted = (bonds[0, :, 0, 1] / decode_temperature).softmax(0)
        torch.testing.assert_close(adjacency[both, :, 0, 1].mean(0), wanted, rtol=0, atol=0.04)


@pytest.mark.engine
def test_it_learns_graphs_and_rebuilds_them():
    adjacency, nodes = (part.float() for part in graphs(4))
    with seeded("training"):
        model = MPGVAE(MPGVAESizes(4, 3, width=16, latent=4, passes=1), beta=0.02).train()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(120):
            optimizer.zero_grad()
            model.loss(adjacency, nodes).backward()
            optimizer.step()
    built, its = model.eval().decode(model.encode(adjacency, nodes))
    assert torch.equal(its, nodes) and torch.equal(built, adjacency)


def test_bonds_to_absent_atoms_are_none():
    adjacency = torch.zeros(1, 4, 3, 3)
    adjacency[:, 0] = 1
    nodes = torch.nn.functional.one_hot(torch.tensor([[0, 2, 1]]), 3).float()
    assert mask_absent(adjacency, nodes).argmax(1).tolist() == [[[3, 3, 0], [3, 3, 3], [0, 3, 3]]]
    assert mpgvae.node_mask(nodes).tolist() == [[True, False, True]]
