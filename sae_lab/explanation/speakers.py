"""Language models that are asked: any OpenAI-compatible endpoint, or a local model. Both do two things: they say
something, and they weigh a few answers."""

import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import torch

from ..models import LM

RETRIES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # HTTP: worth another try


class Unanswered(RuntimeError):
    """Nobody answered, however often asked.

    Attributes:
        finished: what was, of the work that this broke off.
    """

    finished: Any = None


@runtime_checkable
class Speaker(Protocol):
    """Whoever can be asked.

    Attributes:
        name: what explanations and scores are filed under; nothing secret.
        at_once: questions that may be under way at a time.
    """

    name: str
    at_once: int

    def say(self, system: str, user: str, tokens: int) -> str:
        """An answer of at most so many tokens."""
        ...

    def weigh(self, system: str, user: str, answers: Sequence[str]) -> list[float]:
        """How likely each of a few one-token answers is, out of them all: 1 in all, or NaN where it said none."""
        ...


class Endpoint:
    """A chat model behind an OpenAI-compatible server: `Endpoint("https://api.example.org/v1", "llama-70b")`.

    The key is read from the environment variable named `key` when a question is asked, and kept nowhere.
    """

    def __init__(self, url: str, model: str, key: str = "OPENAI_API_KEY", timeout: float = 60.0, at_once: int = 8):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address of a server: write 'https://api.example.org/v1', for example.")
        if parts.username or parts.password:
            raise ValueError("The address holds a password, which would be kept in runs: put the key into $" + key)
        self.url, self.model, self.at_once = url.rstrip("/"), model, at_once
        self.name = f"{model} at {parts.netloc}"
        self._key, self._timeout = key, timeout

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self.model!r})"

    def say(self, system: str, user: str, tokens: int) -> str:
        """Raises:
        Unanswered: if the server cannot be reached, or refuses.
        """
        return self._ask(system, user, max_tokens=tokens)["message"]["content"] or ""

    def weigh(self, system: str, user: str, answers: Sequence[str]) -> list[float]:
        """As the protocol says; servers that give no probabilities are taken by their word.

        Raises:
            Unanswered: as `say`.
        """
        choice = self._ask(system, user, max_tokens=1, logprobs=True, top_logprobs=10)
        told = (choice.get("logprobs") or {}).get("content") or []
        weight = dict.fromkeys(answers, 0.0)
        for top in told[0].get("top_logprobs", []) if told else []:
            if top["token"].strip() in weight:
                weight[top["token"].strip()] += math.exp(top["logprob"])
        said = (choice["message"]["content"] or "").strip()
        if not sum(weight.values()) and said in weight:
            weight[said] = 1.0
        whole = sum(weight.values())
        return [weight[a] / whole if whole else math.nan for a in answers]

    def _ask(self, system: str, user: str, **more: Any) -> dict[str, Any]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0, **more}).encode()
        said = ""
        for pause in (*RETRIES, None):
            try:
                return self._post(body)["choices"][0]
            except urllib.error.HTTPError as error:
                said = f"{error.code} {error.reason}: {error.read(500).decode(errors='replace')}"
                if error.code not in AGAIN:
                    break
            except (OSError, ValueError, KeyError, IndexError) as error:  # no server, no JSON, no answer in it
                said = f"{type(error).__name__}: {error}"
            if pause is not None:
                time.sleep(pause)
        raise Unanswered(
            f"{self.url} gave no answer for {self.model!r} ({said}). Is the server there, is the model's name right, "
            f"and is the key in ${self._key}?"
        )

    def _post(self, body: bytes) -> dict[str, Any]:
        head = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key):
            head["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, head)
        with urllib.request.urlopen(request, timeout=self._timeout) as reply:
            return json.load(reply)


class Local:
    """A model in this process: `Local(load_model("meta-llama/Llama-3.1-8B-Instruct"))`."""

    at_once = 1

    def __init__(self, lm: LM):
        self.lm, self.name = lm, lm.name

    def say(self, system: str, user: str, tokens: int) -> str:
        return self.lm.generate(self._prompt(system, user), max_new_tokens=tokens).text

    def weigh(self, system: str, user: str, answers: Sequence[str]) -> list[float]:
        ids, mask = self.lm.encode(self._prompt(system, user))
        last = [self.lm.tokenizer(a, add_special_tokens=False)["input_ids"][-1] for a in answers]
        with torch.no_grad():
            return self.lm.logits(ids, mask)[0, -1, last].float().softmax(-1).tolist()

    def _prompt(self, system: str, user: str) -> str:
        if not getattr(self.lm.tokenizer, "chat_template", None):
            return f"{system}\n\n{user}\n"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return self.lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
