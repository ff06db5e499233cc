"""LLM: a model with its engine, for any number of threads and tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from rllama.chat import Chat, Message, Tool
from rllama.config import EngineConfig, KVDType, ModelConfig, SamplingParams
from rllama.engine.completion import Completion, CompletionStats, Gatherer, Piece
from rllama.engine.engine import Engine
from rllama.engine.outbox import AsyncOutbox, Outbox
from rllama.engine.request import Request, TokenLogprob
from rllama.engine.stream import AsyncStream, OnPrefill, Stream
from rllama.engine.worker import Worker
from rllama.errors import ConfigError, RllamaError
from rllama.loader import Loaded, StrPath, load
from rllama.prompts import ManyPrompts, Prompt, ids_of, is_prompt
from rllama.tokenizers.base import Tokenizer

__all__ = [
    "LLM",
    "AsyncStream",
    "Completion",
    "CompletionStats",
    "Piece",
    "Stream",
    "TokenLogprob",
]


class LLM:
    """A language model, ready to continue text. Use it in a `with`, or call `close`.

    Notes:   path is a file or a directory, None the model that comes with the package. Threads and
             tasks that call at the same time are batched together. The engine's thread starts with
             the first call
    Raises:  ConfigError, FormatError, UnsupportedError, MemoryPlanError, BackendError
    """

    def __init__(
        self,
        path: StrPath | None = None,
        *,
        tokenizer_path: StrPath | None = None,
        param_path: StrPath | None = None,
        f16: bool = False,
        quantize: str | None = None,
        isa: str | None = None,
        n_threads: int | None = None,
        max_seq_len: int | None = None,
        kv_dtype: KVDType = "auto",
        max_batch_tokens: int = 512,
        max_seqs: int = 64,
        n_pages: int | None = None,
        share_prefixes: bool = True,
        chat_template: str | None = None,
        on_load: Callable[[int, int], None] | None = None,
    ) -> None:
        engine = EngineConfig(
            max_batch_tokens=_count("max_batch_tokens", max_batch_tokens) or 0,
            max_seqs=_count("max_seqs", max_seqs) or 0,
            n_pages=_count("n_pages", n_pages) or 0,
            max_seq_len=_count("max_seq_len", max_seq_len) or 0,
            kv_dtype=kv_dtype,
            share_prefixes=share_prefixes,
        )
        with ExitStack() as undo:
            self.loaded: Loaded = load(
                path,
                tokenizer_path=tokenizer_path,
                param_path=param_path,
                f16=f16,
                quantize=quantize,
                isa=isa,
                n_threads=_count("n_threads", n_threads),
                engine=engine,
                on_progress=on_load,
            )
            undo.callback(self.loaded.close)
            loaded = self.loaded
            self._engine = Engine(loaded.model, loaded.tokenizer, loaded.engine, loaded.backend)
            self._worker = Worker(self._engine)
            self._chat_template = chat_template
            self._chat: Chat | None = None
            undo.pop_all()

    @property
    def config(self) -> ModelConfig:
        """The model's numbers."""
        return self.loaded.cfg

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where the checkpoint has none."""
        return self.loaded.tokenizer

    @property
    def max_seq_len(self) -> int:
        """Positions of the context, prompt included."""
        return self._engine.max_seq_len

    @property
    def isa(self) -> str:
        """The instruction set that the kernels use."""
        return self.loaded.backend.isa

    @property
    def n_threads(self) -> int:
        """Threads that the kernels use."""
        return self.loaded.backend.n_threads

    @overload
    def generate(self, prompts: str, params: SamplingParams | None = None) -> Completion: ...
    @overload
    def generate(
        self, prompts: Sequence[int], params: SamplingParams | None = None
    ) -> Completion: ...
    @overload
    def generate(
        self, prompts: ManyPrompts, params: SamplingParams | None = None
    ) -> list[Completion]: ...
    def generate(
        self,
        prompts: Prompt | ManyPrompts,
        params: SamplingParams | None = None,
    ) -> Completion | list[Completion]:
        """Continue a prompt, or a list of prompts at once.

        Notes:   a prompt is a text or a list of token ids; nothing runs unless all are valid
        Raises:  ConfigError, ContextFullError, EngineClosedError, BackendError
        """
        requests = self._requests(prompts, params)
        outboxes: list[Outbox] = []
        try:
            for request in requests:
                outboxes.append(self._worker.submit(request, is_bounded=False))
            done = [Gatherer(box.seq).add_all(box) for box in outboxes]
        finally:
            for box in outboxes:
                box.close()
        return done[0] if is_prompt(prompts) else done

    @overload
    async def agenerate(self, prompts: str, params: SamplingParams | None = None) -> Completion: ...
    @overload
    async def agenerate(
        self, prompts: Sequence[int], params: SamplingParams | None = None
    ) -> Completion: ...
    @overload
    async def agenerate(
        self, prompts: ManyPrompts, params: SamplingParams | None = None
    ) -> list[Completion]: ...
    async def agenerate(
        self,
        prompts: Prompt | ManyPrompts,
        params: SamplingParams | None = None,
    ) -> Completion | list[Completion]:
        """Like `generate`, for an event loop; cancelling the task aborts what it asked for."""
        requests = self._requests(prompts, params)
        outboxes: list[AsyncOutbox] = []
        done = []
        try:
            for request in requests:
                outboxes.append(self._worker.submit_async(request, is_bounded=False))
            for box in outboxes:
                gatherer = Gatherer(box.seq)
                async for output in box:
                    gatherer.add(output)
                done.append(gatherer.completion())
        finally:
            for box in outboxes:
                box.close()
        return done[0] if is_prompt(prompts) else done

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        with_probability: bool = False,
        on_prefill: OnPrefill | None = None,
    ) -> Stream:
        """Continue one prompt piece by piece; closing or dropping the stream aborts it.

        Notes:   with_probability fills `Piece.probability`, at the price of a pass over the
                 vocabulary per token; on_prefill hears how much of the prompt is computed
        Raises:  as generate; what is wrong with the prompt at once, the rest while it runs
        """
        request = self._request(prompt, params, with_probability=with_probability)
        return Stream(self._worker.submit(request), on_prefill)

    def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        with_probability: bool = False,
    ) -> AsyncStream:
        """Like `stream`, for the running event loop."""
        request = self._request(prompt, params, with_probability=with_probability)
        return AsyncStream(self._worker.submit_async(request))

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        stream: Literal[False] = False,
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        stream: Literal[True],
        with_probability: bool = False,
        on_prefill: OnPrefill | None = None,
    ) -> Stream: ...
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        stream: bool = False,
        with_probability: bool = False,
        on_prefill: OnPrefill | None = None,
    ) -> Completion | Stream:
        """The model's answer to a conversation, written down by its chat template.

        Notes:   messages are objects with role and content, as everywhere; names of special
                 tokens in them are ordinary text; stream gives the pieces as they come, and
                 takes the other two options as `stream` has them
        Raises:  TemplateError if there is no template or it refuses; as generate
        """
        ids, params = self._conversation(messages, params, tools, template_kwargs)
        if not stream:
            return self.generate(ids, params)
        return self.stream(ids, params, with_probability=with_probability, on_prefill=on_prefill)

    async def achat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Like `chat`, for an event loop."""
        ids, params = self._conversation(messages, params, tools, template_kwargs)
        return await self.agenerate(ids, params)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The text that the chat template makes of a conversation.

        Raises:  TemplateError, ConfigError
        """
        return self._need_chat().render(
            messages, tools=tools, template_kwargs=template_kwargs,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )  # fmt: skip

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after each token.

        Shapes:  [T, V] f32
        Raises:  ConfigError, ContextFullError, EngineClosedError
        """
        ids = ids_of(token_ids)
        return self._worker.call(lambda engine: engine.logits(ids)).result()

    def tokenize(
        self, text: str, add_bos: bool | None = True, *, parse_special: bool = False
    ) -> list[int]:
        """The token ids of a text; add_bos None does as the model's own setting says.

        Notes:   names of special tokens in the text are text, with parse_special their tokens
        """
        if not isinstance(text, str):
            raise ConfigError(f"a text must be a str, not a {type(text).__name__}")
        return self._need_tokenizer().encode(
            text,
            add_bos=self._adds_bos() if add_bos is None else add_bos,
            parse_special=parse_special,
        )

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self._need_tokenizer().decode(ids_of(token_ids))

    def close(self) -> None:
        """Abort what runs, end the engine's thread, give the memory back. May be called twice."""
        self._worker.close()
        if self._chat is not None:
            self._chat.close()
        self.loaded.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM({self.loaded.checkpoint.path!r})"

    def _requests(
        self, prompts: Prompt | ManyPrompts, params: SamplingParams | None
    ) -> list[Request]:
        if is_prompt(prompts):
            return [self._request(prompts, params)]
        if not isinstance(prompts, Sequence):
            raise ConfigError(f"prompts must be a text, token ids, or a list of them, not a "
                              f"{type(prompts).__name__}")  # fmt: skip
        requests = []
        for i, prompt in enumerate(prompts):
            try:
                requests.append(self._request(prompt, params))
            except RllamaError as error:
                raise type(error)(f"prompt {i}: {error}") from error
        return requests

    def _request(
        self, prompt: object, params: SamplingParams | None, *, with_probability: bool = False
    ) -> Request:
        if params is not None and not isinstance(params, SamplingParams):
            raise ConfigError(f"params must be SamplingParams, not {type(params).__name__}")
        ids = self.tokenize(prompt, None) if isinstance(prompt, str) else ids_of(prompt)
        sampling = (params or SamplingParams()).resolved(self.config.generation)
        request = Request(tuple(ids), sampling, want_probability=with_probability)
        self._engine.prepare(request)  # what is wrong with it is said here, before anything runs
        return request

    def _conversation(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None,
        tools: Sequence[Tool] | None,
        template_kwargs: Mapping[str, Any] | None,
    ) -> tuple[list[int], SamplingParams]:
        chat = self._need_chat()
        ids = chat.encode(messages, tools=tools, template_kwargs=template_kwargs)
        return ids, chat.with_stops(params or SamplingParams())

    def _need_chat(self) -> Chat:
        if self._chat is None:
            checkpoint = self.loaded.checkpoint
            self._chat = Chat(
                checkpoint.chat,
                self._need_tokenizer(),
                chosen=self._chat_template,
                where=checkpoint.where,
            )
        return self._chat

    def _adds_bos(self) -> bool:
        own = self.config.add_bos
        return self._need_tokenizer().add_bos if own is None else own

    def _need_tokenizer(self) -> Tokenizer:
        tokenizer = self.loaded.tokenizer
        if tokenizer is None:
            error = ConfigError(
                f"{self.loaded.checkpoint.path}: no tokenizer, so this model serves token ids "
                f"alone; {self.loaded.no_tokenizer}; name one with tokenizer_path "
                "(--tokenizer-path)"
            )
            error.exit_code = 1
            raise error
        return tokenizer


def _count(name: str, value: int | None) -> int | None:
    if value is None or (type(value) is int and 1 <= value < 2**31):
        return value
    raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
