"""A service that converts temperatures. It listens on a free port, written to run/port."""

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from urllib.parse import parse_qs, urlsplit

SETTINGS = json.loads(Path("settings.json").read_text())


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/health":
            self.reply(200, {"status": "ok"})
        elif url.path == "/convert":
            try:
                celsius = float(parse_qs(url.query)["c"][0])
            except (KeyError, ValueError):
                self.reply(500, {"error": "c must be a number"})
                return
            fahrenheit = celsius * 5 / 9 + 32
            self.reply(200, {"f": round(fahrenheit, SETTINGS["digits"])})
        else:
            self.reply(404, {"error": "not found"})

    def reply(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
    port = server.server_address[1]
    ready = Path("run/port.new")
    ready.write_text(f"{port}\n")
    ready.rename("run/port")
    server.serve_forever()
