"""One error out of many findings, each short enough to read."""

from collections.abc import Sequence

_MOST_LISTED = 20


def raise_if_any(
    problems: Sequence[str], source: object, *, remedy: str, error: type[ValueError]
) -> None:
    """Raise `error` that lists all `problems` of `source` and says the `remedy`; none: return."""
    if not problems:
        return
    if len(problems) == 1:
        raise error(f"{source}: {problems[0]}; {remedy}")
    listed = [*problems[:_MOST_LISTED]]
    if len(problems) > _MOST_LISTED:
        listed.append(f"and {len(problems) - _MOST_LISTED} more")
    lines = "".join(f"\n  - {problem}" for problem in listed)
    raise error(f"{source}: {len(problems)} problems; {remedy}{lines}")


def shorten(value: object, limit: int = 80) -> str:
    """The ``repr`` of a value from a file, cut where a hostile one would fill the screen."""
    text = repr(value[: 2 * limit] if isinstance(value, str | list) else value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
