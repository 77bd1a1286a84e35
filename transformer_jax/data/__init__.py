"""From text to batches: sources, tokenizers, token files, windows of a corpus, and the pipeline that feeds the loop."""
