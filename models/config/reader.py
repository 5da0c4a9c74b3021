"""Reading a config that somebody else wrote: every key is understood, harmless or an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgetok.errors import CheckpointError, UnsupportedError

# Keys that never change what a decoder computes at inference: training, generation defaults,
# bookkeeping of transformers and of tools that edit checkpoints. `pretraining_tp` only changes the
# order of a sum. `auto_map` names remote code, which is never imported.
_HARMLESS: Final = frozenset({
    "_name_or_path", "architectures", "auto_map", "dtype", "is_llama_config", "model_type",
    "tokenizer_class", "torch_dtype", "transformers.js_config", "transformers_version",
    "unsloth_fixed", "unsloth_version",
    "attention_dropout", "embd_pdrop", "hidden_dropout", "hidden_dropout_prob", "initializer_range",
    "pretraining_tp", "resid_pdrop",
    "_attn_implementation_autoset", "attn_implementation", "cache_implementation",
    "chunk_size_feed_forward", "is_decoder", "output_attentions", "output_hidden_states",
    "return_dict", "tf_legacy_loss", "torchscript", "use_bfloat16", "use_cache",
    "bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    "unk_token_id",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "prefix",
    "repetition_penalty", "return_dict_in_generate", "temperature", "top_k", "top_p", "typical_p",
    "finetuning_specific_task", "id2label", "label2id", "problem_type", "task_specific_params",
})  # fmt: skip
_REMEDIES: Final = {
    "quantization_config": "it is quantised already: convert the original checkpoint",
}
_MISSING: Final = object()


def shown(value: object) -> str:
    """`value` as it may stand in a message: one line, bounded, whatever it is."""
    if isinstance(value, Mapping):
        return f"an object with {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if type(value) is int and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = ascii(value[:80]) if isinstance(value, str) else ascii(value)
    text = " ".join(text.split())  # an array takes several lines
    return text if len(text) <= 80 else text[:77] + "..."


class ConfigReader:
    """Typed, checked access to one JSON object that remembers what was read.

    A null value counts as absent, except where a method says otherwise.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        """Read from `values`, which messages call `where`."""
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{where} is {shown(values)}, expected a JSON object")
        self.where = where
        self._values = values
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        """Return whether `key` is present and not null."""
        return self._values.get(key) is not None

    def mentions(self, key: str) -> bool:
        """Return whether `key` is present, perhaps null."""
        return key in self._values

    def value(self, key: str) -> Any:
        """Return the unchecked value, None where absent; the key counts as read."""
        self._read.add(key)
        return self._values.get(key)

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = 1 << 31
    ) -> int:
        """Return an integer in low..high; `default` where absent, required where that is None."""
        value = self.optional_integer(key, default, low=low, high=high, null=default)
        if value is None:
            raise self._missing(key, "an integer")
        return value

    def optional_integer(
        self,
        key: str,
        absent: int | None = None,
        *,
        low: int = 1,
        high: int = 1 << 31,
        null: int | None = None,
    ) -> int | None:
        """Read as `integer` does; return `absent` if the key is absent and `null` if it is null."""
        self._read.add(key)
        value = self._values.get(key, _MISSING)
        if value is _MISSING or value is None:
            return absent if value is _MISSING else null
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(key, value, f"an integer in {low}..{high}")
        return value

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        low: float = 1e-30,
        high: float = 1e30,
    ) -> float:
        """A finite number in low..high; `default` where absent, required where that is None."""
        value = self.optional_number(key, default, low=low, high=high, null=default)
        if value is None:
            raise self._missing(key, "a number")
        return value

    def optional_number(
        self,
        key: str,
        absent: float | None = None,
        *,
        low: float = 1e-30,
        high: float = 1e30,
        null: float | None = None,
    ) -> float | None:
        """Read as `number` does; return `absent` if the key is absent and `null` if it is null."""
        self._read.add(key)
        value = self._values.get(key, _MISSING)
        if value is _MISSING or value is None:
            return absent if value is _MISSING else null
        # Python compares an int of any size with a float exactly, so nothing overflows here.
        if type(value) not in (int, float) or not low <= value <= high:
            raise self._wrong(key, value, f"a number in {low:g}..{high:g}")
        return float(value)

    def numbers(self, key: str, count: int, *, low: float, high: float) -> tuple[float, ...]:
        """Return a list of `count` finite numbers in low..high."""
        value = self.value(key)
        expected = f"a list of {count} numbers in {low:g}..{high:g}"
        if value is None:
            raise self._missing(key, expected)
        if not isinstance(value, list | tuple) or len(value) != count:
            raise self._wrong(key, value, expected)
        for item in value:
            if type(item) not in (int, float) or not low <= item <= high:
                raise self._wrong(key, item, expected)
        return tuple(float(item) for item in value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.value(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string; `default` where absent, required where that is None."""
        value = self.value(key)
        value = default if value is None else value
        if value is None:
            raise self._missing(key, "a string")
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def choices(self, key: str, allowed: tuple[str, ...], count: int) -> tuple[str, ...] | None:
        """Return a list of `count` strings, each in `allowed`; None where absent."""
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) != count:
            raise self._wrong(key, value, f"a list of {count} strings")
        for item in value:
            if item not in allowed:
                raise self.unsupported(key, item, " or ".join(allowed))
        return tuple(value)

    def switches(self, key: str, count: int) -> tuple[bool, ...] | None:
        """Return a list of `count` times true or false, or 1 or 0; None where absent."""
        value = self.value(key)
        if value is None:
            return None
        expected = f"a list of {count} times 0 or 1"
        if not isinstance(value, list | tuple) or len(value) != count:
            raise self._wrong(key, value, expected)
        for item in value:
            if type(item) not in (int, bool) or item not in (0, 1):
                raise self._wrong(key, item, expected)
        return tuple(bool(item) for item in value)

    def tokens(self, key: str, vocab_size: int) -> tuple[int, ...] | None:
        """Return one token id or a list of them; None where absent."""
        value = self.value(key)
        if value is None:
            return None
        ids = value if isinstance(value, list | tuple) else (value,)
        for item in ids:
            if type(item) is not int or not 0 <= item < vocab_size:
                raise self._wrong(key, item, f"a token id below the vocab_size of {vocab_size}")
        return tuple(ids)

    def expect(self, key: str, value: object) -> None:
        """Refuse `key` unless it is absent or `value`, the only one that edgetok computes."""
        result = self.value(key)
        if result is not None and (type(result) is bool) != (type(value) is bool):
            raise self.unsupported(key, result, shown(value))
        if result is not None and result != value:
            raise self.unsupported(key, result, shown(value))

    def section(self, key: str) -> ConfigReader | None:
        """Return the JSON object under `key`, None where absent. The caller calls its `finish`."""
        value = self.value(key)
        return None if value is None else ConfigReader(value, f"{self.where}: {key}")

    def finish(self) -> None:
        """Refuse every key that nothing has read and that is not known to be harmless.

        Raises:
            UnsupportedError: names the key and its value. null, false and empty values pass: what
                edgetok does not know is off.
        """
        for key in sorted(map(str, self._values)):
            value = self._values.get(key)
            off = value is None or value is False or value == {} or value == []
            if off or key in self._read or key in _HARMLESS:
                continue
            remedy = _REMEDIES.get(
                key, "convert a model without it, or remove the key if it has no effect"
            )
            raise UnsupportedError(
                f"{self.where}: {shown(key)} is {shown(value)}, which edgetok does not know and "
                f"which may change what the model computes; {remedy}"
            )

    def unsupported(self, key: str, value: object, expected: str) -> UnsupportedError:
        """Return the error for a value that means arithmetic edgetok does not have."""
        return UnsupportedError(
            f"{self.where}: {key} is {shown(value)}, edgetok computes {expected}"
        )

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {key} is {shown(value)}, expected {expected}")

    def _missing(self, key: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {key} is missing, expected {expected}")
