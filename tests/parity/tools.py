"""Shared by the parity tests: random torch models, our models with their weights, one closeness measure."""

import jax
import numpy as np
import torch
from flax import nnx

from infu_jax.convert import rules

# float32 through different summation orders stays well below this; the smallest porting mistake that
# moves a result at all (an exact GELU for the tanh one) is above it. See docs/parity.md.
TOLERANCE = 2e-5


def randomize(module: torch.nn.Module, seed: int = 0, scale: float = 0.1) -> torch.nn.Module:
    """Random values in every parameter and buffer, the zero-initialised ones too: a zero hides a wrong wire."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in [*module.named_parameters(), *module.named_buffers()]:
            if not x.is_floating_point():
                continue
            noise = torch.randn(x.shape, generator=generator)
            if name.endswith("running_var"):
                x.copy_(1 + 0.3 * noise.abs())
            elif x.ndim <= 1 and name.endswith("weight"):  # norm scales stay near 1
                x.copy_(1 + scale * noise)
            else:
                x.copy_(scale * noise)
    return module.eval()


def port(cls, cfg, layout, state_dict) -> nnx.Module:
    """Our model with the weights of a torch state dict, by the production conversion rules, every key checked."""
    graph, state = nnx.split(nnx.eval_shape(lambda: cls(cfg, rngs=nnx.Rngs(0))))
    flat = nnx.to_flat_state(state)
    names = {path: ".".join(map(str, path)) for path, _ in flat}
    plan = rules.plan(layout.rules(cfg), {names[path]: v.shape for path, v in flat})
    theirs = {k: v.detach().numpy() for k, v in state_dict.items()}
    rules.check_file(plan, {k: v.shape for k, v in theirs.items()}, ignore=layout.ignore)
    values = [(path, v.replace(jax.numpy.asarray(plan.read_ours(names[path], None, theirs, v.dtype)))) for path, v in flat]
    return nnx.merge(graph, nnx.from_flat_state(values))


def assert_close(ours, theirs, tolerance: float = TOLERANCE) -> None:
    """max |difference| <= tolerance * max |theirs|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs.detach() if isinstance(theirs, torch.Tensor) else theirs, np.float64)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"relative error {error:.1e}")  # `pytest tests/parity -rP` shows them
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"
