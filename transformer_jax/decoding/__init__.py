"""From a model's functions to text: sampling, beam search, and the translation of whole sets on all devices."""
