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
    """The page for what `report.as_json` gives."""
    template = resources.files(__package__).joinpath("picture.html").read_text(encoding="utf-8")
    # "</script>" in the data must not end the script that it stands in.
    return template.replace(_HOLE, json.dumps(data).replace("</", "<\\/"))
