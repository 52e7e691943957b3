"""An OpenAI-compatible server on this machine that answers as a test tells it to."""

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[dict], "str | int | dict"]


class Server:
    """Attributes:
    asked: the body and the Authorization header of each question.
    """

    def __init__(self, answer: Answer, logprobs: bool):
        self.answer, self.logprobs, self.asked = answer, logprobs, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((body, self.headers.get("Authorization")))
                said = outer.answer(body)
                code, reply = (said, {"error": "no"}) if isinstance(said, int) else (200, outer.reply(body, said))
                data = json.dumps(reply).encode() if not isinstance(reply, bytes) else reply
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def reply(self, body: dict, said):
        if isinstance(said, bytes):
            return said
        choice = {"message": {"role": "assistant", "content": said}}
        if body.get("logprobs") and self.logprobs:
            choice["logprobs"] = {"content": [{"top_logprobs": [{"token": said, "logprob": 0.0}]}]}
        return {"choices": [choice]}


@contextmanager
def serving(answer: Answer, logprobs: bool = True):
    server = Server(answer, logprobs)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
