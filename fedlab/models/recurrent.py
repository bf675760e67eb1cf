"""Recurrent cells and a GRU that ``torch.func.vmap`` can map: torch's own, written out where they are mapped.

Elsewhere they are torch's kernels, to the bit. Names and shapes of weights are torch's in both cases.

**Source**: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014, with torch's order of gates and
its reset gate after the product; Hochreiter and Schmidhuber, Long Short-Term Memory, 1997.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedlab.models.mapped import is_mapped


class GRUCell(nn.GRUCell):
    """A gated recurrent unit for one step."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the next state (batch, hidden) of an input (batch, width) and a state (batch, hidden)."""
        if hx is None or not is_mapped(self.weight_ih):
            return super().forward(input, hx)
        return _gru_step(linear(input, self.weight_ih, self.bias_ih), hx, self.weight_hh, self.bias_hh)


class LSTMCell(nn.LSTMCell):
    """A long short-term memory for one step."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the next state and cell (batch, hidden) of an input (batch, width) and of the last ones."""
        if hx is None or not is_mapped(self.weight_ih):
            return super().forward(input, hx)
        state, cell = hx
        gates = linear(input, self.weight_ih, self.bias_ih) + linear(state, self.weight_hh, self.bias_hh)
        enter, forget, new, out = gates.chunk(4, -1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return out.sigmoid() * cell.tanh(), cell


class GRU(nn.GRU):
    """One layer of gated recurrent units over a sequence, batch first, from a state of zeros.

    Parameters
    ----------
    width, hidden
        Widths of inputs and of the state.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden, batch_first=True)

    def forward(  # type: ignore[override]  # torch's also takes sequences of different lengths
        self, input: Tensor, hx: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the states (batch, steps, hidden) of inputs (batch, steps, width), and the last (1, batch, hidden)."""
        weights: Any = self.weight_ih_l0, self.bias_ih_l0, self.weight_hh_l0, self.bias_hh_l0
        if not is_mapped(weights[0]):
            found: tuple[Tensor, Tensor] = super().forward(input, hx)
            return found
        gates = linear(input, *weights[:2])  # of all steps
        state = gates.new_zeros(len(input), self.hidden_size) if hx is None else hx[0]
        states = []
        for step in range(input.shape[1]):
            state = _gru_step(gates[:, step], state, *weights[2:])
            states.append(state)
        return torch.stack(states, 1), state[None]


def _gru_step(from_input: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the next state (batch, hidden), from gates of the input (batch, 3 hidden) and weights of the state."""
    reset_in, update_in, new_in = from_input.chunk(3, -1)
    reset, update, new = linear(state, weight, bias).chunk(3, -1)
    candidate = (new_in + (reset_in + reset).sigmoid() * new).tanh()
    return candidate + (update_in + update).sigmoid() * (state - candidate)
