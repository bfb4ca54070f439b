"""A server that speaks OpenAI's chat protocol: POST <base_url>/chat/completions, by the standard library alone.

Answers are kept on disk as they come, so that what a killed run has paid for is not asked again. The API key is read
from the environment when it is sent; it is in no object, no file and no message.
"""

import hashlib
import http.client
import json
import logging
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError, EndpointError

log = logging.getLogger("alignlab")

PASSING = (408, 409, 425, 429)
"""Statuses below 500 that may be others a moment later; all from 500 on may be, too."""

LONGEST_WAIT = 120.0
"""Seconds between two tries at most, whatever the server asks for in Retry-After."""


class ChatEndpoint:
    """Asks a chat model, several questions at a time, and remembers its answers.

    Args:
        base_url: up to and without /chat/completions, for example http://localhost:8000/v1.
        model: the name that the server knows the model by.
        api_key_env: name of the environment variable with the key; None where the server asks for none.
        request: further fields of each request's body, for example temperature.
        timeout: seconds to wait for an answer.
        retries: further tries after an answer that may pass (429, 5xx, a lost connection).
        backoff: seconds before the first of them; doubled each time, less up to a half by chance.
        concurrency: questions under way at once.

    Raises:
        ConfigError: settings that cannot work, or an environment variable that is not set.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None,
        request: Mapping[str, Any],
        timeout: float,
        retries: int,
        backoff: float,
        concurrency: int,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"evaluation.judge.base_url={base_url}: expected http://... or https://...")
        if api_key_env is not None and not os.environ.get(api_key_env):
            raise ConfigError(
                f"evaluation.judge.api_key_env={api_key_env}: no such environment variable is set; export it, "
                "or say null if the server asks for no key"
            )
        for name, value, least in (("timeout", timeout, 0.001), ("retries", retries, 0), ("backoff", backoff, 0)):
            if not value >= least:
                raise ConfigError(f"evaluation.judge.{name}={value}: expected at least {least}")
        if concurrency < 1:
            raise ConfigError(f"evaluation.judge.concurrency={concurrency}: expected at least 1")
        taken = {"model", "messages", "stream", "n"} & set(request)
        if taken:
            raise ConfigError(f"evaluation.judge.request: {', '.join(sorted(taken))} cannot be set there")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model, self.api_key_env, self.request = model, api_key_env, dict(request)
        self.timeout, self.retries, self.backoff, self.concurrency = timeout, retries, backoff, concurrency
        self._memory: Path | None = None
        self._stop, self._writing = threading.Event(), threading.Lock()
        self._failure: EndpointError | None = None
        self._opener = urllib.request.build_opener(_NoRedirects)

    def remember(self, path: Path) -> None:
        """Keep answers in this jsonl file, and take from it those that are there; its last line may be half a line."""
        self._memory = path

    def answers(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        """The model's answer to each conversation (messages with role and content); the same one is asked once.

        Raises:
            EndpointError: a request that failed for good. Answers that came by then are kept.
        """
        bodies = [{**self.request, "model": self.model, "messages": [dict(m) for m in c]} for c in conversations]
        keys = [self._key(body) for body in bodies]
        known = self._read()
        todo = {key: body for key, body in zip(keys, bodies) if key not in known}
        log.info("judge %s: %d questions, %d of them already answered", self.model, len(keys), len(keys) - len(todo))
        self._failure = None
        self._stop.clear()
        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = {pool.submit(self._ask_and_keep, key, body): key for key, body in todo.items()}
            try:
                for future in as_completed(asked):
                    known[asked[future]] = future.result()
            except BaseException:  # also when we are interrupted: ask nothing more, keep what is on its way
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                if self._failure is not None:  # the first one, not one of those that it stopped
                    raise self._failure from None
                raise
        return [known[key] for key in keys]

    def _key(self, body: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()

    def _ask_and_keep(self, key: str, body: Mapping[str, Any]) -> str:
        try:
            answer = self._ask(body)
        except EndpointError as error:
            self._failure = self._failure or error
            self._stop.set()  # here, not where it is noticed: not one more question is asked
            raise
        if self._memory is not None:
            line = json.dumps({"key": key, "answer": answer}) + "\n"
            with self._writing, self._memory.open("a", encoding="utf-8") as file:
                file.write(line)
        return answer

    def _read(self) -> dict[str, str]:
        """Key -> answer of the file, which is cut after its last whole line."""
        if self._memory is None:
            return {}
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        if not self._memory.exists():
            return {}
        content = self._memory.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._memory, len(whole))
        records = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
        return {record["key"]: record["answer"] for record in records}

    def _ask(self, body: Mapping[str, Any]) -> str:
        """One answer, after as many tries as it takes and `retries` allows."""
        problem, asked_for = "", None
        for attempt in range(self.retries + 1):
            if self._stop.is_set():
                break
            try:
                return _content(self._post(body))
            except urllib.error.HTTPError as error:
                problem, asked_for = f"{error.code} {self._said(error)}", error.headers.get("Retry-After")
                if error.code not in PASSING and error.code < 500:
                    raise EndpointError(f"{self.url} refuses: {problem}{self._advice(error.code)}") from None
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                problem, asked_for = f"{type(error).__name__}: {error}", None
            if attempt < self.retries:
                wait = self.backoff * 2**attempt * random.uniform(0.5, 1)
                self._stop.wait(min(LONGEST_WAIT, max(wait, _seconds(asked_for))))
        if self._stop.is_set():
            raise EndpointError(f"{self.url}: not asked any more, for another question failed")
        raise EndpointError(f"{self.url}: no answer in {self.retries + 1} tries; the last: {problem}")

    def _post(self, body: Mapping[str, Any]) -> Any:
        """The server's answer as JSON."""
        headers = {"Content-Type": "application/json", "User-Agent": "alignlab"}
        if self.api_key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.api_key_env]}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        with self._opener.open(request, timeout=self.timeout) as response:
            text = response.read().decode("utf-8", "replace")
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise EndpointError(f"{self.url}: not JSON: {text[:200]!r}; is this an OpenAI-compatible server?") from None

    def _said(self, error: urllib.error.HTTPError) -> str:
        """Why the server refuses, on one line and without the key."""
        try:
            text = " ".join(error.read(500).decode("utf-8", "replace").split())
        except (OSError, http.client.HTTPException):
            text = ""
        key = os.environ.get(self.api_key_env or "", "")
        return f"{error.reason} {text.replace(key, '<key>') if key else text}".strip()

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return f" (the key is read from the environment variable {self.api_key_env})"
        return " (evaluation.judge.base_url ends before /chat/completions)" if status in (404, 405) else ""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key to somebody else, and the question nowhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the status stands as an error."""
        return None


def _content(answer: Any) -> str:
    """The text of the first choice; empty where the model said nothing (it may have been cut off while it thought)."""
    try:
        return answer["choices"][0]["message"].get("content") or ""
    except (KeyError, IndexError, TypeError, AttributeError):
        said = json.dumps(answer)[:300]
        raise EndpointError(f"no choices[0].message in the answer {said}: is the server OpenAI-compatible?") from None


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds; 0 where there is none, or a date."""
    try:
        return float(retry_after or 0)
    except ValueError:
        return 0.0
