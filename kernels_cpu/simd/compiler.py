"""Numba as kernels need it: what takes most of its time and adds nothing to them is left out.

Kernels call typed helpers and the operations of `simd/ops.py`. They have no closures, arrays,
`with` or `literal_unroll`, raise nothing and are never called from Python. Of 38 modules 36 give
the machine code of Numba's whole pipeline; in the interpreter and the sampler LLVM writes loops
otherwise.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.cpu import CPUContext
from numba.core.typed_passes import (
    AnnotateTypes,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.types.functions import BaseFunction
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    IRProcessing,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)

_PASSES = (
    TranslateByteCode,
    FixupArgs,
    IRProcessing,
    RewriteSemanticConstants,
    DeadBranchPrune,  # by constants that a helper closes over
    ReconstructSSA,
    NopythonTypeInference,
    PreLowerStripPhis,
    AnnotateTypes,
    NativeLowering,
    NoPythonBackend,
)


class KernelCompiler(CompilerBase):  # type: ignore[misc]
    """The passes that kernels and their helpers need, of some thirty."""

    def define_pipelines(self) -> list[PassManager]:
        """Return the only pipeline."""
        made = PassManager("kernel")
        for one in _PASSES:
            made.add_pass(one, one.__name__)
        made.finalize()
        return [made]


def only_lower() -> None:
    """Make Numba in this process write LLVM's code and nothing else, as fast as it can.

    Helpers are linked into the kernels that call them and optimised there, for the target; what
    Numba makes of them for this machine, and what Python would call, would be thrown away.
    """

    def emit_nothing(library: Any) -> None:
        library._finalized = True

    JITCodeLibrary._optimize_final_module = lambda library: None
    JITCodeLibrary._finalize_final_module = emit_nothing
    CPUContext.create_cpython_wrapper = lambda *_args, **_options: None
    CPUContext.create_cfunc_wrapper = lambda *_args, **_options: None
    # What Python would call, each different; Python calls nothing here.
    CPUContext.get_executable = lambda *_: [].append

    # Numba looks for the meaning of `a + b` anew each time, through dozens of templates.
    functions: Any = BaseFunction
    look_up = functions.get_call_type
    known: dict[Any, Any] = {}

    def get_call_type(function: Any, context: Any, args: Any, keywords: Any) -> Any:
        if keywords:
            return look_up(function, context, args, keywords)
        key = function, context, args
        if key not in known:
            known[key] = look_up(function, context, args, keywords)
        return known[key]

    functions.get_call_type = get_call_type
