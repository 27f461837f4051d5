"""Speed of every family and quality against the number of steps, as ratios inside one run.

Times are processor time of one thread, interleaved with the matrix products that they are compared
with, so a busy machine disturbs them little. This processor may lack bfloat16 arithmetic: then
bfloat16 is emulated, and float32 is the figure that counts. Run it alone::

    OMP_NUM_THREADS=1 python tests/benchmarks/models.py [memory] [training] [full] [steps] …
"""

from __future__ import annotations

import math
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rows import in_turns, ratio_of, row
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from massrecon.events.card import load_card
from massrecon.inference.twosample import c2st
from massrecon.models.ddpm import NoiseSchedule, ancestral_sample
from massrecon.models.devices import use_bf16
from massrecon.models.diffusion import DiffusionConfig, DiffusionHead
from massrecon.models.encoder import TransformerEncoder
from massrecon.models.event_encoder import EncoderConfig, EventEncoder
from massrecon.models.flow import FlowConfig, FlowHead
from massrecon.models.flow_matching import FlowMatchingConfig, FlowMatchingHead
from massrecon.models.gan import GANConfig, GANHead
from massrecon.models.head import Head
from massrecon.models.mass_head import MassHead, MassHeadConfig
from massrecon.models.noise import Draws
from massrecon.models.vae import VAEConfig, VAEHead
from tests.posteriors import Budget, TwoMoons, train_head

BATCH = 2048
FEW = 512
CARD = "wino_udd"
N_TARGETS = 8
SMALL = EncoderConfig(dim=128, layers=2, heads=4, token_hidden=256)
FULL = EncoderConfig()
HEADS: dict[str, Callable[[int, int], Head]] = {
    "diffusion": lambda T, C: DiffusionHead(T, C, DiffusionConfig(width=128, depth=3)),
    "flow_matching": lambda T, C: FlowMatchingHead(T, C, FlowMatchingConfig(width=128, depth=3)),
    "flow": lambda T, C: FlowHead(T, C, FlowConfig(width=128, transforms=6, bins=8)),
    "mass_head (2 masses)": lambda T, C: MassHead(2, C, MassHeadConfig(width=128, depth=2)),
    "vae": lambda T, C: VAEHead(T, C, VAEConfig(width=128, depth=2)),
    "gan": lambda T, C: GANHead(T, C, GANConfig(width=128, depth=2)),
}


def interleaved(*works: Callable[[], object], repeats: int = 2) -> list[float]:
    """Returns the median time of each piece of work, in turns, after one call to warm up."""
    return [statistics.median(times) for times in in_turns(*works, repeats=repeats)]


def random_events(n: int) -> dict[str, Tensor]:
    """Makes prepared events of no meaning but with the right shapes."""
    generator = torch.Generator().manual_seed(0)
    slots = len(load_card(CARD).slots)
    p3 = 100 * torch.randn(n, slots, 3, generator=generator)
    return {
        "objects": torch.cat([p3, p3.norm(dim=-1, keepdim=True)], dim=-1),
        "present": torch.rand(n, slots, generator=generator) > 0.3,
        "attributes": torch.rand(n, slots, 3, generator=generator),
        "ptmiss": 50 * torch.randn(n, 2, generator=generator),
    }


def products(width: int, rows: int) -> tuple[Callable[[], object], int]:
    """Returns a matrix product of the size of the tokens' own, and its operations."""
    left, right = torch.randn(rows, width), torch.randn(width, width)
    return lambda: [left @ right for _ in range(8)], 8 * 2 * rows * width * width


def step_of(parts: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    """Returns one forward, backward and optimiser step."""
    optimizer = torch.optim.AdamW([p for p in parts.parameters() if p.requires_grad])

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def report_encoder(name: str, config: EncoderConfig, size: int) -> None:
    """Prints the encoder's training speed against matrix products and against PyTorch's own."""
    torch.manual_seed(0)
    encoder, batch = EventEncoder(load_card(CARD), config), random_events(size)
    tokens_an_event = batch["objects"].shape[1] + 1
    tokens = torch.randn(size, tokens_an_event, config.dim)
    present = nn.functional.pad(batch["present"], (0, 1), value=True)
    ours = TransformerEncoder(config.dim, config.heads, config.layers, config.token_hidden)
    layer = nn.TransformerEncoderLayer(
        config.dim, config.heads, config.token_hidden, 0.0, batch_first=True, norm_first=True
    )
    plain = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
    product, operations = products(config.dim, size * tokens_an_event)
    steps = [
        step_of(encoder, lambda: encoder(batch).square().mean()),
        step_of(ours, lambda: ours(tokens, present).square().mean()),
        step_of(plain, lambda: plain(tokens, src_key_padding_mask=~present).square().mean()),
    ]
    with FlopCounterMode(display=False) as counter:
        steps[0]()
    limits, *found = in_turns(product, *steps, repeats=3)
    scale = counter.get_total_flops() / operations
    limit = scale * statistics.median(limits)
    attained = [statistics.median(times) for times in found]
    report_share(f"training of the encoder, {name}", found[0], limits, scale)
    ratio, spread = ratio_of(found[1], found[2])
    row(f"training of the transformer, {name}", ratio, "nn.TransformerEncoder", spread=spread)
    print(
        f"encoder {name}, batch {size}: {size / attained[0]:.0f} events/s in float32, "
        f"{limit / attained[0]:.0%} of the speed of its matrix products; its transformer alone "
        f"takes {attained[1] / attained[2]:.2f} of the time of nn.TransformerEncoder",
        flush=True,
    )
    if not use_bf16("auto", "cpu"):
        print("bfloat16: this processor has none, its emulation is not measured")
        return
    report_halves(name, steps, product, scale)


def report_halves(
    name: str,
    steps: list[Callable[[], object]],
    product: Callable[[], object],
    scale: float,
) -> None:
    """Prints the same in bfloat16, against its own matrix products and against float32."""
    plainly, *others = steps
    with torch.autocast("cpu", torch.bfloat16):
        limits, *found = in_turns(product, *others, plainly, repeats=3)
    ratio, spread = ratio_of(found[0], found[1])
    row(f"bfloat16 training of the transformer, {name}", ratio, "nn.TransformerEncoder",
        spread=spread)  # fmt: skip
    report_share(f"bfloat16 training of the encoder, {name}", found[2], limits, scale)
    half = statistics.median(found[2])
    single = interleaved(plainly, repeats=1)[0]
    limit = scale * statistics.median(limits)
    print(
        f"encoder {name}: bfloat16 takes {half / single:.2f} of the time of float32 here, "
        f"{limit / half:.0%} of the speed of its own matrix products",
        flush=True,
    )


def report_training() -> None:
    """Prints training events per second of each family, with the small encoder."""
    report_encoder("small", SMALL, BATCH)
    for name in HEADS:
        report_training_of(name)


def report_training_of(name: str) -> None:
    """Prints training events per second of a family, with the small encoder."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    encoder, batch = EventEncoder(load_card(CARD), SMALL), random_events(FEW)
    head = HEADS[name](N_TARGETS, SMALL.dim)
    x = torch.randn(FEW, head.n_targets, generator=generator).clamp(-3, 3)
    both = nn.ModuleList([encoder, head])
    step = step_of(both, lambda: head.loss(x, encoder(batch), generator).mean())
    product, operations = products(SMALL.dim, FEW * 14)
    if name == "gan":  # torch cannot count the operations of its gradient penalty
        taken, attained = interleaved(product, step)
        share = operations / taken / 1e9
        print(f"training gan: {FEW / attained:.0f} events/s (products at {share:.0f} Gflop/s)")
        return
    with FlopCounterMode(display=False) as counter:
        step()
    limits, times = in_turns(product, step, repeats=3)
    scale = counter.get_total_flops() / operations
    limit, attained = scale * statistics.median(limits), statistics.median(times)
    report_share(f"training of {name}, small", times, limits, scale)
    print(
        f"training {name}: {FEW / attained:.0f} events/s, {limit / attained:.0%} of the "
        "speed of its matrix products",
        flush=True,
    )


def report_share(what: str, times: list[float], limits: list[float], scale: float) -> None:
    """Hands over the time of a step over that of its matrix products alone."""
    ratio, spread = ratio_of(times, [scale * limit for limit in limits])
    row(what, ratio, "its matrix products alone", spread=spread)


def report_steps() -> None:
    """Prints the classifier accuracy on the two moons by solver and evaluations, with its error."""
    problem, contexts = TwoMoons(), torch.tensor(TwoMoons.examples)
    torch.manual_seed(0)
    head = DiffusionHead(2, 2, DiffusionConfig(width=128, depth=3))
    straight = FlowMatchingHead(2, 2, FlowMatchingConfig(width=128, depth=3))
    for one in (head, straight):
        train_head(one, problem, Budget(steps=600, batch=256))
    reference = DDPM(head, 1500)
    n = 1000
    goal = show("diffusion, 1500-step DDPM ancestral", reference.sample(contexts, n), problem)
    for one in (head, straight):
        for solver in one.solvers:
            found = {}
            for steps in (10, 20, 50):
                draws = one.sample(contexts, n, steps=steps, solver=solver)
                found[steps] = show(f"{one.family}, {solver}, {steps}", draws, problem)
            report_evaluations(f"{one.family}, {solver}", found, goal)


def report_evaluations(
    what: str, found: dict[int, tuple[float, float]], goal: tuple[float, float]
) -> None:
    """Hands over the fewest evaluations whose draws are as good, within two errors."""
    for steps, (accuracy, error) in found.items():
        if accuracy <= goal[0] + 2 * math.hypot(error, goal[1]):
            row(f"evaluations of {what}", steps / 1500, "1,500 ancestral steps of equal quality",
                unit="number of evaluations", note=f"{steps}; C2ST {accuracy:.3f} ± {error:.3f} "
                f"against {goal[0]:.3f} ± {goal[1]:.3f}")  # fmt: skip
            return
    print(f"{what}: not as good as {goal[0]:.3f} with {max(found)} evaluations", flush=True)


class DDPM:
    """The published 1500-step ancestral sampler on a network of the diffusion family."""

    def __init__(self, head: DiffusionHead, steps: int) -> None:
        self.head, self.schedule = head, NoiseSchedule(steps, 1e-5, 0.02)

    @torch.no_grad()
    def sample(self, context: Tensor, n: int) -> Tensor:
        """Draws with noise predicted by the network at the angle of each step."""
        shares = self.head.network.embed(context)
        draws = Draws(0, torch.arange(len(context)), torch.arange(n))

        def predict(x_t: Tensor, t: int) -> Tensor:
            a, s = self.schedule.factors(t)
            return s * x_t + a * self.head.velocity(x_t, math.atan2(s, a), shares)

        start = draws.normal(len(self.schedule), 2)
        return ancestral_sample(predict, start, self.schedule, lambda t: draws.normal(t, 2))


def show(label: str, draws: Tensor, problem: TwoMoons) -> tuple[float, float]:
    """Prints and returns the mean accuracy over the contexts and its binomial error."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for i, context in enumerate(torch.tensor(problem.examples)):
        truth = problem.posterior(context, draws.shape[0], generator)
        found.append(c2st(draws[:, i], truth))
    mean = statistics.mean(test.accuracy for test in found)
    error = math.hypot(*(test.error for test in found)) / len(found)
    print(f"two moons, {label} evaluations: C2ST {mean:.3f} ± {error:.3f}", flush=True)
    return mean, error


def report_draws() -> None:
    """Prints draws per second."""
    torch.manual_seed(0)
    heads = {name: build(N_TARGETS, SMALL.dim).eval() for name, build in HEADS.items()}
    context = torch.randn(256, SMALL.dim)
    works = [lambda h=head: h.sample(context, 64) for head in heads.values()]
    times = dict(zip(heads, in_turns(*works, repeats=3), strict=True))
    for name in heads:
        rate = 256 * 64 / statistics.median(times[name])
        print(f"draws {name}: {rate:.0f} draws/s with the family's own steps", flush=True)
        if name != "diffusion":
            ratio, spread = ratio_of(times[name], times["diffusion"])
            row(f"draws of {name}", ratio, "draws of diffusion, each with its own steps",
                spread=spread)  # fmt: skip


def report_memory() -> None:
    """Prints how the peak memory grows from few to many events and draws; run before the others."""
    head = HEADS["diffusion"](N_TARGETS, SMALL.dim).eval()
    used = []
    for n_events, n_draws in ((256, 64), (4096, 64), (64, 4096)):
        head.sample(torch.randn(n_events, SMALL.dim), n_draws, steps=2)
        used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    grown = [f"{used[i] - used[0]:.0f} MB" for i in (1, 2)]
    print(
        f"memory: 16 times the events add {grown[0]}, as many draws of few events {grown[1]}, "
        f"of which the draws themselves take {4096 * 64 * N_TARGETS * 4 / 2**20:.0f} MB"
    )


def report_density() -> None:
    """Prints how the density of the probability flow depends on the number of its steps."""
    problem = TwoMoons()
    contexts = torch.tensor(problem.examples)
    generator = torch.Generator().manual_seed(5)
    x = torch.stack([problem.posterior(c, 200, generator) for c in contexts], dim=1)
    for name in ("diffusion", "flow_matching"):
        torch.manual_seed(0)
        head = HEADS[name](2, 2)
        train_head(head, problem, Budget(steps=300, batch=256))
        found = {}
        for steps in (160, 10, 20, 40, 80):
            object.__setattr__(head.config, "density_steps", steps)
            found[steps] = head.log_prob(x, contexts)
        for steps in (10, 20, 40, 80):
            off = (found[steps] - found[160]).abs()
            print(
                f"density {name}, {steps} Runge-Kutta steps: log p off by {off.mean():.4f} on "
                f"average, {off.quantile(0.99):.4f} in 1 % of the values (against 160 steps)"
            )


REPORTS = {
    "memory": report_memory,
    "training": report_training,
    "full": lambda: report_encoder("full", FULL, BATCH),
    "gan": lambda: report_training_of("gan"),
    "steps": report_steps,
    "draws": report_draws,
    "density": report_density,
}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or REPORTS:
        REPORTS[wanted]()
