"""What all kinds of tasks share: the task file's content, examples with their pictures, and matched predictions."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtvl.config import EvaluateConfig
from mtvl.data import shards
from mtvl.data.formats.records import rows_of, taking_faults
from mtvl.data.formats.rows import Clip, Row, SubtitleLine
from mtvl.data.skips import REFUSE, SKIP, Sieve
from mtvl.errors import ConfigError, DataError, near_names
from mtvl.registry import Registry
from mtvl.tasks.additions import added_rows, check_additions, weighing
from mtvl.tasks.answer_lists import listed_answers
from mtvl.tasks.results import ResultFile
from mtvl.tasks.sources import AdditionConfig, Source, SourceConfig, choose_source, collector_paused
from mtvl.tasks.wording import WORDINGS, plain
from mtvl.types import Decoding, Example, Limits, Prediction, Scores, Segment, Visual

# Below the prompt, so that a limit on the source cuts the end of the question; above optional context.
QUESTION_PRIORITY = 90
SUBTITLES_PRIORITY = 10

LOSSES = ("sample_mean", "token_mean", "answers", "pairs")
MODES = ("generate", "choose", "rank", "rank_list", "retrieve")
ANSWER_WEIGHTS = ("accuracy", "share")
SPANS = ("select", "text")
SUBTITLES = ("span", "all")


@dataclass(frozen=True)
class VideoConfig:
    """What a time span does in a task on videos; it always stands in the text.

    `span` "select" takes the frames inside it, "text" all frames. `subtitles` "span" takes the lines that overlap it,
    "all" those of the whole video. *Source:* "text" and "all" are VL-Adapter's.
    """

    span: str = "select"
    subtitles: str = "span"


@dataclass(frozen=True)
class BadInputConfig:
    """What is done with rows, pictures and videos that cannot be used, in training and in evaluation.

    "refuse" ends with the first, "skip" leaves them out, writes each with its reason to RUN/skipped.jsonl, and ends when
    they are more than the share `most` of a split.
    """

    train: str = SKIP
    evaluate: str = REFUSE
    most: float = 0.01


@dataclass(frozen=True)
class MaskingConfig:
    """Of the kind `masked`: the share of words that is left out, and what stands in their place (numbered with {})."""

    share: float = 0.15
    mark: str = "<mask>"


@dataclass(frozen=True)
class RetrievalConfig:
    """Of the kind `retrieval`: `joined` makes one paragraph of the texts of a picture or video."""

    joined: bool = False


@dataclass(frozen=True)
class TaskConfig:
    """Content of `tasks/NAME.yaml`. `sources` are alternatives: the most complete one below the data root is used.

    A section `video` says that the task is on videos. `wording` "plain" gives questions, captions and statements as BLIP was
    given them: in lower case, without most punctuation (`mtvl.tasks.wording`). `answer_weights` of the kind vqa: "accuracy" (what an answer scores)
    or "share" (of its annotators). `also` names what is trained on beside the training split: entries of `additions`, or
    other splits of the source (what they then score is no measure any more). `ascii_only` is VALUE's rule for scoring captions: every
    character outside ASCII becomes a space.
    """

    kind: str
    primary: str
    sources: tuple[SourceConfig, ...]
    prompt: str = ""
    limits: Limits = field(default_factory=Limits)
    decoding: Decoding = field(default_factory=Decoding)
    loss: str = "sample_mean"
    label_smoothing: float = 0.0
    video: VideoConfig | None = None
    ascii_only: bool = False
    masking: MaskingConfig | None = None
    bad_input: BadInputConfig = field(default_factory=BadInputConfig)
    retrieval: RetrievalConfig | None = None
    answer_weights: str = "accuracy"
    wording: str = "as_written"
    also: tuple[str, ...] = ()
    additions: dict[str, AdditionConfig] = field(default_factory=dict)
    families: dict[str, dict[str, Any]] = field(default_factory=dict)


def validate(name: str, config: TaskConfig, kinds: Registry) -> None:
    """Checks over the fields of a task file; ConfigError with the dotted path."""
    if config.kind not in kinds:
        raise ConfigError(f"'{name}.kind': unknown kind of task {config.kind!r}; {near_names(config.kind, kinds)}")
    words = [("loss", config.loss, LOSSES), ("decoding.mode", config.decoding.mode, MODES)]
    words += [("answer_weights", config.answer_weights, ANSWER_WEIGHTS), ("wording", config.wording, WORDINGS)]
    words += [(f"bad_input.{key}", getattr(config.bad_input, key), (REFUSE, SKIP)) for key in ("train", "evaluate")]
    if config.video is not None:
        words += [("video.span", config.video.span, SPANS), ("video.subtitles", config.video.subtitles, SUBTITLES)]
    for key, value, known in words:
        if value not in known:
            raise ConfigError(f"unknown '{name}.{key}' {value!r}; {near_names(value, known)}")
    decoding, limits = config.decoding, config.limits
    if decoding.mode == "choose" and len(set(decoding.choices)) < 2:
        raise ConfigError(f"'{name}.decoding.choices' expects at least two texts, found {list(decoding.choices)}")
    least = {
        "decoding.num_beams": (decoding.num_beams, 1), "decoding.max_tokens": (decoding.max_tokens, 2),
        "decoding.min_tokens": (decoding.min_tokens, 0), "decoding.no_repeat_ngram": (decoding.no_repeat_ngram, 0),
        "decoding.top": (decoding.top, 1), "decoding.list_size": (decoding.list_size, 0), "limits.source_tokens": (limits.source_tokens, 0), "limits.target_tokens": (limits.target_tokens, 0),
    }  # fmt: skip
    for key, (number, bound) in least.items():
        if number < bound:
            raise ConfigError(f"'{name}.{key}' expects at least {bound}, found {number}")
    for key, share in (("label_smoothing", config.label_smoothing), ("decoding.smoothing", decoding.smoothing)):
        if not 0 <= share < 1:
            raise ConfigError(f"'{name}.{key}' must lie in [0, 1), found {share}")
    _check_kind(name, config)
    if config.masking is not None and not 0 < config.masking.share < 1:
        raise ConfigError(f"'{name}.masking.share' must lie between 0 and 1, found {config.masking.share}")
    if not 0 <= config.bad_input.most < 1:
        raise ConfigError(f"'{name}.bad_input.most' expects a share from 0 to below 1, found {config.bad_input.most}")
    if not config.sources:
        raise ConfigError(f"'{name}.sources' expects at least one source of files, found none")
    _check_visual(name, config)
    check_additions(name, config.also, config.additions, config.sources)


def _check_kind(name: str, config: TaskConfig) -> None:
    """What goes with one kind of task alone."""
    decoding = config.decoding
    if decoding.mode == "rank" and config.kind != "choice":
        raise ConfigError(f"'{name}.decoding.mode' rank needs examples with choices of their own: kind choice alone")
    if decoding.list_file and decoding.mode != "rank_list":
        raise ConfigError(f"'{name}.decoding.list_file' is ranked with mode rank_list, found mode {decoding.mode}")
    is_retrieval = {config.kind == "retrieval", config.loss == "pairs", decoding.mode == "retrieve"}
    if len(is_retrieval) > 1:
        raise ConfigError(
            f"the kind retrieval, the loss pairs and decoding.mode retrieve belong together; '{name}' has kind {config.kind}, "
            f"loss {config.loss} and decoding.mode {decoding.mode}"
        )
    if (config.kind == "masked") != (config.masking is not None):
        raise ConfigError(
            f"'{name}.masking' belongs to the kind masked, and to no other; '{name}.kind' is {config.kind}"
        )


def _check_visual(name: str, config: TaskConfig) -> None:
    """Pictures or videos, the same in all sources and as the section `video` says."""
    key, other = ("pictures", "videos") if config.video is None else ("videos", "pictures")
    for number, source in enumerate((*config.sources, *config.additions.values())):
        if not getattr(source, key) or getattr(source, other):
            said = "has no section" if config.video is None else "has a section"
            raise ConfigError(
                f"'{name}.sources[{number}]' expects patterns under '{key}' and none under '{other}': "
                f"the task {said} 'video'"
            )


class BaseTask(ABC):
    """A Task over the files of one chosen source. Subclasses turn rows into examples and predictions into scores."""

    has_constant = True  # one answer for everything can be scored beside a model
    has_annotators = False  # several people answered, and `answer_weights` says what that makes of an answer
    is_prose = False  # what is asked about, or is to be written, is a caption or statement and no question

    def __init__(self, name: str, config: TaskConfig, root: Path, evaluate: EvaluateConfig) -> None:
        if config.answer_weights != ANSWER_WEIGHTS[0] and not self.has_annotators:
            raise ConfigError(
                f"'{name}.answer_weights' is for kinds whose questions many people answered; the kind is {config.kind}"
            )
        self.name = name
        self.config = config
        self.root = root
        self.evaluate = evaluate
        self.primary = config.primary
        self.limits = config.limits
        self.loss, self.label_smoothing = config.loss, config.label_smoothing
        self.decoding = config.decoding
        if evaluate.num_beams > 0 and config.decoding.mode == "generate":
            self.decoding = dataclasses.replace(config.decoding, num_beams=evaluate.num_beams)
        self._source: Source | None = None
        self._examples: dict[str, tuple[Example, ...]] = {}

    @property
    def source(self) -> Source:
        """The chosen set of files; one for all splits, because the layouts split the pictures differently."""
        if self._source is None:
            self._source = choose_source(self.name, self.config.sources, self.root)
        return self._source

    def examples(self, split: str) -> Sequence[Example]:
        """All examples of `split` in file order; raises DataError, never drops a row silently.

        Shards of the split below the root (`mtvl.data.shards`) go before the benchmark's own files.
        """
        if split not in self._examples and shards.has_shards(self.root, self.name, split):
            with collector_paused():
                settings = shards.example_settings(self.config)
                self._examples[split] = shards.read(self.root, self.name, split, settings)
        if split not in self._examples:
            with collector_paused():
                made, rows = self._make(split)
            if split == "train":
                self._need_targets(made, rows)
            self._examples[split] = made
        return self._examples[split]

    def usable_examples(self, split: str, sieve: Sieve) -> Sequence[Example]:
        """The examples of `split` without those of rows that have a fault, which go to `sieve`.

        DataError for more of them than it allows, and for faults of whole files. Shards hold no rows with faults.
        """
        if split in self._examples or shards.has_shards(self.root, self.name, split):
            return self.examples(split)
        with collector_paused(), taking_faults(sieve.take):
            made, rows = self._make(split)
        if split == "train":
            for example in made:
                if not example.targets:
                    error = DataError(f"task {self.name}: expected an answer to {example.uid}, found none")
                    sieve.take(example.uid, error)
            made = tuple(e for e in made if e.targets)
        sieve.check(len(rows) + len(sieve.reasons))
        return made

    def _make(self, split: str) -> tuple[tuple[Example, ...], Sequence[Row]]:
        """Examples of all rows of the files, and the rows; of the training split with those of what is `also` trained on."""
        groups = [(*self.source.load(split), 1.0)]
        also = self.config.also if split == "train" else ()
        groups += [added_rows(name, self.config.additions, self.source, self.root) for name in also]
        every = [row for rows, _, _ in groups for row in rows]
        self._see(every)
        made: list[Example] = []
        for rows, files, weight in groups:
            pairs = ((row.uid, (row, paths)) for row, paths in zip(rows, files, strict=True))
            of_row = rows_of(pairs, lambda _, pair: tuple(self._from_row(pair[0], self._visual(*pair), split)))
            made += [weighing(self.worded(example), weight) for examples in of_row for example in examples]
        return tuple(made), every

    def worded(self, example: Example) -> Example:
        """`example` in the wording of the task."""
        return plain(example, is_prose=self.is_prose) if self.config.wording == "plain" else example

    def listed_answers(self) -> tuple[str, ...]:
        """As `Task`; DataError where the list, or the training split that stands for it, cannot be read."""
        return listed_answers(self, self.root)

    def check_list(self) -> None:
        """As `Task`."""
        if self.decoding.list_file:
            self.listed_answers()

    def _need_targets(self, examples: Sequence[Example], rows: Sequence[Row]) -> None:
        bare = [e.uid for e in examples if not e.targets]
        if bare:
            raise DataError(
                f"task {self.name}: expected answers for {len(examples)} training examples, found "
                f"{len(examples) - len(bare)}, missing {len(bare)}, e.g. {', '.join(bare[:3])}; "
                "give the annotation file in the task file",
                file=rows[0].file,
            )

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Scores:
        """Score predictions of exactly the given examples (any order).

        Raises DataError when uids are missing, not expected or twice there, or when the examples have no public answers.
        """
        texts = match(self.name, predictions, examples)
        bare = [e.uid for e in examples if not e.references]
        if bare:
            raise DataError(
                f"task {self.name}: expected public answers for {len(examples)} examples, found none for {len(bare)}, "
                f"e.g. {', '.join(bare[:3])}; this split can be predicted but not scored here"
            )
        scores = self._score(texts, {e.uid: e for e in examples})
        if self.primary not in scores.metrics:
            raise ConfigError(f"'{self.name}.primary': {near_names(self.primary, scores.metrics)}")
        return scores

    def result_file(
        self, predictions: Sequence[Prediction], examples: Sequence[Example], split: str
    ) -> ResultFile | None:
        """Predictions of a whole split in the form that the benchmark's server takes; None when there is no such form.

        Raises DataError when the predictions are not exactly those of the examples.
        """
        texts = match(self.name, predictions, examples)
        return self._result_file(texts, f"{self.name}_{split}")

    def _result_file(self, texts: Mapping[str, str], stem: str) -> ResultFile | None:
        """One text for each uid as a file called `stem` with an ending."""
        return None

    def _see(self, rows: Sequence[Row]) -> None:  # noqa: B027  (most kinds look at one row at a time)
        """All rows of a split, before their examples are made one by one."""

    def _visual(self, row: Row, paths: tuple[str, ...]) -> Visual:
        """Pictures, or the video and the seconds of it that are looked at."""
        if row.clip is None or self.config.video is None:
            return Visual(images=paths)
        return Visual(video=paths[0], span=row.clip.span if self.config.video.span == "select" else None)

    def _segments(self, question: str) -> tuple[Segment, ...]:
        """Prompt and question (or statement), in the order in which the model reads them."""
        return Segment("prompt", self.config.prompt), Segment("question", question, QUESTION_PRIORITY)

    def _video_segments(self, clip: Clip, *middle: Segment) -> tuple[Segment, ...]:
        """Subtitles, the segments `middle` with the time span after the first of them, and the prompt at the end.

        Over the limit only subtitles lose tokens. *Source:* the order and the marks are VL-Adapter's.
        """
        said = clip.subtitles or ()
        if self.config.video is not None and self.config.video.subtitles == "span" and clip.span is not None:
            said = tuple(line for line in said if overlaps(line, clip.span))
        texts = ["[Subs]", *(line.text for line in said if line.text)]
        span = (Segment("time_span", f" [TS] ({clip.ts})"),) if clip.ts else ()
        return (
            Segment("subtitles", " ".join(texts), SUBTITLES_PRIORITY), *middle[:1], *span, *middle[1:],
            Segment("prompt", f" {self.config.prompt}"),
        )  # fmt: skip

    @abstractmethod
    def _from_row(self, row: Any, visual: Visual, split: str) -> Iterable[Example]:
        """Examples of one row with its pictures or video."""

    @abstractmethod
    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        """Scores of one text for each example, by uid in the order of the examples."""


def subset_of(row: Row) -> dict[str, str]:
    """What a reference says of the part of the set to which `row` belongs; {} in sets without parts."""
    return {} if row.is_held_out is None else {"subset": "held_out" if row.is_held_out else "not_held_out"}


def overlaps(line: SubtitleLine, span: tuple[float, float]) -> bool:
    """True when something of `line` lies inside `span`; a line without length does when its instant does."""
    start, end = span
    return (line.start < end and line.end > start) or (line.start == line.end and start <= line.start < end)


def match(name: str, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, str]:
    """Predicted texts by uid in the order of the examples; DataError unless the uid sets are equal and unique."""
    if not examples:
        raise DataError(f"task {name}: expected at least one example to score, found none")
    texts: dict[str, str] = {}
    twice = []
    for prediction in predictions:
        if prediction.uid in texts:
            twice.append(prediction.uid)
        texts[prediction.uid] = prediction.text
    uids = [e.uid for e in examples]
    if len(set(uids)) != len(uids):
        raise DataError(f"task {name}: expected every example once, found {len(uids) - len(set(uids))} repeated uids")
    missing = [u for u in uids if u not in texts]
    extra = [u for u in texts if u not in set(uids)] if len(texts) + len(missing) != len(uids) else []
    faults = (("missing", missing), ("not expected", extra), ("twice", twice))
    if any(found for _, found in faults):
        listed = ", ".join(f"{word} {len(f)}" + (f" (e.g. {', '.join(f[:3])})" if f else "") for word, f in faults)
        raise DataError(f"task {name}: expected one prediction for each of {len(uids)} examples: {listed}")
    return {uid: texts[uid] for uid in uids}
