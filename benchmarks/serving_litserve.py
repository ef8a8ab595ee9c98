"""The runner behind LitServe, as a user of both would do it today."""

import base64
import socket
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]
import numpy as np
from fastapi import Request

from exitwise import OnnxRunner
from exitwise.deploy.sessions import allowed_cores


class Api(litserve.LitAPI):
    """Decode each image, stack them, run the runner on the batch."""

    def __init__(self, folder: Path, max_batch: int) -> None:
        super().__init__(max_batch_size=max_batch, batch_timeout=0.01)
        self.folder = folder

    def setup(self, device: Any) -> None:
        """Open the bundle."""
        self.runner = OnnxRunner(self.folder / "exits", threads=1)

    def decode_request(self, request: Request) -> Any:
        """Return an image as an input, of the request's JSON."""
        return self.runner.read_image(base64.b64decode(request["image"]))

    def batch(self, inputs: Any) -> Any:
        """Return inputs as a batch."""
        return np.stack(inputs)

    def predict(self, batch: Any) -> Any:
        """Return class and exit of each."""
        result = self.runner.by_stages(np.stack(batch))
        return list(zip(result.prediction.tolist(), result.exit.tolist(), strict=True))

    def unbatch(self, output: Any) -> Any:
        """Return the answers."""
        return output

    def encode_response(self, output: Any) -> Any:
        """Return an answer as JSON."""
        return {"class": output[0], "exit": output[1]}


def serve(folder: Path, max_batch: int) -> None:
    """Serve until it is ended; print the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(port, flush=True)
    server = litserve.LitServer(Api(folder, max_batch), accelerator="cpu", workers_per_device=allowed_cores())
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
