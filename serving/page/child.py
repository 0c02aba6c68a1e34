"""python -m serving.page.child REQUEST: opens one artifact and answers on a socket, a line of JSON for each
conversation, lines of JSON back. Who closes the connection ends the answer."""

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from quantize.errors import QuantwrightError, one_line
from quantize.recipe import RunOptions
from serving.page.chat import Chat, Settings

MAX_LINE_BYTES = 8 << 20


def main() -> None:
    request = json.loads(sys.argv[1])
    try:
        chat = Chat(Path(request["folder"]), RunOptions(**request["run"]))
    except QuantwrightError as error:
        print(json.dumps({"error": str(error), "code": error.exit_code}), flush=True)
        return
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(request["socket"])
        listening.listen()
        print(json.dumps({"ready": chat.runtime.describe()["backend"]}), flush=True)
        while True:
            connection, _ = listening.accept()
            with connection:
                answer(chat, connection)


def answer(chat: Chat, connection: socket.socket) -> None:
    def send(document: Any) -> None:
        connection.sendall(json.dumps(document).encode() + b"\n")

    try:
        with connection.makefile("rb") as lines:
            asked = json.loads(lines.readline(MAX_LINE_BYTES))
        for piece in chat.answer(asked["messages"], Settings(**asked["settings"])):
            send(piece)
    except ConnectionError:  # the person stopped it, or closed the page
        pass
    except (QuantwrightError, ValueError, MemoryError) as error:
        with contextlib.suppress(OSError):
            send({"error": one_line(error)})


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
