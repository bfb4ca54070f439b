"""A chat server of one's own in a thread: answers as a function says, and keeps what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer:
    """`reply(text of the last message, number of the request)` gives the answer: a text, or (status, headers, body)."""

    def __init__(self, reply: Callable[[str, int], Any]) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.busiest = self._busy = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append({"path": handler.path, **body})
            self.headers.append(dict(handler.headers))
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        answer = self.reply(body["messages"][-1]["content"], number)
        if isinstance(answer, str):
            answer = (200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}))
        status, headers, text = answer
        with self._lock:
            self._busy -= 1
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(text.encode())


@contextmanager
def chat_server(reply: Callable[[str, int], Any]) -> Iterator[ChatServer]:
    """The server, running."""
    server = ChatServer(reply)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
