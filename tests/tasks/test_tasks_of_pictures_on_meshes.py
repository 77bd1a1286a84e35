"""Detection and segmentation over eight devices: a step is the one of a single device. Slow; run with `-m slow`."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from tests.tasks import test_detection, test_panoptic, test_segmentation
from transformer_jax import models, sharding
from transformer_jax.nn import params as params_lib

CASES = {
    "vit": (test_detection.TASK, test_detection.DATA, test_detection.CFG),
    "detr": (test_detection.TASK, test_detection.DATA, test_detection.DETR),
    "segmentation": (test_segmentation.TASK, test_segmentation.DATA, test_segmentation.CFG),
    "panoptic": (test_panoptic.TASK, test_panoptic.DATA, test_panoptic.CFG),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_eight_devices_are_one(case, kind):
    """The loss, what it reports and its gradient, of augmented rows that are sharded over a mesh."""
    task, data, cfg = CASES[case]
    family = models.family(cfg)
    batch = task.prepare(data, cfg, seed=0).validation.examples.stacked([*range(6), 0, 1])
    params = jax.jit(family.init, static_argnums=1)(jax.random.key(0), cfg)

    def step(params, batch):
        loss = lambda p: task.loss(p, cfg, batch, key=jax.random.key(1))[::2]  # noqa: E731
        return jax.value_and_grad(loss, has_aux=True)(params)

    expected = jax.jit(step)(params, batch)
    mesh = jax.make_mesh((4, 1, 1, 2), sharding.MESH_AXES, axis_types=(kind,) * 4)
    with jax.set_mesh(mesh):
        specs = {
            k: sharding.partition_spec(("batch",) + (None,) * (x.ndim - 1), x.shape, mesh) for k, x in batch.items()
        }
        placed = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in batch.items()}
        found = jax.jit(step)(jax.device_put(params, params_lib.shardings(family.declare(cfg), mesh)), placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)
