"""What ``static/build.mjs`` has made: names carry a hash of the content, so browsers may keep the files for good."""

from __future__ import annotations

import os
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOREVER = "public, max-age=31536000, immutable"


class BuiltFiles(StaticFiles):
    """Serves the copy that was compressed at build time to whoever accepts it."""

    def file_response(self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope,
                      status_code: int = 200) -> Response:
        packed = Path(f"{full_path}.gz")
        accepted = Headers(scope=scope).get("accept-encoding", "")
        if "gzip" in accepted and packed.is_file():
            plain = super().file_response(full_path, stat_result, scope, status_code)
            response: Response = FileResponse(packed, status_code, media_type=plain.media_type)
            response.headers["Content-Encoding"] = "gzip"
        else:
            response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Vary"] = "Accept-Encoding"
        if status_code < 400 and not str(full_path).endswith(".json"):
            response.headers["Cache-Control"] = FOREVER
        return response
