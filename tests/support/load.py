"""
Chat completions through the public port at a bounded rate, and what became of each.
"""

import itertools
import json
import logging
import ssl
import threading
import time
import uuid
from dataclasses import dataclass, field

import httpx

logging.getLogger("httpx").setLevel(logging.WARNING)  # or each request is a line
WORKERS = 12  # requests under way at once, at most
PATIENCE = 120  # seconds for one answer
CACHED = "what the cache knows"


@dataclass
class Outcome:
    """
    One request: its number, when it was sent (as `time.monotonic` tells it), how long it took in
    seconds, how it was sent, and what was wrong with its answer ("" for nothing).
    """

    number: int
    sent: float
    seconds: float
    streamed: bool
    kept: bool  # on a connection that other requests had before it
    flaw: str
    request_id: str = ""


@dataclass
class Load:
    """
    A load on the platform for as long as its context lasts.

    ``settings`` is what `llm.client` tells: ``base_url``, ``ca_file``, ``api_key``; ``rate`` is in
    requests per second. Every third request is streamed, every fourth comes on a connection of its
    own, and ``known`` is the share of those that ask what was asked before.
    """

    settings: dict
    rate: float = 30
    model: str = "tiny"
    max_tokens: int = 8
    known: float = 0.2
    outcomes: list = field(default_factory=list)

    @property
    def failures(self):
        """The outcomes of the requests that failed."""
        return [outcome for outcome in self.outcomes if outcome.flaw]

    @property
    def latencies(self):
        """The seconds that each request took that did not fail."""
        return [outcome.seconds for outcome in self.outcomes if not outcome.flaw]

    def since(self, moment):
        """Return the outcomes of the requests that were sent after ``moment``."""
        return [outcome for outcome in self.outcomes if outcome.sent >= moment]

    def flow(self, number=1, seconds=300):
        """Return once ``number`` requests that are sent from now on have come to an end."""
        start = time.monotonic()
        while len(self.since(start)) < number:
            assert time.monotonic() - start < seconds, f"no {number} requests in {seconds} s"
            time.sleep(0.1)

    def __enter__(self):
        self.context = ssl.create_default_context(cafile=self.settings["ca_file"])
        self.numbers, self.lock, self.done = itertools.count(), threading.Lock(), threading.Event()
        self.due = time.monotonic()
        self.threads = [threading.Thread(target=self._work) for _ in range(WORKERS)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *given):
        self.done.set()
        for thread in self.threads:
            thread.join()

    def _client(self):
        return httpx.Client(
            base_url=self.settings["base_url"],
            headers={"Authorization": f"Bearer {self.settings['api_key']}"},
            verify=self.context,
            timeout=PATIENCE,
            trust_env=False,
        )

    def _turn(self):
        """Return the number of the next request when its time has come."""
        with self.lock:
            # What could not be sent in time is not made good by a burst.
            self.due = max(self.due + 1 / self.rate, time.monotonic() - 1)
            number, due = next(self.numbers), self.due
        self.done.wait(max(0, due - time.monotonic()))
        return number

    def _work(self):
        kept = self._client()
        used = False
        while number := not self.done.is_set() and self._turn() + 1:
            if self.done.is_set():
                break
            if number % 4:
                self._ask(kept, number, used)
                used = True
            else:
                with self._client() as fresh:
                    self._ask(fresh, number, False)
        kept.close()

    def _ask(self, client, number, kept):
        asked_before = int(number * self.known) > int((number - 1) * self.known)
        text = CACHED if asked_before else uuid.uuid4().hex
        streamed = number % 3 == 0
        body = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "messages": [{"role": "user", "content": text}],
            "stream": streamed,
        }
        sent, flaw, request_id = time.monotonic(), "", ""
        try:
            with client.stream("POST", "chat/completions", json=body) as answer:
                request_id = answer.headers.get("x-request-id", "")
                text = answer.read().decode()
            flaw = flaw_of(answer.status_code, text, streamed)
        except httpx.HTTPError as err:
            flaw = repr(err)
        seconds = time.monotonic() - sent
        self.outcomes.append(Outcome(number, sent, seconds, streamed, kept, flaw, request_id))


def flaw_of(status, text, streamed):
    """Return what is wrong with an answer, or an empty string."""
    if status != 200:
        return f"{status}: {text[:300]}"
    if not streamed:
        return "" if '"choices"' in text else f"no answer: {text[:300]}"
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        return f"cut off: {text[-300:]}"
    wrong = [event for event in events[:-1] if "error" in json.loads(event)]
    return f"broken off: {wrong[0][:300]}" if wrong else ""
