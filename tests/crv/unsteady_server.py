"""An OpenAI-compatible server that fails in every way: python unsteady_server.py PORT TROUBLE UNUSABLE.

TROUBLE is the share of requests that meet 429, 500, 503, a hang, a reset or a body cut off (at random); UNUSABLE the
share of answers that are broken JSON, empty or cut off (the same at every asking). Answers are those of
benchmarks/synthetic.py.
"""

import asyncio
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from synthetic import speak

TROUBLES = ("429", "500", "503", "hang", "reset", "cut")


async def serve(reader, writer, trouble, unusable):
    try:
        while line := await reader.readline():
            path, length = line.split()[1].decode(), 0
            while (header := await reader.readline()).strip():
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            body = await reader.readexactly(length)
            if not await reply(path, body, writer, trouble, unusable):
                break
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def reply(path, body, writer, trouble, unusable):
    """False where the connection is to end."""
    if path == "/v1/models":
        return send(writer, 200, {"data": [{"id": "synthetic"}]})
    what = random.choice(TROUBLES) if random.random() < trouble else ""
    await asyncio.sleep(random.random() * 0.02)
    if what.isdigit():
        return send(writer, int(what), {"error": "so it goes"})
    if what == "hang":
        await asyncio.sleep(60)
        return False
    if what == "reset":
        writer.transport.abort()
        return False
    return send(writer, 200, answer(json.loads(body), unusable), cut=what == "cut")


def answer(request, unusable):
    text = request["messages"][-1]["content"]
    agent = text.split("## Task: ")[1].split("\n")[0]
    said, reason = speak(agent, {"problem": text}, request["seed"], unusable)
    usage = {"prompt_tokens": len(text) // 4, "completion_tokens": len(said) // 4}
    return {"choices": [{"message": {"content": said}, "finish_reason": reason}], "usage": usage}


def send(writer, status, document, cut=False):
    data = json.dumps(document).encode()
    writer.write(
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    )
    writer.write(data[: len(data) // 2] if cut else data)
    return not cut


async def main():
    port, trouble, unusable = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    server = await asyncio.start_server(lambda r, w: serve(r, w, trouble, unusable), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
