"""Ratings of open answers by a language model behind an OpenAI-compatible endpoint.

In: question, truth, answer. Out: 0 to 3, or None where the model gave no rating. Ratings are kept next to the answers, so that
none is asked twice.
"""

from __future__ import annotations

from pathlib import Path

import openai

from videostr.chat import LIKELY, escape
from videostr.config.schema import Judge
from videostr.errors import ConfigError
from videostr.evaluate.answers import Answer, Answers, key_of

MAX_TOKENS = 512
RETRIES = 2


class EndpointJudge:
    """The judge of a config's `judge` section; greedy."""

    def __init__(self, config: Judge, system: str, template: str, ratings: Answers) -> None:
        """Reads the key; connects at the first rating.

        Args:
            config: endpoint, model, key file.
            system: the benchmark's instruction to its judge.
            template: its question, with {question}, {truth} and {answer}.
            ratings: where ratings are kept.

        Raises:
            ConfigError: the key file cannot be read.
        """
        self.config = config
        self.system = system
        self.template = template
        self.ratings = ratings
        self.unreadable = 0
        """Ratings that were not a number of 0 to 3, since it was last set to 0."""
        self._client = openai.OpenAI(
            base_url=config.endpoint, api_key=_key(config), timeout=config.timeout_s, max_retries=RETRIES
        )

    @property
    def name(self) -> str:
        """For the output."""
        return f"{self.config.model} at {self.config.endpoint}"

    def __call__(self, question: str, truth: str, answer: str) -> int | None:
        """Return a rating.

        Raises:
            ConfigError: the endpoint does not answer, three times.
        """
        # The server's tokenizer is not known: an answer must not be able to write the rating in the judge's place
        parts = {"question": question, "truth": truth, "answer": answer}
        prompt = self.template.format(**{name: escape(text, LIKELY) for name, text in parts.items()})
        key = key_of(
            judge=self.config.model, endpoint=self.config.endpoint, system=self.system, prompt=prompt
        )
        kept = self.ratings.get(key)
        if kept is None:
            kept = self._ask(prompt)
            self.ratings.put({key: kept})
        text = kept.text.strip()
        if text in {"0", "1", "2", "3"}:
            return int(text)
        self.unreadable += 1
        return None

    def _ask(self, prompt: str) -> Answer:
        try:
            response = self._client.chat.completions.create(
                model=self.config.model,
                messages=[{"role": "system", "content": self.system}, {"role": "user", "content": prompt}],
                temperature=0.0,
                max_tokens=MAX_TOKENS,
            )
        except openai.OpenAIError as error:
            raise ConfigError(
                f"judge.endpoint = {self.config.endpoint}: no rating by {self.config.model} in {RETRIES + 1} tries ({error})",
                remedy='start the server, correct judge.model, or set judge.endpoint="" for the rating by shared words',
            ) from error
        choice, usage = response.choices[0], response.usage
        return Answer(
            text=choice.message.content or "",
            finish_reason=str(choice.finish_reason).upper(),
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )


def _key(config: Judge) -> str:
    if not config.api_key_file:
        return "none"
    try:
        return Path(config.api_key_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"judge.api_key_file = {config.api_key_file}: cannot be read ({error})",
            remedy="name a text file that this user may read",
        ) from None
