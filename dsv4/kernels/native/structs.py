"""The structs that native functions receive, declared once. `header` writes them as the C++ that the kernels include.

A field has the type of C++ by name. In Python a pointer is the address of a tensor (`native.pointer`); whoever fills a
struct keeps its tensors alive until the call returns.
"""

import ctypes
from collections.abc import Iterable

INT64, INT, FLOAT = ctypes.c_int64, ctypes.c_int, ctypes.c_float
_Field = tuple[str, type]


def _pointer(to: str) -> type[ctypes.c_void_p]:
    """The type of an address; its name is the type of the value at that address."""
    return type(to, (ctypes.c_void_p,), {})


ANY, ANY_OUT, ROWS_OF_ANY = _pointer("const void"), _pointer("void"), _pointer("const void* const")
FLOATS, FLOATS_OUT = _pointer("const float"), _pointer("float")
INTEGERS, INTEGERS_OUT = _pointer("const int64_t"), _pointer("int64_t")
BYTES, BYTES_OUT = _pointer("const uint8_t"), _pointer("uint8_t")


def _all(kind: type, names: str) -> Iterable[_Field]:
    return ((name, kind) for name in names.split())


class Rows(ctypes.Structure):
    """Rows in memory: row r starts at `first` + r * `stride` bytes. rope: rotary dims at the end of a packed entry.
    kind: RowKind of rows/rows.h."""

    _fields_ = (("first", BYTES), *_all(INT64, "stride dim rope"), ("kind", INT))


class AttentionCall(ctypes.Structure):
    """prefix_T is null without a prefix, chosen_TK without chosen entries; -1 in chosen_TK means no row."""

    _fields_ = (
        ("q_THC", FLOATS),
        ("out_THC", FLOATS_OUT),
        *_all(Rows, "window entries"),
        *_all(INTEGERS, "window_T2 runs prefix_T first_BP sequence_T chosen_TK"),
        ("sink_H", FLOATS),
        *_all(INT64, "runs_count pages per_page chosen heads dim"),
        ("scale", FLOAT),
        ("threads", INT),
    )


class AttentionBackward(ctypes.Structure):
    """forward.out_THC: the result of the forward pass."""

    _fields_ = (
        ("forward", AttentionCall),
        ("grad_THC", FLOATS),
        *_all(FLOATS_OUT, "d_q_THC d_window_WC d_entries_MC d_sink_H"),
        *_all(INT64, "queries entry_rows"),
    )


class IndexCall(ctypes.Structure):
    """places: columns of out_TK."""

    _fields_ = (
        *_all(FLOATS, "q_TJI weight_TJ"),
        ("keys", Rows),
        *_all(INTEGERS, "first_BP sequence_T visible_T runs"),
        ("out_TK", INTEGERS_OUT),
        *_all(INT64, "runs_count pages per_page heads dim k places"),
        ("threads", INT),
    )


class IndexerLossCall(ctypes.Structure):
    """attention: what the layer's attention read, without a result. Without chosen_TK the first prefix_T entries are
    considered, else those of chosen_TK: entry numbers, which first_BP turns into rows. index: the indexer's keys."""

    _fields_ = (
        ("attention", AttentionCall),
        *_all(FLOATS, "index_TJI weight_TJ"),
        ("index", Rows),
        *_all(FLOATS_OUT, "d_index_TJI d_weight_TJ d_index_MI loss_T"),
        *_all(INT64, "heads dim"),
    )


class PoolCall(ctypes.Structure):
    """previous_Nm: null without overlap; -1 for no row."""

    _fields_ = (
        *_all(FLOATS, "kv score"),
        *_all(INTEGERS, "own_Nm previous_Nm"),
        ("out_NC", FLOATS_OUT),
        *_all(INT64, "kv_stride score_stride blocks rows dim"),
        ("threads", INT),
    )


class PoolBackward(ctypes.Structure):
    _fields_ = (("forward", PoolCall), ("grad_NC", FLOATS), *_all(FLOATS_OUT, "d_kv d_score"), ("pitch", INT64))


class EnterBackward(ctypes.Structure):
    """grad_post_TS and grad_comb_TSS are null for the head, which has neither gate."""

    _fields_ = (
        *_all(FLOATS, "x_TSD fn_XZ scale base_X grad_TD grad_post_TS grad_comb_TSS"),
        *_all(FLOATS_OUT, "d_x_TSD d_fn_XZ d_scale d_base_X"),
        *_all(INT64, "T S D"),
        *_all(FLOAT, "eps norm_eps"),
        *_all(INT, "iterations threads"),
    )


class MuonMatrix(ctypes.Structure):
    _fields_ = (*_all(FLOATS_OUT, "weight momentum"), ("gradient", FLOATS), *_all(INT64, "rows columns"))


class MuonStep(ctypes.Structure):
    """abc: the coefficients of each Newton-Schulz step. kept: what decay leaves of a weight. rate: learning rate times
    the size of an update. tiny: the least norm of a matrix. int16: products in 16-bit integers, not in float32."""

    _fields_ = (
        ("matrices", ctypes.POINTER(MuonMatrix)),
        ("abc", FLOATS),
        *_all(INT64, "count steps"),
        *_all(FLOAT, "momentum kept rate tiny"),
        *_all(INT, "nesterov int16 threads"),
    )


class StepLinear(ctypes.Structure):
    """A linear layer [outputs, inputs] as stored; with a scale its input goes through FP8, except that of o_a."""

    _fields_ = (*_all(ANY, "weight scale"), *_all(INT64, "outputs inputs kind"))


class StepConnection(ctypes.Structure):
    """A hyper-connection and the norm of the sub-layer behind it."""

    _fields_ = tuple(_all(FLOATS, "fn scale base norm"))


class StepCompressor(ctypes.Structure):
    _fields_ = (*_all(StepLinear, "kv gate"), *_all(FLOATS, "bias norm"))


class StepExperts(ctypes.Structure):
    """Addresses of each expert's matrices and scales. near: null, or the memory node that holds each of them."""

    _fields_ = (
        *_all(ROWS_OF_ANY, "w1 w2 w3 s1 s2 s3"),
        *_all(INT64, "inner kind shared_kind"),
        ("near", INTEGERS),
    )


class StepLayer(ctypes.Structure):
    """ratio: tokens per compressed entry, 0 = sliding window only. overlap: an entry also reads the block before its
    own. router_table: [V, experts per token]; it chooses where router_bias is null. used_E: null, or counts the tokens
    that each expert gets."""

    _fields_ = (
        *_all(INT64, "ratio overlap"),
        *_all(StepConnection, "attention mixture"),
        *_all(StepLinear, "q_a q_b kv o_a o_b"),
        *_all(FLOATS, "q_norm kv_norm sink"),
        *_all(StepCompressor, "main index"),
        *_all(StepLinear, "index_q index_weight router"),
        ("router_bias", FLOATS),
        ("router_table", INTEGERS),
        ("used_E", INTEGERS_OUT),
        ("experts", StepExperts),
    )


class StepStoreLayer(ctypes.Structure):
    """One layer's cache: rings of all slots one after another, entries in pages. Null: it has none."""

    _fields_ = (*_all(BYTES_OUT, "window entries index"), *_all(FLOATS_OUT, "main_tail index_tail"))


class StepDraft(ctypes.Structure):
    """The draft head beside a backbone: which layers it reads, the way in, and its stages with their cache."""

    _fields_ = (
        *_all(INT64, "stages taps"),
        ("tap_layers", INTEGERS),
        ("main_proj", StepLinear),
        ("main_norm", FLOATS),
        ("stage", ctypes.POINTER(StepLayer)),
        ("store", ctypes.POINTER(StepStoreLayer)),
    )


class StepModel(ctypes.Structure):
    """`embedded_*` and `streams_*` are set for a prediction block only: it starts from streams and the next token.
    draft: null without a draft head whose context rows are to be written."""

    _fields_ = (
        *_all(INT64, "bf16 simulate layers streams dim vocabulary heads head_dim pairs groups window"),
        *_all(INT64, "index_heads index_dim index_topk experts per_token iterations"),
        *_all(FLOAT, "norm_eps connection_eps limit expert_scale attention_scale index_scale"),
        *_all(FLOATS, "plain_P long_P"),
        ("embedding", ANY),
        ("head", StepConnection),
        *_all(StepLinear, "output embedded_proj streams_proj"),
        *_all(FLOATS, "embedded_norm streams_norm"),
        ("layer", ctypes.POINTER(StepLayer)),
        ("draft", ctypes.POINTER(StepDraft)),
    )


class StepStore(ctypes.Structure):
    """row_kind: 0 float32, 1 bfloat16, 2 packed. *_bytes: of a stored row. A ring row of position p is p modulo the
    ring's length: window_rows, or a compressor's longest tail and taken_back further rows; entry e of a sequence is
    row e % n of its page e // n, n = page_tokens // ratio."""

    _fields_ = (
        *_all(INT64, "row_kind entry_bytes index_bytes page_tokens slots pages window_rows taken_back"),
        ("layer", ctypes.POINTER(StepStoreLayer)),
    )


class StepPlaces(ctypes.Structure):
    """Where the threads of a step run: ThreadPlaces of native/team.h."""

    _fields_ = (*_all(INTEGERS, "cpus first node"), *_all(INT64, "threads nodes"))


class StepBatch(ctypes.Structure):
    """Per sequence: `count_B` new tokens after `cached_B` ones, its slot, its pages, and from which position its ring
    rows are valid and its entries are written. block: not 0 for draft blocks, which read the rings before them and all
    of their own rows, and keep none. given_TSD: streams a prediction block starts from, else null. cos, sin: of the
    angles of `dsv4_step_plan`. rows_ND: null, or gets the collapsed wanted rows before the norm. places: null, or where
    the threads run."""

    _fields_ = (
        *_all(INT64, "tokens sequences wanted block"),
        *_all(INTEGERS, "token_T count_B cached_B slot_B window_from_B entries_from_B page_count_B pages wanted_N"),
        *_all(FLOATS, "cos sin"),
        ("given_TSD", ANY),
        *_all(ANY_OUT, "x_TSD rows_ND"),
        ("logits_NV", FLOATS_OUT),
        ("threads", INT64),
        ("places", ctypes.POINTER(StepPlaces)),
    )


STRUCTS: tuple[type[ctypes.Structure], ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, type) and issubclass(value, ctypes.Structure)
)
_NAMES = {INT64: "int64_t", INT: "int", FLOAT: "float"}
_NAMES |= {ctypes.POINTER(struct): f"const {struct.__name__}*" for struct in STRUCTS}


def _name_of(kind: type) -> str:
    if issubclass(kind, ctypes.c_void_p):
        return f"{kind.__name__}*"
    return _NAMES.get(kind, kind.__name__)


def header(structs: Iterable[type[ctypes.Structure]] = STRUCTS) -> str:
    """The C++ declarations of these structs in their order, in the namespace dsv4."""
    lines = ["// Written by dsv4/kernels/native/structs.py at build time.", "#pragma once", "#include <cstdint>"]
    lines.append("namespace dsv4 {")
    for struct in structs:
        fields = (f"    {_name_of(kind)} {name};" for name, kind, *_ in struct._fields_)
        lines += [f"struct {struct.__name__} {{", *fields, "};"]
    return "\n".join([*lines, "}  // namespace dsv4", ""])
