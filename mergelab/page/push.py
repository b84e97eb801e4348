"""A button that puts the newest merge on the Hub with the visitor's own login; drawn only where the page can log in."""

import os

import gradio as gr

from mergelab.lab.lab import Lab
from mergelab.page.telling import PRIVATE, saying, told


def draw_push(lab: Lab, merged: gr.State, status: gr.HTML) -> None:
    """Draw login, name and button, where OAuth is (a Space with `hf_oauth`); nothing elsewhere."""
    if not os.environ.get("OAUTH_CLIENT_ID"):
        return
    with gr.Row(elem_id="push"):
        gr.LoginButton("Log in to push", size="sm")
        repo = gr.Textbox(label="Push to the Hub as", placeholder="your-name/model", scale=2)
        button = gr.Button("Push", size="sm")

    def clicked(key: str, name: str, token: gr.OAuthToken | None) -> str:  # gradio fills in the token by its type
        return pushed(lab, key, name, token)

    button.click(told(clicked), [merged, repo], status, concurrency_limit=2, **PRIVATE)


def pushed(lab: Lab, key: str, name: str, token: gr.OAuthToken | None) -> str:
    """Push the run of that key as `name`; the status line."""
    if token is None:
        return saying("Log in first: the merge is pushed with your own login, which is not kept.", "bad")
    return saying(f"Pushed: {lab.push(lab.run_named(key), name.strip(), token.token)}", "good")
