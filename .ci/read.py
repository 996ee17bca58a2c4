"""Prints what .ci/run takes from setup.cfg and README.md.

python3 .ci/read.py floors         every lower bound as an exact version, for pip's constraints
python3 .ci/read.py test-command   the README's command that installs and runs the tests
python3 .ci/read.py run-command    the README's command that installs and runs the first experiment
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def requirements(*extras: str) -> list[str]:
    """The requirements of the package and of some extras, as setup.cfg lists them."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = [config["options"]["install_requires"], *(config["options.extras_require"][e] for e in extras)]
    return [line.strip() for text in listed for line in text.splitlines() if line.strip()]


def floors() -> str:
    return "\n".join(line.replace(">=", "==") for line in requirements("test", "parity"))


def block(name: str, document: str = "README.md") -> str:
    """The fenced block that follows the comment <!-- name --> in a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(rf"<!-- {name} -->\n+```\w*\n(.*?)```", text, re.DOTALL)
    if len(found) != 1:
        sys.exit(
            f"{document} must hold exactly one fenced block after <!-- {name} -->; it holds {len(found)}."
        )
    return found[0].strip()


WORDS = {"floors": floors, "test-command": lambda: block("test"), "run-command": lambda: block("run")}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in WORDS:
        sys.exit(__doc__)
    print(WORDS[sys.argv[1]]())
