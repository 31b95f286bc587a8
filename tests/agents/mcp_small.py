"""An MCP server of the standard library alone: `python3 mcp_small.py stdio`, or `... http PORT`.

Its tool `vault` answers with the word of the file /vault/word, if the right key is given.
"""

from __future__ import annotations

import http.server
import json
import sys

TOOL = {
    "name": "vault",
    "description": "Opens the vault.",
    "inputSchema": {
        "type": "object",
        "properties": {"key": {"type": "string"}},
        "required": ["key"],
    },
}


def opened(key: str) -> dict:
    if key != "sesame":
        return {"content": [{"type": "text", "text": "wrong key"}], "isError": True}
    with open("/vault/word") as file:
        return {"content": [{"type": "text", "text": f"the word is {file.read().strip()}"}]}


def answer(message: dict) -> dict | None:
    params = message.get("params", {})
    match message.get("method"):
        case "initialize":
            result = {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "vault", "version": "1"},
            }
        case "tools/list":
            result = {"tools": [TOOL]}
        case "tools/call":
            result = opened(params["arguments"].get("key"))
        case _:
            return None
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        found = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = b"" if found is None else json.dumps(found).encode()
        head = (
            f"HTTP/1.1 {202 if found is None else 200} OK\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.wfile.write(head.encode() + body)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    if sys.argv[1] == "http":
        http.server.ThreadingHTTPServer(("", int(sys.argv[2])), Handler).serve_forever()
    for line in sys.stdin:
        if (found := answer(json.loads(line))) is not None:
            print(json.dumps(found), flush=True)
