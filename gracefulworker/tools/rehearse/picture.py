"""The journal as a picture: one HTML file that needs nothing else.

What may be changed here: how the data gets into the page. How it is drawn stands in picture.html.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

#: What stands in the template where the data belongs.
_HOLE = "/* the data of the rehearsal */ null"


def draw(data: dict[str, Any]) -> str:
    """The page for what `report.as_json` gives, but for the pods' logs, which it does not show."""
    rollouts = [{**r, "pods": [{**pod, "log": []} for pod in r["pods"]]} for r in data["rollouts"]]
    template = resources.files(__package__).joinpath("picture.html").read_text(encoding="utf-8")
    # No "</script>" or "<!--" in the data must mean anything in the script that it stands in.
    text = json.dumps({**data, "rollouts": rollouts}).replace("<", "\\u003c")
    return template.replace(_HOLE, text)
