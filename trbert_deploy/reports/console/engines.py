"""What ``trbert-deploy build-engine`` shows a person."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from trbert_deploy.exporters.checks.engines import Verification
from trbert_deploy.exporters.tensorrt.engine_build import EnginesReport
from trbert_deploy.exporters.tensorrt.plan import EnginesPlan

_MIB = 2**20


def print_engines(report: EnginesReport, console: Console) -> None:
    """The engines as a table, what their precision costs, where they are, what verifying found."""
    manifest = report.engine_set.manifest
    key = manifest.key
    table = Table(
        "engine",
        *("size MiB", "build s", "scratch MiB"),
        "tuned for tokens",
        "precision",
        title=f"TensorRT {key.version} ({key.flavour}) for GPUs of {key.compute_capability}",
    )
    for column in table.columns[1:4]:
        column.justify = "right"
    for engine in manifest.engines:
        scratch = engine.scratch_bytes
        table.add_row(
            engine.name,
            f"{engine.size_bytes / _MIB:.1f}",
            f"{engine.build_seconds:.1f}",
            "unknown" if scratch is None else f"{scratch / _MIB:.0f}",
            ", ".join(str(profile.opt_length) for profile in key.profiles[engine.name]),
            key.precision,
        )
    console.print(table)
    batch = key.profiles[manifest.engines[0].name][0]
    lengths = ", ".join(str(most) for _, most in key.lengths)
    console.print(
        f"profiles: rows of up to {lengths} tokens, in batches of {batch.min_batch} to "
        f"{batch.max_batch}, tuned for {batch.opt_batch}"
    )
    parity = manifest.parity
    if parity:
        console.print(
            f"{key.precision} against float32, {parity['rows']} rows"
            f"{' of random tokens' if parity.get('random_rows') else ''}: "
            f"largest output difference {parity['max_output_difference']:.2g} "
            f"(dense {parity['dense_output_difference']:.2g}), "
            f"same survivors {parity['survivor_agreement']:.2%}, "
            f"same answers {parity['answer_agreement']:.2%}"
        )
    done = "unchanged, nothing built (--force builds again)" if report.skipped else "built"
    console.print(f"{done}: {report.engine_set.path}", soft_wrap=True)
    if report.not_verified:
        console.print(f"not verified: {report.not_verified}")
    if report.verification:
        _print_verification(report.verification, console)


def print_plan(plan: EnginesPlan, console: Console) -> None:
    """What engines would take, by engine and its profiles, and together."""
    table = Table(
        "engine",
        "weights",
        "rows x tokens",
        *("tuned for", "scratch", "states"),
        title=f"engines in {plan.precision}, not built; memory in MiB",
    )
    for name, size in plan.weights_bytes.items():
        told = (name, f"{size / _MIB:.1f}")
        for profile, scratch, states in zip(
            plan.profiles[name], plan.scratch_bytes[name], plan.state_bytes[name], strict=True
        ):
            table.add_row(
                *told,
                str(profile),
                f"{profile.opt_batch} x {profile.opt_length}",
                f"{scratch / _MIB:.0f}",
                f"{states / _MIB:.0f}",
            )
            told = ("", "")  # once for an engine
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    console.print(
        f"GPU memory, reckoned: {plan.total_bytes / _MIB:,.0f} MiB, of all weights, and of the "
        "largest profile's scratch and states, which engines share; what TensorRT itself takes is "
        "not in it"
    )


def _print_verification(results: Sequence[Verification], console: Console) -> None:
    """The largest difference per output of every engine, over its profiles."""
    table = Table("engine", "output", "largest difference", title="engines against ONNX Runtime")
    worst: dict[tuple[str, str], float] = {}
    for result in results:
        for output, difference in result.max_difference.items():
            place = (result.graph, output)
            worst[place] = max(worst.get(place, 0.0), difference)
    for (graph, output), difference in worst.items():
        table.add_row(graph, output, f"{difference:.2g}")
    console.print(table)
