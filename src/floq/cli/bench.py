"""The command `floq bench`."""

import dataclasses
from dataclasses import dataclass

from floq.cli.flags import Flags, command_help, parse
from floq.cli.train import print_configs, resolve_train
from floq.utils.errors import UserError


@dataclass(frozen=True)
class Bench:
    """Measure what K and the size of a fleet cost on this machine, against the monolithic critic, on random data of a
    task's sizes. The flags of floq train say what is measured: --env_name, --precision, --preset, --agent.block_width
    and the others that floq train --help explains."""

    ks: tuple[int, ...] = (1, 4, 8, 16)
    """Numbers of integration steps."""
    fleets: tuple[int, ...] = (1, 4, 8, 16)
    """Numbers of runs."""
    seconds: float = 2.0
    """Each of the three tries of a row takes about this long."""
    evaluate: bool = True
    """Measure evaluation as well."""
    out: str | None = None
    """Write the rows to this CSV file."""


def bench_command(argv: list[str]) -> None:
    """Run `floq bench`."""
    flags, types = Flags(argv), {f.name: f for f in dataclasses.fields(Bench)}
    own = flags.split(types)
    options = parse(Bench, own.normalised(types), "floq bench", command_help(Bench))
    if "agent.critic_flow_steps" in flags.names():
        raise UserError("--agent.critic_flow_steps: floq bench goes through several K, name them with --ks")
    request = resolve_train(flags)
    if len(request.configs) > 1:
        raise UserError("floq bench takes one value for each flag of floq train; --fleets says how many runs")
    if request.dry_run:
        return print_configs(request.configs)
    from floq.training.bench import bench

    bench(request.configs[0], **dataclasses.asdict(options))
