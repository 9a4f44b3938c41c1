"""The command `floq bench`."""

from floq.cli.flags import Flags, fields_of, parse
from floq.cli.train import print_configs, resolve_train
from floq.utils.errors import UserError


def bench_command(argv: list[str]) -> None:
    """Run `floq bench`."""
    from floq.training.bench import BenchOptions, bench

    flags, types = Flags(argv), fields_of(BenchOptions)
    options = parse(BenchOptions, flags.selected(types).normalised(types), "floq bench")
    flags.drop(types)
    if "agent.critic_flow_steps" in flags.values:
        raise UserError("--agent.critic_flow_steps: floq bench goes through several K, name them with --ks")
    request = resolve_train(flags)
    if len(request.configs) > 1:
        raise UserError("floq bench takes one value for each flag of floq train; --fleets says how many runs")
    if request.dry_run:
        return print_configs(request.configs)
    bench(request.configs[0], options)
