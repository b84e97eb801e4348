"""What a machine that watches over the page asks it: GET /healthz."""

import time

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import mergelab
from mergelab.lab.lab import Lab
from mergelab.lab.line import shared_line


def health_route(lab: Lab) -> Route:
    """The route. Its JSON: version, uptime in seconds, jobs running and waiting, what is kept in memory and on disk."""
    started = time.monotonic()

    async def health(request: Request) -> JSONResponse:
        line = shared_line()
        lab.visits.sweep()
        return JSONResponse(
            {
                "status": "ok",
                "version": mergelab.__version__,
                "uptime": round(time.monotonic() - started, 1),
                "running": line.running,
                "waiting": line.waiting,
                "models": lab.models_loaded,
                "visitors": len(lab.visits),
                "bytes_kept": lab.bytes_kept,
                "bytes_on_disk": int(lab.runs.weight),
            }
        )

    return Route("/healthz", health)
