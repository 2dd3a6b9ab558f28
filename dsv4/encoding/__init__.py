"""The text side of the model: messages to prompt tokens, generated tokens to messages. Needs no torch.

Inference reads it in this order: `render` (messages to text), `tokenizer` (text to ids and back), `stream`
(generated text to reasoning, content and tool calls), `calls` (one block of calls), `arguments` (repair of their
values). `dialect` holds the literals of each release and the differences of the official service.
"""

from dsv4.encoding.choose_dialect import DIALECTS, dialect_named, dialect_of_folder
from dsv4.encoding.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from dsv4.encoding.dialect import V4, V4_0731, V41, Dialect, served
from dsv4.encoding.parse import (
    ParsedCompletion,
    ParsedToolCall,
    parse_completion,
    parse_message_from_completion_text,
)
from dsv4.encoding.render import encode_messages, render_segments
from dsv4.encoding.segments import Segment
from dsv4.encoding.stream import StreamParser
from dsv4.encoding.tokenizer import DecodeStream, Tokenizer
from dsv4.encoding.train_tokenizer import train_bpe

__all__ = [
    "DIALECTS",
    "V4",
    "V4_0731",
    "V41",
    "ContentDelta",
    "DecodeStream",
    "Delta",
    "Dialect",
    "ParsedCompletion",
    "ParsedToolCall",
    "ReasoningDelta",
    "Segment",
    "StreamParser",
    "Tokenizer",
    "ToolCallArguments",
    "ToolCallEnd",
    "ToolCallStart",
    "dialect_named",
    "dialect_of_folder",
    "encode_messages",
    "parse_completion",
    "parse_message_from_completion_text",
    "render_segments",
    "served",
    "train_bpe",
]
