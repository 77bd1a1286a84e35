"""The pieces models are made of: parameter declarations, layers, attention, masks, positions, the block stack."""
