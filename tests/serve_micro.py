"""An OpenAI-compatible server for tests, on which the embedded model answers over HTTP.

The first `busy` requests are refused with 503. A prompt that contains REFUSE ME is always refused,
with 400. A `strict` server rejects fields that OpenAI does not have. Requests are recorded in
`seen`. Adapters are loaded as in vLLM."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from oelkit.model.sampling import generate


@contextmanager
def serve(policy, name="micro", busy=0, strict=False):
    """Run the server within the context."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/load_lora_adapter"):
                if asked["lora_path"].endswith("missing"):
                    return self.answer(400, {"error": {"message": "no adapter there"}})
                server.models[asked["lora_name"]] = asked["lora_path"]
                return self.answer(200, {})
            with server.lock:
                server.seen.append(asked)
                busy = len(server.seen) <= server.busy
            if busy:
                return self.answer(503, {"error": {"message": "busy"}})
            if asked["model"] not in server.models:
                return self.answer(404, {"error": {"message": "no such model"}})
            if strict and "min_p" in asked:
                return self.answer(422, {"error": {"message": "unexpected fields"}})
            if "REFUSE ME" in str(asked["messages"]):
                return self.answer(400, {"error": {"message": "refused"}})
            with server.lock:  # one model, one thread
                adapter = server.models[asked["model"]]
                if adapter:
                    policy.load_adapter(adapter)
                known = ("temperature", "top_p", "seed")
                how = {name: asked[name] for name in known if name in asked}
                reply = generate(
                    policy,
                    [policy.encode(asked["messages"])],
                    max_new_tokens=asked.get("max_tokens", 16),
                    adapter="student" if adapter else None,
                    **how,
                )[0]
            choice = {"index": 0, "finish_reason": "length" if reply.truncated else "stop"}
            choice["message"] = {"role": "assistant", "content": reply.text}
            self.answer(
                200,
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": asked["model"],
                    "choices": [choice],
                },
            )

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.lock, server.seen, server.busy = threading.Lock(), [], busy
    server.models = {name: None}  # and the folder of its adapter
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
