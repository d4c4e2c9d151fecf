"""``rehearsed.py`` behind ASGI, with its requests in threads."""

import asgi_apps
import rehearsed

app = asgi_apps.in_asgi(rehearsed.app)
