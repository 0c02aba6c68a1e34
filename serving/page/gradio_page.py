"""The page, run by the Python of Gradio's environment: python -I gradio_page.py REQUEST.json.

It imports the standard library and Gradio only. Each model is a socket on this machine, which gets a line of
JSON for a conversation and sends lines of JSON back. Nothing is asked of any other machine: no fonts, no
analytics, no sharing; what models say is shown as text, since markup may name pictures elsewhere. A chat box
takes its messages for HTML, so they lie there escaped.
"""

import html
import json
import os
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1",
    GRADIO_SHARE="False", GRADIO_NODE_PATH="", GRADIO_SSR_MODE="False", GRADIO_MCP_SERVER="False",
)  # fmt: skip
import gradio as gr

DONE = None


def chat(
    path: str, messages: list[Any], settings: Any, out: "queue.Queue[Any]", index: int, stop: threading.Event
) -> None:
    """What the model at the socket ``path`` says, put into ``out`` as (index, line)."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(json.dumps({"messages": messages, "settings": settings}).encode() + b"\n")
            with connection.makefile("r", encoding="utf-8") as lines:
                for line in lines:
                    if stop.is_set():
                        break
                    out.put((index, json.loads(line)))
    except (OSError, ValueError) as error:
        out.put((index, {"error": f"the model's process does not answer ({error})"}))
    out.put((index, DONE))


def figures(line: dict[str, Any]) -> str:
    parts = [f"{line['tokens']} tokens"]
    if line["tokens_per_s"]:
        parts.append(f"{line['tokens_per_s']:.1f} tokens/s")
    parts.append(f"first after {line['ttft_ms']:.0f} ms")
    parts.append(f"{line['memory_bytes'] / 1e6:,.0f} MB")
    return ", ".join(parts)


def page(models: list[dict[str, str]]) -> Any:
    names = [model["name"] for model in models]

    def answer(text: str, system: str, temperature: float, tokens: float, *given: Any) -> Iterator[Any]:
        """Every model at once; yields histories and figures as words arrive."""
        if not (text or "").strip():
            yield (text, *given, *[gr.skip()] * len(names))
            return
        histories = [[*history, {"role": "user", "content": html.escape(text)}] for history in given]
        shown = ["..."] * len(names)
        out: queue.Queue[Any] = queue.Queue()
        stop = threading.Event()
        settings = {"tokens": int(tokens), "temperature": float(temperature)}
        for index, model in enumerate(models):
            messages = [{"role": "system", "content": system}] if system and system.strip() else []
            messages += [{"role": m["role"], "content": plain(m["content"])} for m in histories[index]]
            arguments = (model["socket"], messages, settings, out, index, stop)
            threading.Thread(target=chat, args=arguments, daemon=True).start()
        left = len(names)
        try:
            while left:
                index, line = out.get()
                if line is DONE:
                    left -= 1
                    continue
                if "text" in line:
                    if histories[index][-1]["role"] == "user":
                        histories[index] = [*histories[index], {"role": "assistant", "content": ""}]
                    last = histories[index][-1]
                    said = plain(last["content"]) + line["text"]
                    histories[index] = [
                        *histories[index][:-1],
                        {"role": "assistant", "content": html.escape(said)},
                    ]
                elif "error" in line:
                    shown[index] = line["error"]
                else:
                    shown[index] = figures(line)
                if out.empty():
                    yield ("", *histories, *shown)
            yield ("", *histories, *shown)
        finally:
            stop.set()

    with gr.Blocks(title="quantwright try", analytics_enabled=False, fill_width=True) as blocks:
        boxes, lines = [], []
        with gr.Row():
            for index, name in enumerate(names):
                with gr.Column(min_width=260):
                    boxes.append(
                        gr.Chatbot(
                            label=name,
                            render_markdown=False,
                            sanitize_html=True,
                            height=460,
                            elem_id=f"chat-{index}",
                            buttons=[],
                        )
                    )
                    lines.append(
                        gr.Textbox(
                            value="",
                            label="",
                            show_label=False,
                            interactive=False,
                            elem_id=f"figures-{index}",
                        )
                    )
        with gr.Row():
            text = gr.Textbox(
                show_label=False, placeholder="Say something to all of them", scale=8, elem_id="say"
            )
            send = gr.Button("Send", variant="primary", elem_id="send")
            halt = gr.Button("Stop", elem_id="stop")
            clear = gr.Button("Clear", elem_id="clear")
        with gr.Accordion("Settings", open=False):
            system = gr.Textbox(value="", label="System message", elem_id="system")
            temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature (0: the likeliest token)")
            tokens = gr.Slider(1, 512, value=128, step=1, label="Most tokens of an answer")
        given, shown = [text, system, temperature, tokens, *boxes], [text, *boxes, *lines]
        events = [each(answer, given, shown, api_visibility="private") for each in (text.submit, send.click)]
        halt.click(None, cancels=events)
        clear.click(
            lambda: ([],) * len(boxes) + ("",) * len(lines), None, [*boxes, *lines], api_visibility="private"
        )
    return blocks


def plain(content: Any) -> str:
    """What was said, of what a chat box holds: escaped texts, which Gradio hands back as lists of parts."""
    parts = [content] if isinstance(content, str) else content
    return html.unescape(
        "".join(each if isinstance(each, str) else str(each.get("text", "")) for each in parts)
    )


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    font = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"])
    blocks = page(request["models"]).queue(default_concurrency_limit=1, api_open=False)
    blocks.launch(
        server_name="127.0.0.1", server_port=request["port"], share=False, quiet=True, inbrowser=False,
        prevent_thread_lock=True, show_error=False, footer_links=[], theme=theme, ssr_mode=False,
        enable_monitoring=False,
    )  # fmt: skip
    print(json.dumps({"url": f"http://127.0.0.1:{request['port']}/"}), flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    main()
