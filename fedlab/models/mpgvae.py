"""MPGVAE: a variational autoencoder of molecular graphs with message passing in encoder and decoder.

    q(z | G):  h <- embedded elements;  h <- GRU(attended messages over bonds), a few times;  set2set;  mu, log sigma^2
    p(G | z):  h_1 .. h_N <- the states of a GRU with input z at every place;  e_vw <- network of h_v, h_w;
               nodes by messages and edges by a network in turns, a few times;
               p(x_v) = softmax of h_v,  p(a_vw) = softmax of e_vw + e_wv

    loss = (E_q [-log p(G | z)] + beta KL(q || N(0, I))) / D,    D = N + N (N - 1) / 2 decisions a graph

The recurrent seeds distinguish the places, and messages let atoms and bonds depend on each other, where a plain decoder
draws them independently given z. All N places are decided; a bond is decided where both its atoms are present, since
one to "no atom" is none anyway. So p is a distribution over graphs: its sum over them is 1.

**The order of the atoms** is not in G, and the encoder does not see it: it gives all orders the same z.
``matching="order"`` scores places against atoms in the order of the batch; ``matching="assignment"`` against those in
the order of least cost (:mod:`fedlab.losses.graph_matching`), a bound of the probability of the graph in any order.

**KL warm-up**: beta rises from 0 to its ceiling over the first ``warmup`` training steps, counted in the buffer
``steps``. It is part of the weights: a client continues from the count of the global model, and aggregation takes the
largest counter. So beta is one function of the local steps behind the global model, for every strategy and engine, also
for late joiners, and a checkpoint holds it. Strategies that send no client counters (differential privacy) never leave
the warm-up: set it to 0 there.

**Source**: Flam-Shepherd, Wu, Aspuru-Guzik, Graph Deconvolutional Generation, 2020, arXiv 2002.07087 (Mach. Learn.:
Sci. Technol. 2021). There is no public code, and the paper's sizes are not at hand. **Departures**, or choices where
we do not know theirs: (1) widths, numbers of steps and the warm-up; (2) weights are shared by the steps of the encoder,
not by those of the decoder; (3) atoms of the encoder receive messages from those that they are bonded to, and from
themselves; absent ones are not among its nodes, and bonds to them cost nothing; (4) the seeds' GRU has a learned vector
of the place as input besides z, without which all places decode alike for the first hundred steps; (5) edges are
updated by a residual network; (6) the loss is divided by the number of decisions, so that step sizes do not depend on
the size of graphs; (7) bonds are kekulized, there is no aromatic kind; (8) layer norms and initial weights, see
:mod:`fedlab.models.message_passing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fedlab.losses.graph_matching import match_nodes, permute_graph
from fedlab.models.graph_generator import argmax_one_hot
from fedlab.models.message_passing import EdgeUpdate, MessagePassing, PairwiseLinear, Set2Set, scale_init
from fedlab.models.recurrent import GRU

INIT_LOG_VARIANCE = -2.0  # of latents at the start, so that a decoder hears something before it learns not to listen

Matching = Literal["order", "assignment"]


@dataclass(frozen=True)
class MPGVAESizes:
    """Sizes of an MPGVAE.

    Attributes
    ----------
    size, elements
        N and F.
    width, latent
        Widths of nodes and edges, and of z.
    passes
        Message steps of the encoder, and of the decoder.
    readout
        Queries of set2set.
    """

    size: int
    elements: int
    width: int = 64
    latent: int = 32
    passes: int = 3
    readout: int = 3
    channels: int = 4


class Encoder(nn.Module):
    """A graph to mu and log sigma^2 of its latents, invariant to the order of its atoms."""

    def __init__(self, sizes: MPGVAESizes) -> None:
        super().__init__()
        self.passes = sizes.passes
        self.embed = nn.Linear(sizes.elements, sizes.width)
        self.messages = MessagePassing(sizes.width, sizes.channels)
        self.readout = Set2Set(sizes.width, sizes.readout)
        self.head = nn.Linear(2 * sizes.width, 2 * sizes.latent)
        for part in (self.messages, self.readout):
            scale_init(part)
        with torch.no_grad():
            self.head.bias[sizes.latent :] += INIT_LOG_VARIANCE

    def forward(self, adjacency: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and log sigma^2, each (batch, latent), of one-hot graphs (batch, R, N, N) and (batch, N, F)."""
        present, bonds = node_mask(nodes), adjacency.movedim(1, -1)
        itself = torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device)
        mask = (adjacency[:, -1] < 0.5) | itself
        h = self.embed(nodes)
        for _ in range(self.passes):
            h = self.messages(h, bonds, mask)
        mu, log_variance = self.head(self.readout(h, present)).chunk(2, dim=1)
        return mu, log_variance


class Decoder(nn.Module):
    """Latents (batch, latent) to log-probabilities of bonds (batch, R, N, N), symmetric, and of nodes (batch, N, F)."""

    def __init__(self, sizes: MPGVAESizes) -> None:
        super().__init__()
        width = sizes.width
        self.latent = nn.Linear(sizes.latent, width)
        self.places = nn.Parameter(torch.randn(sizes.size, width))
        self.seeds, self.norm = GRU(width, width), nn.LayerNorm(width)
        self.pairs, self.edges = PairwiseLinear(width, 0, width), nn.Linear(width, width)
        self.messages = nn.ModuleList(MessagePassing(width, width) for _ in range(sizes.passes))
        self.updates = nn.ModuleList(EdgeUpdate(width) for _ in range(sizes.passes))
        self.atoms = _network(width, sizes.elements)
        self.bonds = _network(width, sizes.channels)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of bonds (batch, R, N, N) and of nodes (batch, N, F)."""
        h = self.norm(self.seeds(self.latent(z)[:, None] + self.places)[0])
        e = self.edges(torch.relu(self.pairs(h)))
        for messages, update in zip(self.messages, self.updates, strict=True):
            h = messages(h, e)
            e = update(h, e)
        bonds = self.bonds(e + e.transpose(1, 2)).movedim(-1, 1)
        return bonds.log_softmax(1), self.atoms(h).log_softmax(2)


class MPGVAE(nn.Module):
    """Encoder, decoder and the bound; implements :class:`fedlab.models.graph_generator.GraphGenerator`.

    Parameters
    ----------
    sizes
        Sizes of the network.
    beta
        Ceiling of the KL term's weight; 1 makes the loss the bound itself.
    warmup
        Training steps until it is reached.
    matching
        Order of the atoms that places are scored against: as given, or the cheapest.
    decode_temperature
        How graphs are sampled from probabilities p: 0 takes the likeliest atoms and bonds; else each is drawn
        independently from p^(1 / decode_temperature), scaled to sum 1; so 1 draws from p(G | z).
    """

    steps: Tensor

    def __init__(
        self,
        sizes: MPGVAESizes,
        *,
        beta: float = 1.0,
        warmup: int = 0,
        matching: Matching = "order",
        decode_temperature: float = 0.0,
    ) -> None:
        super().__init__()
        self.sizes, self.ceiling, self.warmup = sizes, beta, warmup
        self.matching, self.decode_temperature = matching, decode_temperature
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def decisions(self) -> int:
        """Return D, the number of nodes and pairs of a graph."""
        return self.sizes.size * (self.sizes.size + 1) // 2

    def beta(self) -> Tensor:
        """Return the KL term's weight at this step, a scalar."""
        fraction = (self.steps / self.warmup).clamp(max=1.0) if self.warmup else torch.ones_like(self.steps)
        return self.ceiling * fraction

    # --- likelihood ---

    def loss(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return the bound per decision, KL weighted with beta: a scalar.

        Outside training beta is its ceiling, so that rounds compare.
        """
        cost, divergence = self.terms(adjacency, nodes)
        beta = self.beta() if self.training else self.ceiling
        if self.training:
            self.steps += 1
        return (cost + beta * divergence).mean() / self.decisions

    def nll(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return the negative ELBO (batch,), one draw of z each, whatever beta is."""
        cost, divergence = self.terms(adjacency, nodes)
        return cost + divergence

    def terms(self, adjacency: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log p(G | z) for one z of q, and KL(q || N(0, I)), in nats, each (batch,)."""
        mu, log_variance = self.encoder(adjacency, nodes)
        z = mu + torch.exp(0.5 * log_variance) * torch.randn_like(mu)
        divergence = 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).sum(1)
        bonds, atoms = self.decoder(z)
        if self.matching == "assignment":
            orders = match_nodes(bonds.detach(), atoms.detach(), adjacency, nodes)
            adjacency, nodes = permute_graph(adjacency, nodes, orders)
        return reconstruction_nll(bonds, atoms, adjacency, nodes), divergence

    # --- graphs from latents, and back ---

    @torch.no_grad()
    def sample(
        self, count: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return graphs (batch, R, N, N) and (batch, N, F), one-hot, of z = temperature * eps."""
        device = self.encoder.head.weight.device
        eps = torch.randn(count, self.sizes.latent, generator=generator, device=device)
        return self.graphs(temperature * eps, self.decode_temperature, generator)

    @torch.no_grad()
    def encode(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return the mean of q (batch, latent)."""
        mu: Tensor = self.encoder(adjacency, nodes)[0]
        return mu

    @torch.no_grad()
    def decode(self, latent: Tensor, *, sampled: bool = False) -> tuple[Tensor, Tensor]:
        """Return one-hot graphs of latents (batch, latent): the likeliest, or sampled at the decode temperature."""
        return self.graphs(latent, self.decode_temperature if sampled else 0.0)

    @torch.no_grad()
    def graphs(
        self, latent: Tensor, decode_temperature: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the likeliest atoms and bonds of latents (batch, latent), or sampled ones at a temperature above 0."""
        bonds, atoms = self.decoder(latent)
        if decode_temperature:
            noise = _gumbel(bonds, generator)  # of a pair once
            bonds = bonds + decode_temperature * (noise.triu() + noise.triu(1).transpose(2, 3))
            atoms = atoms + decode_temperature * _gumbel(atoms, generator)
        nodes = argmax_one_hot(atoms, dim=2)
        return mask_absent(argmax_one_hot(bonds, dim=1), nodes), nodes


def node_mask(nodes: Tensor) -> Tensor:
    """Return True for places that hold an atom (batch, N), of one-hot nodes (batch, N, F)."""
    return nodes[..., -1] < 0.5


def mask_absent(adjacency: Tensor, nodes: Tensor) -> Tensor:
    """Return one-hot bonds (batch, R, N, N), "none" where an atom is absent and on the diagonal."""
    present, none = node_mask(nodes), adjacency.shape[1] - 1
    pairs = present[:, None] & present[:, :, None] & ~torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device)
    bonds = adjacency.argmax(1).where(pairs, none)
    return one_hot(bonds, none + 1).movedim(-1, 1).to(adjacency)


def reconstruction_nll(bonds: Tensor, atoms: Tensor, adjacency: Tensor, nodes: Tensor) -> Tensor:
    """Return -log p(G) (batch,): of every place's element, and of the bond of each pair whose two atoms are present.

    Parameters
    ----------
    bonds, atoms
        Log-probabilities (batch, R, N, N), symmetric, and (batch, N, F).
    adjacency, nodes
        The graphs, one-hot, of the same shapes.
    """
    present = node_mask(nodes).to(bonds)
    of_atoms = (atoms * nodes).sum((1, 2))
    pairs = torch.einsum("bv,bw->bvw", present, present).triu(1)
    return -of_atoms - ((bonds * adjacency).sum(1) * pairs).sum((1, 2))


def _network(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


def _gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return noise whose sum with log-probabilities is largest at a draw from the softmax."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return -torch.log(-torch.log(uniform.clamp(min=1e-30, max=1 - 1e-7)))
