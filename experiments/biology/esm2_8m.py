"""ESM-2 with 8 million parameters, as Lin et al. (2023) train it on UniRef50.

    curl -O https://ftp.uniprot.org/pub/databases/uniprot/uniref/uniref50/uniref50.fasta.gz
    transformer-jax train biology.esm2_8m --data.source.paths uniref50.fasta.gz
    transformer-jax predict hf://facebook/esm2_t6_8M_UR50D "MKTAYIAKQR<mask>ISFVKSHFSRQ"

Six layers, 320 wide, 20 heads, rotary positions and token dropout (supplement A.1.1 and A.2.1): rows of 1,024 residues,
2 million a batch, 15 % hidden, 500,000 steps, Adam's betas 0.9 and 0.98, weight decay 0.01, peak rate 4e-4 after 2,000
steps, falling linearly to a tenth. A row runs over the borders of proteins, where the paper takes one protein in each.

Hardware: one host with eight accelerators; on a CPU it is only a smoke run.
Expected: perplexity 10.45 on held-out UniRef50 for one protein in a row (published, table S1 of the paper).
"""

from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.fasta import Fasta
from transformer_jax.data.tokenizers import Residues
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import bert
from transformer_jax.optim import Optim
from transformer_jax.tasks import MaskedLM


def experiment() -> Experiment:
    return Experiment(
        model=bert.Config(
            vocab_size=33,
            max_length=1024,
            width=320,
            num_layers=6,
            num_heads=20,
            num_types=0,
            position="rotary",
            norm_order="pre",
            norm_eps=1e-5,
            embedding_norm=False,
            zeroed_token=32,
            dropout=0.0,
            heads=("mlm",),
        ),
        data=TextCorpus(Fasta(("uniref50.fasta.gz",), validation_fraction=0.005), Residues(), length=1024),
        task=MaskedLM(),
        optim=Optim(
            peak_lr=4e-4,
            lr_schedule="linear",
            warmup_steps=2000,
            final_lr_fraction=0.1,
            beta2=0.98,
            weight_decay=0.01,
        ),
        train=Train(steps=500_000, batch_size=2048, accumulate=4),
        evaluate=Evaluate(every=10_000, batch_size=256),
        checkpoint=Checkpoint(every=10_000),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
