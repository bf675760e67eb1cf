"""Training of many small models at once, in plain torch: their weights are stacked, and each operation serves all.

Numbers differ from the loop's in the last bits, because a batched matrix product is not a single one, bit for bit. A
run that trains so carries the label :data:`NUMERICS`.
"""

NUMERICS = "vectorized"  # value of ``numerics`` in a manifest and in the hash of a cell
