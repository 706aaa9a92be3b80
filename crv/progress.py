"""The live view of a run, on stderr: a table on a terminal, a line now and then in a file; Prometheus."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from rich.console import Console
from rich.live import Live
from rich.table import Table

from crv.meter import Meter

_PLAIN_SECONDS = 15.0  # between two lines where stderr is no terminal
_DRAW_SECONDS = 0.5


@contextlib.asynccontextmanager
async def shown(meter: Meter, port: int) -> AsyncIterator[None]:
    """Shows the meter until the block ends; `port` above 0 also serves it at http://127.0.0.1:port/metrics."""
    async with contextlib.AsyncExitStack() as stack:
        if port:
            server = await asyncio.start_server(lambda r, w: _answer(meter, r, w), "127.0.0.1", port)
            await stack.enter_async_context(server)
        view = asyncio.create_task(_table(meter) if sys.stderr.isatty() else _lines(meter))
        try:
            yield
        finally:
            view.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await view


async def _table(meter: Meter) -> None:
    with Live(_draw(meter), console=Console(stderr=True), auto_refresh=False) as live:
        try:
            while True:
                await asyncio.sleep(_DRAW_SECONDS)
                live.update(_draw(meter), refresh=True)
        finally:
            live.update(_draw(meter), refresh=True)


def _draw(meter: Meter) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, title="CRV", title_justify="left")
    for row in meter.rows():
        table.add_row(*row)
    return table


async def _lines(meter: Meter) -> None:
    while True:
        await asyncio.sleep(_PLAIN_SECONDS)
        wanted = {"problems", "tokens/s", "time"}
        print("CRV " + "; ".join(value for name, value in meter.rows() if name in wanted), file=sys.stderr, flush=True)


async def _answer(meter: Meter, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        request = await reader.readuntil(b"\r\n\r\n")
        found = request.startswith((b"GET /metrics ", b"GET / "))
        body = meter.prometheus().encode() if found else b"see /metrics\n"
        status = "200 OK" if found else "404 Not Found"
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        await writer.drain()
    writer.close()
