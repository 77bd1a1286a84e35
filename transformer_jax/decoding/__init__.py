"""From a model's functions to text: sampling, beam search, and whole sets on all devices."""
