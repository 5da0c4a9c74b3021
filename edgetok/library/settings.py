"""Settings of a conversion that nobody chose any for."""

from __future__ import annotations

from pathlib import Path

from edgetok.converter.convert import is_quantised
from edgetok.converter.identity import has_torch
from edgetok.converter.options import ConvertOptions
from edgetok.converter.originals import why_not_calibrated


def automatic(source: Path) -> tuple[ConvertOptions, str]:
    """Return the options for a source, and the reason where it is not obvious.

    Integers are kept where an artefact holds them. Q2_K of GGUF files gets
    8 bits, because rounding few bits to few other bits loses more than the file already has.
    Weights that were never quantised get 4 bits by gptq, which takes minutes where auto takes an
    hour; without torch, or a release of transformers that knows the model, 8 bits.
    """
    if is_quantised(source):
        return ConvertOptions(method="rtn"), ""
    if source.is_file() and not _is_plain(source):
        return ConvertOptions(bits=8, method="rtn"), "its own integers do not fit; 8 bits keep it"
    if not has_torch():
        return (
            ConvertOptions(bits=8, method="rtn"),
            "4 bits need calibration, which needs torch: pip install 'edgetok[convert]'",
        )
    if reason := why_not_calibrated(source):
        return ConvertOptions(bits=8, method="rtn"), f"4 bits need calibration: {reason}"
    return ConvertOptions(bits=4, method="gptq"), "edgetok pull --method auto loses less, slowly"


def shown(source: Path, options: ConvertOptions) -> str:
    """Return the settings in words."""
    if is_quantised(source) and (options.keep_codes or source.is_dir()):
        return "its integers are kept"
    if options.spreads:
        return f"{options.bits} bits on average, {options.method}"
    groups = f", groups of {options.effective_group_size}" if options.quantises else ""
    return f"{options.bits} bits, {options.method}{groups}"


def _is_plain(path: Path) -> bool:
    """Return whether most weights of a GGUF file are floating-point numbers."""
    from edgetok.formats.gguf import open_gguf

    infos = open_gguf(path).infos.values()
    plain = sum(i.nbytes for i in infos if i.dtype in ("F32", "F16", "BF16", "F64"))
    return 2 * plain > sum(info.nbytes for info in infos)
