#!/bin/sh
# Writes a log of 24,001 lines: always the same, and without its answer in plain sight.
exec python3 -I - <<'END'
state = 20260301


def draw(limit: int) -> int:
    global state
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    return (state >> 33) % limit


ids = [f"req-{(i * 2654435761 + 97) % 2**32:08x}" for i in range(12001)]
lines: list[str] = []
open_requests: list[str] = []


def log(what: str, request: str) -> None:
    second = len(lines) // 4
    stamp = f"2026-03-01T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z"
    lines.append(f"{stamp} worker-{draw(8)} {what} {request} {draw(5000)}us\n")


for number, request in enumerate(ids):
    log("begin", request)
    if number != 7351:
        open_requests.append(request)
    if len(open_requests) > 40:
        log("end", open_requests.pop(draw(len(open_requests))))
for request in open_requests:
    log("end", request)
with open("app.log", "w") as file:
    file.writelines(lines)
END
