"""A server that speaks NDIF's protocol, for tests and a notebook: one model, loopback alone, a key, faults on demand.

It runs in a process that cannot import sae_lab, as a real one could not: python tests/ndif.py FOLDER NAME [PORT], with
NDIF_API_KEY in the environment. It executes what it is sent. The first line it prints is its port.
"""

import asyncio
import importlib.abc
import io
import json
import linecache
import os
import sys
import threading
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor

HIDDEN = {"sae_lab", "jaxtyping", "beartype", "numba", "umap", "ipywidgets", "plotly", "tyro"}  # not on a server


class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r} (on the server)")


class Evil:
    """Opened as a pickle, it says so in a file of the working directory."""

    def __reduce__(self):
        return (open, ("opened-as-a-pickle", "w"))


class Server:
    """Jobs by their id; `faults` is a list of what goes wrong next, one a request of its kind."""

    def __init__(self, model, name):
        self.model, self.name, self.key, self.sandboxed = model, name, os.environ["NDIF_API_KEY"], False
        self.states, self.results, self.faults, self.received = {}, {}, [], []
        self.pool, self.waiting = ThreadPoolExecutor(1), []

    def fault(self, kind):
        if self.faults and self.faults[0] == kind:
            return self.faults.pop(0)
        return None

    def run(self, job, request, blob, host):
        import torch
        from nnsight.schema.request import RequestModel
        from nnsight.schema.response import ResponseModel, Status
        from nnsight.tracing.globals import BLOCKS, SOURCES
        from nnsight.tracing.tracer import _saves, dec, inc

        def say(**what):
            self.states[job] = ResponseModel(id=job, **what).model_dump_json()

        before = [dict(known) for known in (linecache.cache, SOURCES, BLOCKS)]
        try:
            say(status=Status.RUNNING)
            self.model._remoteable_set_env(request.env)
            known = self.model._remoteable_persistent_objects()
            tracer = RequestModel.deserialize(blob, known, compress=request.compress)
            inc()
            try:
                tracer.execute(tracer.info.code)
                saved = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in _saves()}
            finally:
                dec()
            data = io.BytesIO()
            torch.save(Evil() if self.fault("evil") else saved, data)
            self.results[job] = data.getvalue()
            if request.compress:
                import zstandard

                self.results[job] = zstandard.ZstdCompressor(level=3).compress(self.results[job])
            where = "203.0.113.1" if self.fault("elsewhere") else host
            say(status=Status.COMPLETED, data=f"http://{where}/result/{job}")
        except BaseException as error:
            say(status=Status.ERROR, description="".join(traceback.format_exception(error)))
        finally:
            self.model.interleaver.cancel()
            for known, was in zip((linecache.cache, SOURCES, BLOCKS), before):
                known.clear()
                known.update(was)


def application(server):
    from tornado import web

    class Handler(web.RequestHandler):
        def allowed(self):
            if self.request.headers.get("ndif-api-key") == server.key:
                return True
            self.set_status(401)
            self.finish({"detail": "Missing or invalid API key."})
            return False

    class Request(Handler):
        async def post(self):
            from nnsight.schema.request import RequestModel
            from nnsight.schema.response import ResponseModel, Status

            if not self.allowed():
                return
            if server.fault("silent"):
                await asyncio.sleep(3600)
            if server.fault("busy"):
                self.set_status(503)
                self.finish({"detail": "All replicas are busy."})
                return
            if server.fault("limit"):
                self.set_status(429)
                self.set_header("Retry-After", "7")
                self.finish({"detail": "Too many requests."})
                return
            request = RequestModel.model_validate_json(self.get_body_argument("data"))
            blob = self.request.files["blob"][0]["body"]
            said = json.loads(request.model_key.split(":", 1)[1])
            if said["repo_id"] != server.name:
                self.set_status(404)
                self.finish({"detail": f"{said['repo_id']} is not deployed."})
                return
            server.received.append(len(blob))
            job = uuid.uuid4().hex
            if server.fault("queue"):
                server.states[job] = ResponseModel(id=job, status=Status.QUEUED).model_dump_json()
                waiting = (2.5, server.pool.submit, server.run, job, request, blob, self.request.host)
                asyncio.get_running_loop().call_later(*waiting)
            elif server.fault("lost"):
                server.waiting.append((job, request, blob, self.request.host))
            else:
                server.pool.submit(server.run, job, request, blob, self.request.host)
            self.finish(ResponseModel(id=job, status=Status.RECEIVED, description="received").model_dump_json())

    class Response(Handler):
        async def get(self, job):
            if not self.allowed():
                return
            if server.fault("noise"):
                self.finish("<html>One moment, please</html>")
                return
            if server.fault("early") or job not in server.states:
                self.set_status(404)
                return
            if server.fault("drip"):
                for letter in server.states[job]:
                    self.write(letter)
                    await self.flush()
                    await asyncio.sleep(0.3)
            else:
                self.write(server.states[job])
            self.finish()

    class Result(web.RequestHandler):  # a presigned address asks for no key
        async def get(self, job):
            data = server.results[job]
            self.set_header("Content-Length", str(len(data)))
            if server.fault("cut"):
                self.write(data[: len(data) // 2])
                await self.flush()
                self.request.connection.stream.close()
                return
            if server.fault("garbled"):
                data = b"x" * len(data)
            if server.fault("slow"):
                await asyncio.sleep(3600)
            self.finish(data)

    class Faults(web.RequestHandler):
        def post(self):
            server.faults, server.received = json.loads(self.request.body), []
            server.sandboxed = server.fault("sandbox") is not None

        def get(self):
            self.finish(json.dumps({"received": server.received, "faults": server.faults}))

    class Finish(web.RequestHandler):
        def post(self):
            """What was lost is found again."""
            for job in server.waiting:
                server.pool.submit(server.run, *job)

    routes = [
        ("/request", Request),
        ("/response/(.*)", Response),
        ("/result/(.*)", Result),
        ("/faults", Faults),
        ("/finish", Finish),
    ]
    return web.Application(routes)


def until_alone(parent):
    """Ends the process when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def main(folder, name, port="0"):
    sys.meta_path.insert(0, Hidden())
    import torch
    from nnsight import TransformersModel
    from tornado import httpserver, netutil
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()
    server = Server(TransformersModel(module, tokenizer=AutoTokenizer.from_pretrained(folder)), name)

    def cut_off(module, args, logits):  # a sandbox is given activations without their graph
        return logits.detach() if server.sandboxed else logits

    module.lm_head.register_forward_hook(cut_off)

    async def serve():
        sockets = netutil.bind_sockets(int(port), "127.0.0.1")
        httpserver.HTTPServer(application(server), max_buffer_size=2**30).add_sockets(sockets)
        print(sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()

    threading.Thread(target=until_alone, args=(os.getppid(),), daemon=True).start()
    asyncio.run(serve())


if __name__ == "__main__":
    main(*sys.argv[1:])
