"""Whether a package's metadata states a permissive licence, and whether a file says otherwise."""

import re
from email.message import Message

PERMISSIVE = frozenset(
    {
        *("MIT", "MIT-0", "ISC", "0BSD", "BSD", "BSD-2-CLAUSE", "BSD-3-CLAUSE", "ZLIB"),
        *("APACHE-2.0", "PSF-2.0", "PYTHON-2.0", "CC0-1.0", "UNLICENSE"),
    }
)
"""SPDX identifiers, in capitals, and "BSD", which older metadata leaves unnumbered."""

_PERMISSIVE_CLASSIFIERS = frozenset(
    {
        "License :: OSI Approved :: MIT License",
        "License :: OSI Approved :: ISC License (ISCL)",
        "License :: OSI Approved :: BSD License",
        "License :: OSI Approved :: Apache Software License",
        "License :: OSI Approved :: Python Software Foundation License",
        "License :: Public Domain",
    }
)

_PERMISSIVE_WORDS = re.compile(
    r"(the )?(mit|(modified |new |[23]-clause )?bsd|apache([ -](license,? ?)?(version )?2(\.0)?)?"
    r"|psf|isc|public domain)( licen[cs]e)?",
    re.IGNORECASE,
)

# A longer "License" field holds the text of the licence, not its name.
_LONGEST_NAME = 60

_OTHER_LICENCE = re.compile(
    r"GNU\s+(Lesser\s+|Library\s+|Affero\s+)?General\s+Public|\b[AL]?GPL(v[23])?\b"
    r"|Mozilla\s+Public\s+License|Creative\s+Commons",
)
_HEADER_CHARACTERS = 4000


def permissive_licence(metadata: Message) -> str | None:
    """The licence that wheel metadata states, if it is permissive; None if not, or not clear.

    ``License-Expression`` decides where it is present; else every licence classifier and a short
    ``License`` field must be permissive, and there must be one of them.
    """
    expression = str(metadata["License-Expression"] or "").strip()
    if expression:
        return expression if is_permissive(expression) else None
    name = " ".join(str(metadata["License"] or "").split())
    classifiers = [str(value) for value in metadata.get_all("Classifier", [])]
    approved = [
        value
        for value in classifiers
        if value.startswith("License ::") and value != "License :: OSI Approved"
    ]
    if name and len(name) <= _LONGEST_NAME:
        if not (is_permissive(name) or _PERMISSIVE_WORDS.fullmatch(name)):
            return None
    elif not approved:
        return None
    if not all(value in _PERMISSIVE_CLASSIFIERS for value in approved):
        return None
    return name if 0 < len(name) <= _LONGEST_NAME else approved[0].rpartition(" :: ")[2]


def is_permissive(expression: str) -> bool:
    """Whether an SPDX expression allows use under permissive licences alone; brackets do not."""
    return all(
        any(name.strip().upper() in PERMISSIVE for name in re.split(r"\bOR\b", part))
        for part in re.split(r"\bAND\b", expression)
    )


def has_other_licence(text: str) -> bool:
    """Whether the beginning of a file names a licence that is not permissive."""
    return _OTHER_LICENCE.search(text[:_HEADER_CHARACTERS]) is not None
