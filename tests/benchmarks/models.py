"""Speed of the published network, as ratios inside one run.

Prints the share of the processor's matrix-product speed that a training step reaches, what further
noise draws per event cost, and how DDIM compares with ancestral sampling. Run it alone::

    OMP_NUM_THREADS=1 python tests/benchmarks/models.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from massrecon.events.card import load_card
from massrecon.models.barman2025 import Barman2025, Barman2025Config
from massrecon.models.base import Prepared
from massrecon.models.diffusion import ancestral_sample, ddim_sample, indexed_normal

BATCH = 256


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Returns the median time of a piece of work, after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matrix_speed(width: int) -> float:
    """Returns the multiply-add operations per second of a token-sized matrix product, times two."""
    rows = 8 * BATCH
    left, right = torch.randn(rows, width), torch.randn(width, width)
    return 2 * rows * width * width / seconds(lambda: left @ right, repeats=50)


def random_batch(n_targets: int) -> Prepared:
    """Makes prepared events of no meaning but with the right shapes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "objects": torch.randn(BATCH, 7, 4, generator=generator),
        "present": torch.rand(BATCH, 7, generator=generator) > 0.1,
        "extra": torch.randn(BATCH, 8, generator=generator),
        "targets": torch.randn(BATCH, n_targets, generator=generator),
    }


def training_step(model: Barman2025, batch: Prepared) -> Callable[[], None]:
    """Returns one forward, backward and optimiser step."""
    optimizer = torch.optim.AdamW(model.parameters())
    generator = torch.Generator().manual_seed(1)

    def step() -> None:
        optimizer.zero_grad()
        model.loss_prepared(batch, generator).backward()
        optimizer.step()

    return step


def report_training(preset: str) -> None:
    """Prints how near training comes to the speed of its matrix products."""
    card = load_card("wino_udd")
    model = Barman2025(card, Barman2025Config(**Barman2025.presets[preset]))
    step = training_step(model, random_batch(len(card.target_names)))
    with FlopCounterMode(display=False) as counter:
        step()
    limit = counter.get_total_flops() / matrix_speed(model.config.dim)
    attained = seconds(step)
    print(
        f"{preset}: {BATCH / attained:.0f} events/s, {limit / attained:.0%} of the "
        f"{BATCH / limit:.0f} events/s that matrix products alone would allow"
    )


def report_noise_draws() -> None:
    """Prints what further noise draws on the same context cost."""
    card = load_card("wino_udd")
    times = []
    for draws in (1, 8):
        fields = {**Barman2025.presets["small"], "noise_draws": draws}
        model = Barman2025(card, Barman2025Config(**fields))
        times.append(seconds(training_step(model, random_batch(len(card.target_names)))))
    print(f"8 noise draws per event cost {times[1] / times[0]:.2f} times 1 draw")


@torch.inference_mode()
def report_sampling() -> None:
    """Prints the time of DDIM and of the context against ancestral sampling, for 32 draws."""
    card = load_card("wino_udd")
    model = Barman2025(card, Barman2025Config(**Barman2025.presets["small"])).eval()
    batch = {name: t[:64] for name, t in random_batch(len(card.target_names)).items()}
    encode = seconds(lambda: model.encode(batch))
    context = model.denoiser.embed_context(model.encode(batch))
    shares = model.denoiser.embed_time(torch.arange(len(model.schedule)))
    event, draw = torch.arange(64), torch.arange(32).unsqueeze(1)

    def noise(t: int) -> Tensor:
        return indexed_normal(0, t, event, draw, len(card.target_names))

    def predict(x_t: Tensor, t: int) -> Tensor:
        return model.denoiser(x_t, shares[t], context)

    x_last, schedule = noise(len(model.schedule)), model.schedule
    start = time.perf_counter()
    ancestral_sample(predict, x_last, schedule, noise)
    ancestral = time.perf_counter() - start
    for steps in (20, 30, 50):
        ddim = seconds(lambda steps=steps: ddim_sample(predict, x_last, schedule, steps), repeats=1)
        print(
            f"DDIM with {steps} steps is {ancestral / ddim:.0f} times faster than ancestral "
            f"sampling; the context takes {encode / ddim:.1%} of its time"
        )


if __name__ == "__main__":
    for name in ("small", "full"):
        report_training(name)
    report_noise_draws()
    report_sampling()
