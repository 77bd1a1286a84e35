"""A masked language model of DNA over words of six letters, as DNABERT (Ji et al. 2021) and the Nucleotide Transformer.

    transformer-jax train biology.dna --data.source.paths genome.fna.gz
    transformer-jax predict runs/biology-dna "ATGCGT <mask> TTAGCA"

BERT-base's layers over rows of 512 words. The words do not overlap (Dalla-Torre et al. 2024); with DNABERT's, which
begin at every letter (--data.source.overlapping true), a hidden word can be read off its neighbours, unless whole runs
are hidden: --task.masking.unit span needs words that continue, so DNABERT's masking is not reproduced here.

Hardware: one host with eight accelerators; on a CPU it is only a smoke run.
Expected: no published loss for this corpus; each run prints the loss of the words' frequencies beside its own
(estimated: below it after the first thousand steps).
"""

from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.fasta import Fasta
from transformer_jax.data.tokenizers import Kmers
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import bert
from transformer_jax.optim import Optim
from transformer_jax.tasks import MaskedLM


def experiment() -> Experiment:
    return Experiment(
        model=bert.Config(vocab_size=4106, max_length=512, num_types=0, heads=("mlm",)),
        data=TextCorpus(Fasta(("genome.fna.gz",), alphabet="dna", words=6, overlapping=False), Kmers(6), length=512),
        task=MaskedLM(),
        optim=Optim(peak_lr=4e-4, lr_schedule="linear", warmup_steps=10_000, final_lr_fraction=0.0, beta2=0.98),
        train=Train(steps=120_000, batch_size=2000, accumulate=10),
        evaluate=Evaluate(every=5000, batch_size=200),
        checkpoint=Checkpoint(every=5000),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
