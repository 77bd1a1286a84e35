"""What every task reads with: sources, tokenizers, token files, tables, images, and the pipeline that makes batches."""
