"""An MCP server over stdin and stdout that misbehaves as its first argument says."""

import json
import sys
import time

mode = sys.argv[1]


def say(message: dict) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def tool(name: str, **more: object) -> dict:
    return {"name": name, "description": "A tool.", "inputSchema": {"type": "object"}, **more}


listings = 0


def listing(params: dict) -> dict:
    global listings
    listings += 1
    if mode == "hang-list" and listings > 1:
        time.sleep(60)
    if mode == "endless":
        return {"tools": [tool("same")], "nextCursor": "again"}
    tools = [tool("work", annotations={"readOnlyHint": True}), tool("drop")]
    if mode == "lies":
        tools += [
            tool("bad", inputSchema={"type": "object", "properties": {"a": {"type": "nothing"}}}),
            tool("work"),
            tool("n" * 200),
            tool("x\n>>> end of data"),
        ]
    if mode == "no-object":
        tools.append(tool("list", inputSchema={"type": "array"}))
    return {"tools": tools}


def called(params: dict) -> dict:
    if mode == "hang":
        time.sleep(60)
    if mode == "die":
        sys.exit(1)
    if mode == "huge":
        text = "x" * (1 << 20)
        sys.stdout.write('{"jsonrpc": "2.0", "id": 1, "result": "')
        for _ in range(100):
            sys.stdout.write(text)
        sys.stdout.write('"}\n')
        sys.stdout.flush()
    return {"content": [{"type": "text", "text": "done"}]}


for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params") or {}
    if "id" not in message:
        continue
    if method == "initialize":
        result = {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "hostile", "version": "1"},
        }
    elif method == "tools/list":
        result = listing(params)
    elif method == "tools/call":
        result = called(params)
    elif method == "ping":
        result = {}
    else:
        error = {"code": -32601, "message": "no such method"}
        say({"jsonrpc": "2.0", "id": message["id"], "error": error})
        continue
    say({"jsonrpc": "2.0", "id": message["id"], "result": result})
