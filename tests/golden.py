"""Write the golden list of state_dict keys: ``python -m tests.golden``. Look at the difference before committing it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.components import ROWS
from tests.contract import make


def main() -> None:
    golden = {row.name: {k: list(v.shape) for k, v in make(row).state_dict().items()} for row in ROWS}
    text = json.dumps(golden, indent=1, sort_keys=True)
    Path(__file__).with_name("golden_keys.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
