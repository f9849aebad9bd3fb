"""An HTTP server of a folder's files on loopback, which can fail on request."""

import contextlib
import functools
import http.server
import threading


class FaultyHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files, records what was requested, and answers a path's next requests with its fault, if there is one.

    Its server has `requested`, the names in order, and `faults`: by name, [how many times, what answers instead].
    """

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.requested.append(name)
        fault = self.server.faults.get(name)
        if fault and fault[0]:
            fault[0] -= 1
            return fault[1](self)
        return super().do_GET()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def http_servers():
    """Gives a function that starts a server, whose `url` is the folder given to it; they end with the block."""
    servers = []

    def start(folder):
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(FaultyHandler, directory=str(folder))
        )
        server.requested, server.faults, server.url = [], {}, f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
