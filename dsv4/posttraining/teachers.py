"""Teachers on the disk: one at a time is loaded to compute its last hidden states on the student's samples, which are
kept in files; its logits are made again from these and its head when the student learns (report 5.1.2).

N learned tokens, D hidden size, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from dsv4.checkpoint import load_into, state_for
from dsv4.config import Mode
from dsv4.encoding import Tokenizer
from dsv4.files import write_whole
from dsv4.model.layers import MODES
from dsv4.model.transformer import Transformer
from dsv4.posttraining.base_model import BaseModel
from dsv4.posttraining.policy import learned_rows
from dsv4.training.batch import Batch

_SUFFIX = ".rows"


def open_teachers(paths: Sequence[Path], vocabulary: int, student: Tokenizer | None) -> list[BaseModel]:
    """The folders, of which no weight is read. Arguments and errors as of Teachers."""
    opened = [BaseModel.open(path) for path in paths]
    for each in opened:
        _check_vocabulary(each, vocabulary, student)
    return opened


@dataclass(frozen=True, slots=True)
class CachedRows:
    """The head's input at the learned tokens of one batch, as a part of a teacher's file: rows first..first+count-1 of
    `width` numbers."""

    file: Path
    first: int
    count: int
    width: int
    dtype: torch.dtype

    def read(self) -> Tensor:
        """[count, width], mapped: read from the disk where it is used."""
        if not self.count:
            return torch.empty(0, self.width, dtype=self.dtype)
        size = (self.first + self.count) * self.width
        whole = torch.from_file(str(self.file), shared=False, size=size, dtype=self.dtype)
        return whole.view(-1, self.width)[self.first :]


class Teachers:
    """Several models that a student learns from, by number.

    paths: of each a checkpoint folder, or the folder of a finished run. student: tokenizer of the student, to which
    those of the teachers must be equal; None where ids have no text. vocabulary: its number of ids. folder: of the
    files, which are removed by `clear` and at the start. numerics: what teachers compute in. width: the numbers of the
    files. resident: how many teachers may be in memory; from two on the next one is loaded while one computes.
    device: where they compute, and where heads are given.

    Raises ValueError or FileNotFoundError naming a folder that is no model, or both vocabularies where they differ.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        vocabulary: int,
        folder: Path,
        *,
        student: Tokenizer | None = None,
        numerics: Mode = "fp32",
        width: torch.dtype = torch.float32,
        resident: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if resident < 1:
            raise ValueError(f"resident must be at least 1, got {resident}")
        self._opened = open_teachers(paths, vocabulary, student)
        self._folder, self._numerics, self._width, self._resident = folder, numerics, width, resident
        self._device = torch.device(device)
        self._models: OrderedDict[int, Transformer] = OrderedDict()
        self._head: tuple[int, Tensor] | None = None
        self.loads, self.head_loads = 0, 0  # since the start
        self.clear()

    def cache(self, batches: Sequence[Batch], teachers: Sequence[int]) -> list[CachedRows]:
        """Compute the rows of each batch with its teacher, given by number, and keep them in one file a teacher.
        Batches of a teacher should follow one another: each is loaded when its turn comes. Raises OSError naming the
        file where the disk is full; nothing of that teacher is left behind then."""
        self._folder.mkdir(parents=True, exist_ok=True)
        found: dict[int, CachedRows] = {}
        order = list(dict.fromkeys(teachers))
        with ThreadPoolExecutor(1, thread_name_prefix="dsv4-teacher") as beside:
            coming: Future[Transformer] | None = None
            for i, teacher in enumerate(order):
                model = self._model(teacher) if coming is None else self._keep(teacher, coming.result())
                following = order[i + 1] if i + 1 < len(order) else None
                coming = None
                if following is not None and self._resident > 1 and following not in self._models:
                    self._make_room()
                    coming = beside.submit(self._load, following)
                own = [j for j, number in enumerate(teachers) if number == teacher]
                found |= self._write(teacher, model, own, batches)
        return [found[j] for j in range(len(batches))]

    def head(self, teacher: int) -> Tensor:
        """The head's weight [V, D] of a teacher. One is kept: batches ordered by teacher load each once."""
        if self._head is None or self._head[0] != teacher:
            self._head = None
            weight_VD = self._opened[teacher].reader.tensor("head.weight").float()
            self._head = teacher, weight_VD.to(self._device)
            self.head_loads += 1
        return self._head[1]

    def weights(self, teacher: int) -> Mapping[str, Tensor]:
        """All weights by name, for an engine that samples from the teacher."""
        opened = self._opened[teacher]
        return dict(state_for(opened.config, opened.reader, "fp32"))

    def clear(self) -> None:
        """Remove the files: what they held is learned."""
        for file in self._folder.glob(f"*{_SUFFIX}*"):
            file.unlink(missing_ok=True)

    def _write(
        self, teacher: int, model: Transformer, own: Sequence[int], batches: Sequence[Batch]
    ) -> dict[int, CachedRows]:
        file = self._folder / f"teacher-{teacher}{_SUFFIX}"
        found, first = dict[int, CachedRows](), 0

        def write(out: BinaryIO) -> None:
            nonlocal first
            for j in own:
                rows_ND = _rows(model, batches[j]).to("cpu", self._width).contiguous()
                out.write(rows_ND.view(torch.uint8).numpy().tobytes())
                found[j] = CachedRows(file, first, len(rows_ND), rows_ND.shape[1], self._width)
                first += len(rows_ND)

        write_whole(file, write)
        return found

    def _model(self, teacher: int) -> Transformer:
        if teacher not in self._models:
            self._make_room()
            return self._keep(teacher, self._load(teacher))
        self._models.move_to_end(teacher)
        return self._models[teacher]

    def _keep(self, teacher: int, model: Transformer) -> Transformer:
        self._models[teacher] = model
        return model

    def _make_room(self) -> None:
        while len(self._models) >= self._resident:
            self._models.popitem(last=False)

    def _load(self, teacher: int) -> Transformer:
        """Without the prediction block, which distillation does not ask."""
        opened = self._opened[teacher]
        config = opened.config.without_prediction()
        with torch.device("meta"):
            model = Transformer(config, MODES[self._numerics])
        model.use_yarn(True)  # its tables are made anew, not on the meta device
        load_into(model, config, opened.reader, self._numerics, mtp=False)
        self.loads += 1
        return model.requires_grad_(False).eval().to(self._device)


def _rows(model: Transformer, batch: Batch) -> Tensor:
    with torch.no_grad():
        return learned_rows(model, batch.to(model.device))[1]


def _check_vocabulary(opened: BaseModel, vocabulary: int, student: Tokenizer | None) -> None:
    path, own = opened.folder, opened.config.vocab_size
    if own != vocabulary:
        raise ValueError(
            f"teacher {path} has {own:,} ids, the student {vocabulary:,}: their distributions cannot be compared"
        )
    if student is None or not (path / "tokenizer.json").exists():
        return
    if Tokenizer.load(path).definition_json() != student.definition_json():
        raise ValueError(f"teacher {path} has another tokenizer than the student, with as many ids ({own:,})")
