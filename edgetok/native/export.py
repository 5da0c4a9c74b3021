"""Write an artefact as a folder that a C program runs without Python, and compare the two.

model.plan          `native/plan.py`
model.onnx.data     the weights, unchanged
include/edgetok.h   lib/TARGET/...   example.c   CMakeLists.txt
python/  node/  ...  wrappers of other languages, if asked for; `native/languages.py`
export.json         what was exported, what was refused and why, and what was compared
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tokenizers

from edgetok.errors import OutputError, UnsupportedError
from edgetok.formats.artefact import Artefact, open_artefact
from edgetok.formats.layout import DATA_FILE
from edgetok.kernels_cpu.program.compiling import Progress
from edgetok.kernels_cpu.program.loader import MODULES
from edgetok.models.spec import DecoderSpec
from edgetok.native.check import check
from edgetok.native.elsewhere import Exports, Run, compare_elsewhere
from edgetok.native.languages import check_languages, write_wrapper
from edgetok.native.library import HEADER, Machine, build_library, machine_of, this_machine
from edgetok.native.plan import PLAN_FILE, Section, model_plan
from edgetok.native.template import template_segments
from edgetok.native.tokenizer import tokenizer_tables
from edgetok.runtime.base import with_spec
from edgetok.runtime.cpu.backend import BLOCK_TOKENS, plan_options
from edgetok.runtime.cpu.head_eviction import modules_of
from edgetok.runtime.cpu.plan import make_plan
from edgetok.runtime.cpu.requirements import check_groups, check_options, needed_modules
from edgetok.text.generation_config import end_tokens, read_generation_config
from edgetok.text.template import ChatTemplate
from edgetok.text.tokenizer import Tokenizer, read_config

# For measuring, and for comparing.
UNUSED = ("bandwidth.kernels", "linear.exact", "linear.exact_grouped")
_CMAKE = """cmake_minimum_required(VERSION 3.16)
project(edgetok_example C)
find_package(Threads REQUIRED)
set(EDGETOK_TARGET {target} CACHE STRING "A folder of lib/")
add_library(edgetok STATIC IMPORTED)
set_target_properties(edgetok PROPERTIES
  IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/lib/${{EDGETOK_TARGET}}/libedgetok.a"
  INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}/include")
target_link_libraries(edgetok INTERFACE Threads::Threads)
add_executable(example example.c)
target_link_libraries(example edgetok)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The result of an export.

    Attributes:
        targets: bytes of each target's libraries, by file name.
        plan_bytes: of `model.plan`.
        weight_bytes: of the weights.
        kv_bits: of the caches.
        refused: why "tokenizer" or "template" were left out.
        compared: what was compared with Python, and how many of each; nothing where this machine
            has no C compiler.
        runs: the other instruction sets and targets: what ran each and how near Python it is.
        wrappers: languages whose wrappers were written.
    """

    targets: dict[str, dict[str, int]]
    plan_bytes: int
    weight_bytes: int
    kv_bits: int
    refused: dict[str, str] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    wrappers: tuple[str, ...] = ()


def export_native(
    folder: Path,
    out: Path,
    targets: Sequence[str],
    *,
    cache_dir: Path,
    kv_bits: int = 8,
    all_kernels: bool = False,
    isas: Sequence[str] = (),
    wrappers: Sequence[str] = (),
    progress: Progress | None = None,
) -> Exported:
    """Export an artefact.

    Args:
        folder: the artefact.
        out: a folder that does not exist or is empty.
        targets: machines by name; see `library.MACHINES`.
        cache_dir: where compiled kernels are kept.
        kv_bits: of keys and values.
        all_kernels: whether libraries hold the kernels of every model, not of this one alone.
        isas: instruction sets to pack; none takes all of the target's.
        wrappers: languages whose wrappers are written, too; see `languages.LANGUAGES`.
        progress: called while kernels are compiled.

    Raises:
        ArtefactError: the artefact is damaged.
        OptionError: there is no such target or language, or an option is out of range.
        UnsupportedError: the decoder cannot be exported.
        OutputError: `out` holds something, or cannot be written.
        MissingExtraError: there is no C compiler for a target.
        EdgetokError: a library does not give what Python gives.
    """
    machines = [machine_of(name) for name in targets]
    wrappers = tuple(dict.fromkeys(wrappers))
    check_languages(wrappers, targets)
    check_options(None, kv_bits, "int8", BLOCK_TOKENS)
    out = out.expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: is not empty; choose another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
            made = Path(work) / "export"
            result = _write(
                folder, made, machines, cache_dir, kv_bits, all_kernels, isas, wrappers, progress
            )
            if out.exists():
                out.rmdir()
            made.rename(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
    return result


def _write(
    folder: Path,
    out: Path,
    machines: Sequence[Machine],
    cache_dir: Path,
    kv_bits: int,
    all_kernels: bool,
    isas: Sequence[str],
    wrappers: tuple[str, ...],
    progress: Progress | None,
) -> Exported:
    with open_artefact(folder) as opened:
        artefact, spec = with_spec(opened)
        if spec.both_sides:
            raise UnsupportedError(
                f"{folder}: an embedding model with attention in both directions; the C library "
                "runs models that write text"
            )
        check_groups(artefact)
        plan = make_plan(spec, artefact, plan_options(kv_bits, "int8", BLOCK_TOKENS))
        extra, eos, refused = _text(artefact, spec)
        content = model_plan(plan, artefact, eos, extra)
        needed = [*needed_modules(artefact, kv_bits, "int8"), *modules_of(kv_bits)]
        if all_kernels:
            needed = [module for module in MODULES if module not in UNUSED]
        out.mkdir()
        (out / PLAN_FILE).write_bytes(content)
        shutil.copyfile(artefact.folder / DATA_FILE, out / DATA_FILE)
        (out / "include").mkdir()
        shutil.copyfile(HEADER, out / "include" / HEADER.name)
        shutil.copyfile(Path(__file__).with_name("example.c"), out / "example.c")
        (out / "CMakeLists.txt").write_text(_CMAKE.format(target=machines[0].name))
        built = {}
        for machine in machines:
            place = out / "lib" / machine.name
            place.mkdir(parents=True)
            files = build_library(machine, needed, place, cache_dir, progress, isas=isas)
            built[machine.name] = {path.name: path.stat().st_size for path in files}
        compared = _compared(artefact, out, machines, needed, cache_dir, kv_bits, extra)
        exports = Exports(
            artefact=artefact, folder=out, modules=needed, isas=isas, kv_bits=kv_bits,
            cache_dir=cache_dir,
        )  # fmt: skip
        runs = compare_elsewhere(exports, machines)
    for name in wrappers:
        write_wrapper(name, out)
    result = Exported(
        targets=built,
        plan_bytes=len(content),
        weight_bytes=(out / DATA_FILE).stat().st_size,
        kv_bits=kv_bits,
        refused=refused,
        compared=compared,
        runs=runs,
        wrappers=wrappers,
    )
    (out / "export.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    return result


def _text(
    artefact: Artefact, spec: DecoderSpec
) -> tuple[dict[Section, bytes], frozenset[int], dict[str, str]]:
    """Tokenizer and template, the tokens that end an answer, and what was refused."""
    extra: dict[Section, bytes] = {}
    refused: dict[str, str] = {}
    tokenizer = Tokenizer.from_folder(artefact.folder, spec.vocab_size)
    generation = read_generation_config(artefact.folder)
    eos = end_tokens(spec.eos_tokens, generation, tokenizer)
    core = tokenizers.Tokenizer.from_file(str(artefact.folder / "tokenizer.json"))
    try:
        extra[Section.TOKENIZER] = tokenizer_tables(core, tokenizer)
    except UnsupportedError as error:
        return {}, eos, {"tokenizer": str(error), "template": "needs the tokenizer"}
    template = ChatTemplate.from_folder(artefact.folder, read_config(artefact.folder))
    try:
        if template is None:
            raise UnsupportedError("the model has no chat template")
        extra[Section.TEMPLATE] = template_segments(template).to_bytes()
    except UnsupportedError as error:
        refused["template"] = str(error)
    return extra, eos, refused


def _compared(
    artefact: Artefact,
    out: Path,
    machines: Sequence[Machine],
    modules: Sequence[str],
    cache_dir: Path,
    kv_bits: int,
    extra: dict[Section, bytes],
) -> dict[str, int]:
    """Compare with Python on this machine, whatever the targets are."""
    here = this_machine()
    if here is None or not here.shared:
        return {}
    tokenizes = Section.TOKENIZER in extra
    if here.name in {machine.name for machine in machines}:
        library = out / "lib" / here.name / here.shared
        return check(artefact, out, library, cache_dir, kv_bits, tokenizes=tokenizes)
    with tempfile.TemporaryDirectory() as work:
        build_library(here, modules, Path(work), cache_dir)
        library = Path(work) / here.shared
        return check(artefact, out, library, cache_dir, kv_bits, tokenizes=tokenizes)
