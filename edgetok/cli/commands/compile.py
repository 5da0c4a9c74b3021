"""`edgetok compile`: compile kernels for this or other machines, to ship them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.cli.terminal.compiling import Compiling
from edgetok.runtime.options import KvBits

if TYPE_CHECKING:
    from edgetok.kernels_cpu.simd.target import Target
    from edgetok.native.kernel_library import KernelLinker


@click.command(
    "compile",
    epilog=common.examples(
        "edgetok compile artefacts/default-4bit --out kernels",
        "edgetok compile --target x86_64-linux,aarch64-linux-neon --out kernels",
        "edgetok compile --all --link --target x86_64-linux --out kernels --json",
    ),
)
@click.argument("model", metavar="[MODEL]", type=common.PATH, required=False)
@click.option("--all", "all_kernels", is_flag=True, help="Compile the kernels of every model.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Machine to compile for, e.g. x86_64-linux-avx2, or x86_64-linux for all its instruction "
    "sets; several are separated by commas.  [default: this machine's]",
)
@click.option(
    "--kv-bits",
    type=common.Choice(get_args(KvBits)),
    multiple=True,
    default=("8",),
    show_default=True,
    help="Bits per value of the KV caches to compile for. May be given several times.",
)
@click.option(
    "--link",
    is_flag=True,
    help="Link the kernels of each target into one library, which is loaded without llvmlite. For "
    "Linux and macOS; needs a C compiler (extra `native`).",
)
@click.option("--out", "-o", type=common.PATH, required=True, help="Folder to write.")
@common.JSON
def command(
    model: Path | None,
    all_kernels: bool,
    targets: tuple[str, ...],
    kv_bits: tuple[int, ...],
    link: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Compile the kernels of MODEL, so that its first start compiles nothing.

    Without MODEL, those of the bundled model. A start takes kernels from the folder that
    EDGETOK_KERNELS or --kernels names, and compiles those that are missing there or belong to
    another version of edgetok. It refuses a folder that others than you and root may write.
    """
    from edgetok.environment import read_settings
    from edgetok.kernels_cpu.program.loader import MODULES
    from edgetok.kernels_cpu.program.shipping import (
        check_empty,
        compile_for,
        targets_of,
        write_folder,
    )
    from edgetok.kernels_cpu.simd.isa import choose
    from edgetok.kernels_cpu.simd.target import Target

    if all_kernels and model is not None:
        raise click.UsageError("MODEL conflicts with --all; remove one")
    names = [name for given in targets for name in given.split(",")]
    chosen = [target for name in names for target in targets_of(name)] or [Target.here(choose())]
    out = out.expanduser()
    check_empty(out)
    linkers = _linkers(chosen) if link else {}
    modules = MODULES if all_kernels else _modules(model or common.bundled(), kv_bits, as_json)
    cache_dir = read_settings().cache_dir
    title = "compiling kernels for " + ", ".join(target.name for target in chosen)
    objects = compile_for(chosen, modules, cache_dir, Compiling(title=title))
    libraries = {target: linker.link(objects[target]) for target, linker in linkers.items()}
    written = write_folder(out, objects, libraries)
    sizes = {
        target.name: {
            "objects": len(codes),
            "bytes": len(libraries.get(target, b"")) or sum(map(len, codes.values())),
        }
        for target, codes in objects.items()
    }
    if as_json:
        values = {"out": str(out), "made_with": written["made_with"], "modules": list(modules)}
        streams.print_json({**values, "targets": sizes})
        return
    rows = [
        (name, f"{size['objects']} objects, {streams.megabytes(size['bytes'])}")
        for name, size in sizes.items()
    ]
    streams.print_table("", [*rows, ("Written to", str(out)), ("To use them", _use(out))])


def _linkers(targets: Sequence[Target]) -> dict[Target, KernelLinker]:
    """Return what links each target's kernels, before minutes are spent on compiling them."""
    from edgetok.native.kernel_library import KernelLinker

    return {target: KernelLinker(target) for target in targets}


def _use(out: Path) -> str:
    return f"EDGETOK_KERNELS={out.absolute()}, or --kernels {out}"


def _modules(model: Path, kv_bits: tuple[Any, ...], as_json: bool) -> list[str]:
    """The modules of kernels that a model calls, and what `edgetok bench` measures with."""
    from edgetok.formats.artefact import open_artefact
    from edgetok.kernels_cpu.program.loader import MODULES
    from edgetok.runtime.base import with_spec
    from edgetok.runtime.cpu.head_eviction import modules_of
    from edgetok.runtime.cpu.requirements import check_groups, needed_modules

    wanted = {"bandwidth.kernels"}
    with open_artefact(common.model_folder(model, quiet=as_json)) as opened:
        artefact, _ = with_spec(opened)
        check_groups(artefact)
        for bits in kv_bits:
            wanted.update(needed_modules(artefact, bits, "int8"), modules_of(bits))
    return [module for module in MODULES if module in wanted]
