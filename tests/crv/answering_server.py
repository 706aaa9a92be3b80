"""A chat server in a thread whose replies are made by a function: for what real servers do beside answering."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@contextlib.contextmanager
def serving(reply, models=({"id": "m"},), base="/v1", pages=None):
    """Yields a URL; `reply(body, headers, path)` gives (status, document or bytes) or (status, document, headers).

    `base`: where the API is; `models`: what it lists (None: no list);
    `pages`: further ones by path.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            listed = models is not None and urlsplit(self.path).path == f"{base}/models"
            if page := (pages or {}).get(self.path):
                return self._send(200, page)
            self._send(200 if listed else 404, {"data": list(models)} if listed else {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if urlsplit(self.path).path != f"{base}/chat/completions":
                return self._send(404, {"error": "no such page"})
            if not body:
                return self._send(400, {"error": "messages: missing"})
            self._send(*reply(body, self.headers, self.path))

        def _send(self, status, document, headers=()):
            data = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def chat(content="hi", reason="stop", **message):
    """A chat completion's body."""
    row = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return {"choices": [row], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
