"""`LocalModel`: a loaded model that chats, completes, and gives logits.

T tokens, V vocabulary.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dsv4.answer import AnswerInProgress, StopStrings
from dsv4.api.answers import Answer, AnswerStream
from dsv4.api.token_ids import TokenIds, token_list
from dsv4.config import ModelConfig
from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import Grammars
from dsv4.engine import Engine, EngineService
from dsv4.engine.shared import SharedEngine
from dsv4.engine.validation import check_tokens
from dsv4.generation import FinishReason, RequestOptions, SamplingDefaults, SamplingParams, TokenEvent
from dsv4.kernels import native
from dsv4.kernels.moe.residency import ExpertBudget
from dsv4.model.accounting import parameters
from dsv4.model.device import describe_device
from dsv4.model.layers import MODES
from dsv4.model.transformer import Transformer
from dsv4.planning.plan import EnginePlan

Messages = Sequence[Mapping[str, Any]]


class LocalModel:
    """A loaded model. Every method may be called from any thread. Answers that run at the same time are batched, with
    the same tokens as alone. `service` is for servers. A model belongs to its process and cannot be pickled."""

    def __init__(
        self,
        name: str,
        model: Transformer,
        engine: Engine,
        tokenizer: Tokenizer | None,
        defaults: SamplingDefaults,
        plan: EnginePlan | None = None,
        expert_budget: ExpertBudget | None = None,
    ) -> None:
        self.expert_budget = expert_budget  # what limits the memory of the routed experts; None: nothing
        self.name, self.model, self.engine, self.defaults, self.plan = name, model, engine, defaults, plan
        self._tokenizer = tokenizer
        self._shared = SharedEngine(engine)
        self._serving = False

    def __reduce__(self) -> str:
        raise TypeError("a loaded model cannot be pickled or copied: call dsv4.load in every process that needs one")

    def __repr__(self) -> str:
        store = self.engine.cache.store
        count = parameters(self.config).total
        return (
            f"LocalModel({self.name!r}, {count / 1e6:,.1f}M parameters, mode {self.mode}, "
            f"context {self.engine.context_length:,} tokens, cache up to {store.bytes / 2**20:,.0f} MiB)"
        )

    @property
    def mode(self) -> str:
        """The name of the numerics: fp32, bf16 or release."""
        return next((name for name, numerics in MODES.items() if numerics == self.model.numerics), "of its own")

    def memory_text(self) -> str:
        """One line with the size of the cache, the kernels and the step."""
        store, engine = self.engine.cache.store, self.engine
        tokens = store.pages.count * store.spec.page_tokens
        kept = engine.cache.prefixes.policy.snapshots
        device = self.model.device
        kernels = native.describe() if device.type == "cpu" else f"plain torch on {describe_device(device)}"
        return (
            f"cache: up to {store.bytes / 2**20:,.0f} MiB for {tokens:,} tokens ({store.spec.dtype} rows) in "
            f"{engine.sequences} running sequences and {kept} kept prefixes; kernels: {kernels}; "
            f"steps: {engine.runner.describe()}"
        )

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the folder. Raises FileNotFoundError where it has none."""
        if self._tokenizer is None:
            raise FileNotFoundError(f"model {self.name} has no tokenizer.json: only token ids work")
        return self._tokenizer

    @cached_property
    def service(self) -> EngineService:
        """The engine in its own thread; from now on only the service may use it."""
        self._serving = True
        return EngineService(self.engine)

    @cached_property
    def grammars(self) -> Grammars:
        """Makes grammars for this model's vocabulary, for the option `constraint`."""
        return Grammars(self.tokenizer)

    def chat(self, messages: Messages, **options: Any) -> Answer:
        """Answer a conversation (OpenAI message dicts). `options` as in `stream`.

        >>> dsv4.load().chat([{"role": "user", "content": "What is 17 + 25?"}]).content
        'The answer is 42.'
        """
        stream = self.stream(messages, **options)
        for _ in stream:
            pass
        return stream.answer()

    def stream(
        self,
        messages: Messages,
        *,
        thinking: bool = True,
        effort: str | None = None,
        thinking_budget: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        task: str | None = None,
        **options: Any,
    ) -> AnswerStream:
        """Like `chat`, but an iterator of typed deltas (dsv4.encoding: ReasoningDelta, ContentDelta, ...).

        effort: none (no thinking), low, high or max, as far as the model knows it. thinking_budget: the most tokens of
        reasoning. tools, tool_choice, parallel_tool_calls, response_format, task: as in a chat completion of
        docs/api.md, with the same prompt and the same grammar.
        options: max_tokens (1024), temperature and top_p (the folder's), seed, stop (one or more strings, looked
        for in the content), logprobs, top_logprobs, and the other fields of dsv4.generation.SamplingParams.
        Leaving a `with` block or calling `close()` stops the work. Raises ValueError naming a wrong field.
        """
        from dsv4.api.chat_request import prepare

        stop = _strings(options.pop("stop", None))
        params = self._params(options)
        ready = prepare(
            self,
            messages,
            guarded=params.constraint is None,
            thinking=_thinking(thinking),
            reasoning_effort=effort,
            thinking_budget=thinking_budget,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            task=task,
        )
        if ready.constraint is not None:
            if params.constraint is not None:
                raise ValueError("constraint: not together with response_format, tool_choice or strict tools")
            # a grammar ends with this token
            stops = tuple(dict.fromkeys((self.tokenizer.eos_id, *params.stop_ids)))
            params = replace(params, constraint=ready.constraint, stop_ids=stops)
        request = ready.request
        progress = AnswerInProgress(
            self.tokenizer,
            thinking=request.opens_thinking,
            stops=stop,
            tools=request.tools,
            functions=request.callable,
            single=not request.parallel,
            begun=ready.begun,
        )
        events = self.events(ready.prompt, params, RequestOptions(cache_points=ready.points))
        return AnswerStream(events, progress, len(ready.prompt))

    def generate(self, prompt: str | TokenIds, **options: Any) -> str:
        """Continue a text or token ids without any chat format; control tokens in the text count as such.

        Options as those of sampling in `stream`. Raises RuntimeError when the engine fails.
        """
        return "".join(self.generate_pieces(prompt, **options))

    def generate_pieces(self, prompt: str | TokenIds, **options: Any) -> Iterator[str]:
        """Like `generate`, piece by piece."""
        stop, params = _strings(options.pop("stop", None)), self._params(options)
        ids = (
            self.tokenizer.encode_text(prompt, trusted=True)
            if isinstance(prompt, str)
            else token_list(prompt, "prompt")
        )
        if isinstance(prompt, str) and ids[:1] != [self.tokenizer.bos_id]:
            ids = [self.tokenizer.bos_id, *ids]
        matcher, decoder = StopStrings(stop), self.tokenizer.decode_stream()
        for event in self.events(ids, params):
            if event.token is not None and event.finish is not FinishReason.STOP:
                yield matcher.feed(decoder.step(event.token))
            if event.finish is FinishReason.ERROR:
                raise RuntimeError(event.error or "the engine failed")
            if matcher.found:
                return
        yield matcher.feed(decoder.finish()) + matcher.finish()

    def _tokens(self, token_ids: TokenIds) -> Tensor:
        ids = token_list(token_ids)
        check_tokens(ids, self.config.vocab_size)
        return torch.tensor(ids, device=self.model.device)

    def _params(self, options: dict[str, Any]) -> SamplingParams:
        """SamplingParams from keyword options; None means the default. Raises ValueError naming an unknown one."""
        known = SamplingParams.__dataclass_fields__
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}; known: stop, {', '.join(known)}")
        values: dict[str, Any] = {"temperature": self.defaults.temperature, "top_p": self.defaults.top_p}
        values.update({name: value for name, value in options.items() if value is not None})
        if isinstance(bias := values.get("logit_bias"), Mapping):
            values["logit_bias"] = tuple((token, float(value)) for token, value in bias.items())
        return SamplingParams(**values)

    def encode_chat(self, messages: Messages, thinking: bool = True, **fields: Any) -> list[int]:
        """The prompt of a conversation, untrusted text kept from becoming control tokens. fields: those of `stream`
        that the prompt shows (effort, tools, response_format, ...), named as in a chat completion's body."""
        from dsv4.api.chat_request import prepare

        return prepare(self, messages, guarded=False, thinking=_thinking(thinking), **fields).prompt

    def events(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> Generator[TokenEvent, None, None]:
        """The engine's events for one prompt of token ids."""
        if self._serving:
            raise RuntimeError("this model is being served; send requests to the service")
        return self._shared.generate(prompt, params, options)

    def logits(self, token_ids: TokenIds) -> Tensor:
        """Next-token logits of every position, [T, V] fp32 on the model's device, in one forward pass without a cache.

        token_ids: a list, a tensor or an array of T ids. Raises ValueError for anything else.
        """
        tokens_T = self._tokens(token_ids)
        with self._shared.alone(), torch.inference_mode():
            return self.model.logits(self.model.hidden(tokens_T, self.model.pack([len(tokens_T)])))

    def mtp_logits(self, token_ids: TokenIds) -> Tensor:
        """Logits of the token after next, from positions 0..T-2 and the token that follows each: [T - 1, V] fp32."""
        if not self.config.num_nextn_predict_layers:
            raise ValueError(f"model {self.name} has no prediction block (num_nextn_predict_layers is 0)")
        tokens_T = self._tokens(token_ids)
        if len(tokens_T) < 2:
            raise ValueError(f"mtp_logits needs at least 2 tokens, got {len(tokens_T)}")
        with self._shared.alone(), torch.inference_mode():
            x_TSD = self.model.hidden(tokens_T, self.model.pack([len(tokens_T)]))
            sequences = self.model.pack([len(tokens_T) - 1])
            return self.model.mtp_logits(self.model.mtp_hidden(x_TSD[:-1], tokens_T[1:], sequences))


def _thinking(value: bool) -> dict[str, str]:
    if not isinstance(value, bool):
        raise ValueError(f"thinking: expected True or False, got {value!r}")
    return {"type": "enabled" if value else "disabled"}


def _strings(value: Any) -> tuple[str, ...]:
    """One stop string or several. Raises ValueError for anything else."""
    texts = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"stop: expected a string or a list of strings, none of them empty, got {value!r}")
    return tuple(texts)
