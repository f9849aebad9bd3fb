"""A proxy on loopback before another HTTP server, which fails on request."""

import contextlib
import http.client
import http.server
import threading


class FaultyProxyHandler(http.server.BaseHTTPRequestHandler):
    """Passes a request on, records it, and answers a path's next requests with its fault, if there is one.

    Its server has `port`, of the server behind it, `requested`, pairs of method and name in order, and `faults`: by
    such a pair, [how many times, what answers instead].
    """

    protocol_version = "HTTP/1.1"

    def handle_request(self):
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.server.requested.append((self.command, name))
        fault = self.server.faults.get((self.command, name))
        if fault and fault[0]:
            fault[0] -= 1
            return fault[1](self)
        return self.pass_on()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request  # noqa: N815 - their names are the library's

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        behind = http.client.HTTPConnection("127.0.0.1", self.server.port)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        behind.close()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def faulty_proxy(port):
    """Such a server before the one that listens on `port`; its `url`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FaultyProxyHandler)
    server.daemon_threads = True
    server.port, server.requested, server.faults = port, [], {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
