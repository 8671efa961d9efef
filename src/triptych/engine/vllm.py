"""vLLM as the sampler: a server in an environment of its own, handed the weights after each update.

vLLM needs other versions of torch and transformers than Triptych does, so the two meet over HTTP: prompts and answers
as token ids, with the log-probabilities of the distribution that was sampled from. Weights are handed over as a Hugging
Face folder in TMPDIR, where the server must find it too. Each time the server is told a new name for its weights. If
it says another one when it has answered, someone else has given it weights, and the answers are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from uuid import uuid4

from pydantic import AfterValidator, PlainSerializer

from triptych.display import one_line
from triptych.engine import distributed
from triptych.engine.adapters import adapted, plain_copy, take_over
from triptych.engine.device import compute_dtype
from triptych.engine.forward import Model
from triptych.engine.models import save_weights
from triptych.engine.request import Completion
from triptych.engine.sampler import Sampler
from triptych.engine.sampling import End, Sampling, ending
from triptych.engine.vllm_server import VllmServer, interpreter
from triptych.errors import ModelError

PARALLEL = 64
"""Prompts that are asked at a time."""
ANSWERING = 3600.0
"""Seconds in which a prompt must be answered; it may wait for others first."""


def _place(value: str) -> str:
    if is_address(value):
        import httpx2  # of which only a server's client has need

        with suppress(httpx2.InvalidURL):
            if httpx2.URL(value).host:
                return value.rstrip("/")
    elif value == "slots" or Path(value).name == "vllm":
        return value
    raise ValueError("must be slots, vllm, the path of vLLM's program (.../bin/vllm), or http://HOST:PORT of a server")


SamplerPlace = Annotated[
    str, AfterValidator(_place), PlainSerializer(lambda place: place if place == "slots" else "vllm", when_used="json")
]
"""Our engine's "slots"; or vLLM: its program or an address. Where it is changes no result, and is not written down."""


def is_address(place: str) -> bool:
    """Whether it names a server that is there already."""
    return place.startswith(("http://", "https://"))


def verify_place(place: str) -> None:
    """Finds out before any work whether what is to sample is there.

    Raises:
        ModelError: it is not.
    """
    if is_address(place):
        with _Client(place) as client:
            client.get("/weight_info")
    elif place != "slots":
        interpreter(place)


class VllmSampler(Sampler):
    """A server of vLLM that writes answers with the weights of a model in training.

    Args:
        place: vLLM's program, from which a server is started, or the address of one.
        folder: the Hugging Face folder that the model was loaded from.
    """

    def __init__(self, place: str, folder: Path) -> None:
        self._server: VllmServer | None = None
        self._weights = ""

        def reach() -> str:
            if is_address(place):
                return place
            self._server = VllmServer(place, folder)
            return self._server.address

        self._client = _Client(distributed.on_first(reach), self._server.log if self._server else None)

    def close(self) -> None:
        """Ends the server if it was started here."""
        self._client.close()
        if self._server is not None:
            self._server.close()

    def load_weights(self, model: Model) -> None:
        """Hands over the whole model, with what its adapters learnt; what was computed before is forgotten."""
        plain = plain_copy(model, compute_dtype())
        if adapted(model):
            take_over(plain, model)
        self._weights = distributed.on_first(lambda: self._hand_over(plain))

    def _hand_over(self, plain: Model) -> str:
        name = uuid4().hex
        with TemporaryDirectory(prefix="triptych-weights-") as folder:
            save_weights(plain, Path(folder))
            self._client.post("/collective_rpc", {"method": "reload_whole", "kwargs": {"folder": folder}})
        self._client.post("/reset_prefix_cache", {})
        self._client.post("/update_weight_version", {"new_version": name})
        return name

    def generate(
        self, prompts: Sequence[Sequence[int]], end: End, sampling: Sampling, *, n: int, numbers: Sequence[int],
        watch: Callable[[int, int], None],
    ) -> list[list[Completion]]:
        """As :func:`triptych.engine.generation.generate`; the noise belongs to seed and request here too."""
        ends = ending(end)

        def ask(prompt: Sequence[int], number: int) -> list[Completion]:
            reply = self._client.post("/v1/completions", {
                "prompt": list(prompt), "n": n, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature,
                "top_p": sampling.top_p, "seed": (sampling.seed * 1_000_003 + number * n) % 2**31,
                "stop_token_ids": list(ends), "ignore_eos": True, "logprobs": 0, "return_token_ids": True,
            })
            try:
                return [_completion(choice, ends) for choice in sorted(reply["choices"], key=lambda one: one["index"])]
            except (KeyError, TypeError, ValueError):
                raise ModelError(f"{self._client.address}: its answers are not those of vLLM 0.32") from None

        groups: list[list[Completion]] = []
        sampled = 0
        with ThreadPoolExecutor(PARALLEL) as pool:
            for group in pool.map(ask, prompts, numbers):
                groups.append(group)
                sampled += sum(len(completion.tokens) for completion in group)
                watch(len(groups) * n, sampled)
        if self._client.get("/weight_info").get("weight_version") != self._weights:
            raise ModelError(
                f"{self._client.address}: someone else has given it weights meanwhile; a run needs a server of its own"
            )
        return groups


class _Client:
    """Asks a server; whatever goes wrong is an error that names it, and the log of one that was started here."""

    def __init__(self, address: str, log: Path | None = None) -> None:
        import httpx2

        self.address, self._log = address, log
        # What is in the same machine or cluster needs no proxy.
        self._http = httpx2.Client(
            base_url=address, trust_env=False, timeout=httpx2.Timeout(ANSWERING, connect=30),
            limits=httpx2.Limits(max_connections=PARALLEL),
        )

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def get(self, path: str) -> dict[str, Any]:
        """What stands there."""
        return self._sent("GET", path)

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """What it replies."""
        return self._sent("POST", path, json=body)

    def _sent(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        import httpx2

        try:
            response = self._http.request(method, path, **content)
            reply = response.json() if response.is_success else response.text
        except (httpx2.HTTPError, OSError) as error:
            log = f"; what it wrote is in {self._log}" if self._log else ""
            raise ModelError(f"{self.address}: the sampler does not answer ({type(error).__name__}){log}") from None
        except ValueError:
            reply = ""
        if not isinstance(reply, dict):
            served = " (it is a server that `triptych sampler serve` starts?)" if response.status_code == 404 else ""
            raise ModelError(f"{self.address}{path}: {response.status_code}{served} {one_line(reply)[:300]}".rstrip())
        return reply


def _completion(choice: Mapping[str, Any], ends: Collection[int]) -> Completion:
    """vLLM's answer with the log-probability of each of its tokens."""
    tokens = [int(token) for token in choice["token_ids"]]
    logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
    if len(tokens) != len(logprobs):
        raise ValueError("a log-probability for each token")
    return Completion(tokens, logprobs, finished=bool(tokens) and tokens[-1] in ends)
