"""``owed.py`` behind ASGI, with its requests in threads."""

import asgi_apps
import owed

app = asgi_apps.in_asgi(owed.app)
