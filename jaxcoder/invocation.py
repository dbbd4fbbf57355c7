"""The command that is running, as a shell in the current folder can call it again."""

import shlex
import shutil
import sys
from pathlib import Path

_NAME = "jaxcoder"


def command_line() -> str:
    """``jaxcoder`` where that is this command, else its path, quoted for the shell.

    That path is the script that was started, else the one beside the interpreter, as in an
    environment that is not activated; where there is none the interpreter runs the package.
    """
    started = Path(sys.argv[0])
    script = started if started.name == _NAME else Path(sys.executable).with_name(_NAME)
    if not script.is_file():
        return f"{_shown(Path(sys.executable))} -m {_NAME}"
    found = shutil.which(_NAME)
    return _NAME if found and script.samefile(found) else _shown(script)


def _shown(path: Path) -> str:
    """Relative where it is below the current folder; never a bare name, which is looked up."""
    path = path.absolute()
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path) if len(path.parts) > 1 else f"./{path}")
