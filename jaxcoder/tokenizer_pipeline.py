"""What a ``tokenizer.json`` does to text around BPE: only the two pipelines we know may pass.

Another split of the text gives other ids, without an error and with worse completions: a
fingerprint of each section is compared, and both are shown.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

from .errors import TokenizerError

_BYTE_LEVEL = "ByteLevel(add_prefix_space=False, use_regex=True)"
_DIGITS_FIRST = f"Sequence[Digits(individual_digits=True), {_BYTE_LEVEL}]"

PRE_TOKENIZERS = {
    "gpt_bigcode": {_DIGITS_FIRST: True},
    "gpt2": {_BYTE_LEVEL: False, f"Sequence[{_BYTE_LEVEL}]": False, _DIGITS_FIRST: True},
}
"""Model type -> fingerprint of a right pre-tokenizer -> whether it splits digits."""

_OTHER_SECTIONS = {
    "normalizer": ("None",),
    "post_processor": ("None", "ByteLevel"),  # ByteLevel moves offsets alone
    "decoder": ("ByteLevel",),
}


def check_pipeline(fields: Mapping[str, Any], model_type: str) -> bool:
    """Check the sections around the BPE model; whether each digit becomes a token of its own.

    Raises:
      TokenizerError: naming the section, what it is and what was expected.
    """
    remedy = "take the tokenizer.json the model was trained with"
    got, expected = _fingerprint(fields.get("pre_tokenizer")), PRE_TOKENIZERS[model_type]
    if got not in expected:
        raise TokenizerError(
            f"pre_tokenizer: {got}, expected {' or '.join(expected)} for a {model_type} model; "
            f"{remedy}"
        )
    for name, kinds in _OTHER_SECTIONS.items():
        section = fields.get(name)
        kind = section.get("type") if isinstance(section, dict) else section
        if str(kind) not in kinds:
            raise TokenizerError(
                f"{name}: {_fingerprint(section)}, expected {' or '.join(kinds)}; {remedy}"
            )
    return expected[got]


def _fingerprint(section: Any) -> str:
    """One line: the type and the settings that decide where text is split, in a fixed order."""
    if isinstance(section, dict) and section.get("type") == "Sequence":
        parts = section.get("pretokenizers")
        if isinstance(parts, list):
            return f"Sequence[{', '.join(map(_part_fingerprint, parts[:9]))}]"
    return _part_fingerprint(section)


def _part_fingerprint(part: Any) -> str:
    if not isinstance(part, dict):
        return reprlib.repr(part)
    settings = {name: value for name, value in part.items() if name not in ("type", "trim_offsets")}
    if part.get("type") == "ByteLevel":
        settings.setdefault("use_regex", True)  # older files leave it out
    listed = (f"{name}={reprlib.repr(value)}" for name, value in sorted(settings.items())[:9])
    return f"{reprlib.repr(part.get('type')).strip(chr(39))}({', '.join(listed)})"
