"""Published recipes of encoder-decoders: what their papers state is what the experiments hold."""

import pytest

from experiments.translation import bart_denoising, summarize, t5_span_corruption, wmt14_base, wmt14_big
from transformer_jax.models import seq2seq
from transformer_jax.nn import params


@pytest.mark.parametrize(("recipe", "width"), [(wmt14_base.experiment, 512), (wmt14_big.experiment, 1024)])
def test_learning_rate_of_attention_is_all_you_need(recipe, width):
    """Section 5.3, equation 3, with steps counted from 1."""
    schedule = recipe().optim.schedule(recipe().train.steps)
    for step in (1, 2, 100, 3999, 4000, 4001, 10_000, 100_000):
        paper = width**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert float(schedule(step - 1)) == pytest.approx(paper, rel=1e-5)


def test_learning_rate_of_t5():
    """Raffel et al. 2020, section 3.1.2: 1 / sqrt(max(n, k)), k = 10,000, with steps counted from 1."""
    schedule = t5_span_corruption.base().optim.schedule(524_288)
    for step in (1, 5000, 10_000, 10_001, 524_288):
        assert float(schedule(step - 1)) == pytest.approx(max(step, 10_000) ** -0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("recipe", "published", "tolerance"),
    [
        (wmt14_base.experiment, 65e6, 0.05),  # Vaswani et al. 2017, table 3, rounded there
        (wmt14_big.experiment, 213e6, 0.02),
        (t5_span_corruption.small, 76_961_152, 0),  # google/t5-v1_1-small, -base
        (t5_span_corruption.base, 247_577_856, 0),
        (bart_denoising.experiment, 139_420_416, 0),  # facebook/bart-base, -large
        (bart_denoising.large, 406_291_456, 0),
        (summarize.experiment, 406_291_456, 0),
        (summarize.t5_small, 60_506_624, 0),  # t5-small
    ],
)
def test_sizes(recipe, published, tolerance):
    count = params.count(seq2seq.declare(recipe().model))
    assert abs(count - published) <= tolerance * published


def test_batches_of_wmt14():
    """About 25,000 tokens on either side (section 5.1), of which padding is a few per cent."""
    experiment = wmt14_base.experiment()
    for length in (experiment.data.source_length, experiment.data.target_length):
        assert 25_000 <= experiment.train.batch_size * length <= 27_000
