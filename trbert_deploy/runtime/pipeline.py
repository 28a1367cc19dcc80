"""Texts in, answers out: what a user of a model holds in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from trbert_deploy.bounds import MOST_TEXTS, require_whole
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import BundleError, ConfigError, FileFormatError
from trbert_deploy.lexicon.entries import Entry, entry_of, read_entries, require_tags
from trbert_deploy.lexicon.matcher import Lexicon, Matchers
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime import cross_encoder, embedding
from trbert_deploy.runtime.autotune.break_even import break_even
from trbert_deploy.runtime.autotune.latency_budget import threshold_within
from trbert_deploy.runtime.chain import Chain, Timing
from trbert_deploy.runtime.matching import with_matches
from trbert_deploy.runtime.token_state import RowResult, TokenRow, results_of_parts
from trbert_deploy.runtime.tokenizing import TextTokenizer, require_texts
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.examples import Example, Text, TextList
from trbert_deploy.tasks.predictions import KeptTokens, Prediction
from trbert_deploy.tasks.registry import task_of


@dataclass(frozen=True)
class Asked:
    """Texts on their way to the model.

    Attributes:
        texts: as they were given.
        counts: how many rows each of them makes.
        inputs, encodings, rows: of every row: what the model reads, its tokens, and these as the
            chain takes them.
    """

    texts: Sequence[Text]
    counts: Sequence[int]
    inputs: Sequence[Text]
    encodings: Sequence[Encoding]
    rows: Sequence[TokenRow]


class Pipeline:
    """A model ready to answer; ``trbert_deploy.load`` makes it from a bundle.

    Attributes:
        path: the directory that it was read from.
        encoder: shape of the model, and its labels.
        task: what it answers.
        tokenizer: counts truncated texts.
        chain: for callers that have tokens already.
        bundle: that it runs, if it is one.
        lexicons: what finds phrases in texts, where the model takes a lexicon.
        exit_rule: when texts leave at exits; as the chain says where None.
    """

    def __init__(
        self,
        path: Path,
        encoder: EncoderSpec,
        tokenizer: TextTokenizer,
        chain: Chain,
        bundle: Bundle | None = None,
    ) -> None:
        self.path = path
        self.encoder = encoder
        self.task = task_of(encoder).spelled(tokenizer.spelling)
        self.tokenizer = tokenizer
        self.chain = chain
        self.bundle = bundle
        self.lexicons: tuple[Lexicon, ...] = ()
        self.exit_rule: ExitRule | None = None

    def require_bundle(self) -> Bundle:
        """The bundle that it runs.

        Raises:
            BundleError: it runs a checkpoint.
        """
        if self.bundle is None:
            raise BundleError(f"{self.path} is not a bundle: make one with trbert-deploy export")
        return self.bundle

    @property
    def reduction(self) -> ReductionConfig:
        """The cuts with the rules in force, which may be others than the bundle's."""
        return self.chain.reduction

    @property
    def labels(self) -> tuple[str, ...]:
        return self.encoder.labels

    def at(
        self,
        point: OperatingPoint,
        note: Callable[[str], None] = lambda message: None,
        progress: Progress = no_progress,
    ) -> Pipeline:
        """The same model at another operating point, on the same graphs.

        Args:
            note: told what was measured for a latency budget, or for ``dense_below``.
            progress: told while it is measured.

        Raises:
            ConfigError: a number of tokens that is no multiple of what a cut rounds to.
            BundleError: something is to be measured of what is no bundle.
        """
        chain = self.chain.at(point)
        if point.latency_budget_ms is not None:
            bundle = self.require_bundle()
            threshold = threshold_within(bundle, chain, point.latency_budget_ms, note, progress)
            chain = chain.at(OperatingPoint(threshold))
        if point.dense_below == "auto":
            bundle = self.require_bundle()
            below = break_even(bundle, chain.at(OperatingPoint(dense_below=0)), note, progress)
            chain = chain.at(OperatingPoint(dense_below=below))
        other = copy(self)
        other.chain = chain
        return other

    def to_the_end(self) -> Pipeline:
        """The same model, where no row leaves at an exit."""
        other = copy(self)
        other.chain = self.chain.to_the_end()
        return other

    def leaving_from(self, exit_confidence: float | None) -> Pipeline:
        """The same model, whose texts leave with the answer of the first exit that is surer.

        Their rows say so themselves, so that they share batches with those that leave by another
        rule, which those of ``at`` do not.

        Args:
            exit_confidence: from 0 to 1, which none is; None changes nothing.

        Raises:
            ConfigError: out of range, or the model has no exits, or a backend that does without.
        """
        if exit_confidence is None:
            return self
        other = copy(self)
        other.exit_rule = self.chain.at(
            OperatingPoint(exit_confidence=exit_confidence)
        ).reduction.exits
        return other

    def set_up(self, **options: Any) -> Pipeline:
        """The same model answering in another way (see ``Task.set_up``).

        Raises:
            ConfigError: out of range, or nothing that the task has.
        """
        other = copy(self)
        other.task = self.task.set_up(**options)
        return other

    def with_lexicon(
        self, entries: Iterable[Entry | tuple[str, str]], name: str = "the lexicon"
    ) -> Pipeline:
        """The same model, with phrases that texts are searched for besides those it has.

        Args:
            entries: phrases with tags; of none nothing changes.
            name: what errors call them.

        Raises:
            ConfigError: the model takes no lexicon, or does not know a tag.
            DataError: an entry is no phrase with a tag.
            MissingDependencyError: the package that searches is not installed.
        """
        given = [
            each if isinstance(each, Entry) else entry_of(each, f"entry {place} of {name}")
            for place, each in enumerate(entries, start=1)
        ]
        if not given:
            return self
        if not self.task.lexicon_tags:
            raise ConfigError(
                f"the model takes no lexicon, and {name} is one: train it with --lexicon, or leave "
                "the lexicon out"
            )
        require_tags(given, self.task.lexicon_tags, name)
        other = copy(self)
        other.lexicons = (*self.lexicons, Lexicon(given))
        return other

    def with_lexicon_file(self, path: Path) -> Pipeline:
        """The same model with the phrases of a file, in place of those it has.

        Raises:
            StorageError, DataError: as ``read_entries``.
            ConfigError, MissingDependencyError: as ``with_lexicon``.
        """
        return self.without_lexicon().with_lexicon(read_entries(path), f"the lexicon {path}")

    def without_lexicon(self) -> Pipeline:
        """The same model with no phrases."""
        other = copy(self)
        other.lexicons = ()
        return other

    def at_threshold(self, threshold: float) -> Pipeline:
        """The same model at another keep probability.

        Raises:
            ConfigError: not from 0 to 1.
        """
        return self.at(OperatingPoint(threshold))

    def __call__(
        self,
        texts: Sequence[Text | TextList],
        *,
        return_kept: bool = False,
        dense: bool = False,
        names: Sequence[str] | None = None,
        lexicon: Iterable[Entry | tuple[str, str]] = (),
        exit_confidence: float | None = None,
    ) -> list[Prediction]:
        """Answer texts.

        Args:
            texts: strings, or pairs of strings; for some tasks a string and a list of others.
            return_kept: report the survivors of every cut.
            dense: remove no token.
            names: what errors call each text; ``text 1`` and so on by default.
            lexicon: phrases with tags, for these texts, besides the model's (``with_lexicon``).
            exit_confidence: how sure an exit must be for these texts to leave (``leaving_from``).

        Returns:
            One prediction per text, in order; none depends on the others.

        Raises:
            ConfigError: a lexicon that the model does not take, or a confidence of exits that it
                does not have.
            DataError: an empty text, or what is no text and no pair of two.
            LengthError: a text over the maximum length, with truncation off.
            OutputError: the model's output is no number.
        """
        asked = self.with_lexicon(lexicon).leaving_from(exit_confidence).ask(texts, names)
        return self.told(asked, self.run(asked.rows, dense=dense), return_kept)

    def ask(self, texts: Sequence[Text | TextList], names: Sequence[str] | None = None) -> Asked:
        """Make rows of texts: what a call does before the model runs.

        Args:
            texts, names: as a call takes them.

        Raises:
            DataError, LengthError, FileFormatError: as a call.
        """
        if isinstance(texts, str):
            texts = [texts]
        require_texts(texts)
        whole = cast(Sequence[Text], texts)
        names = names or [f"text {place + 1}" for place in range(len(texts))]
        divided = [
            self.task.divided(Example(text, name=name))
            for text, name in zip(whole, names, strict=True)
        ]
        parts = [part for each in divided for part in each]
        part_names = [part.name for part in parts]
        inputs = self.inputs_of([part.text for part in parts])
        encodings = self.tokenizer.encode(inputs, part_names)
        rows = self.rows(encodings, inputs, part_names)
        return Asked(whole, [len(each) for each in divided], inputs, encodings, rows)

    def told(
        self, asked: Asked, results: Sequence[RowResult], return_kept: bool = False
    ) -> list[Prediction]:
        """Make answers of what the model says of rows: what a call does after it ran.

        Args:
            results: of ``asked.rows``, as ``run`` returns them.
            return_kept: report the survivors of every cut.

        Raises:
            OutputError: the model's output is no number.
        """
        answers = []
        for text, encoding, result in zip(asked.inputs, asked.encodings, results, strict=True):
            answer = self.task.decode(result.outputs, encoding, text)
            if return_kept:
                answer = replace(answer, kept=self._kept(encoding.tokens, result))
            answers.append(answer)
        remaining = iter(answers)
        return [
            self.task.joined(list(islice(remaining, count)), text)
            for text, count in zip(asked.texts, asked.counts, strict=True)
        ]

    def predict(
        self,
        pairs: Sequence[Text] | Text,
        *,
        batch_size: int = cross_encoder.BATCH_SIZE,
        activation_fn: cross_encoder.Activation = None,
        apply_softmax: bool = False,
        show_progress_bar: bool | None = None,
        label: str | None = None,
    ) -> NDArray[np.float32]:
        """Score pairs of texts, as CrossEncoder.predict does.

        Args:
            pairs: of texts, or one pair.
            batch_size: pairs that are on their way at a time.
            activation_fn: what makes scores of logits: ``Sigmoid``, ``Identity`` or ``Softmax``,
                PyTorch's module of such a name, or a function of numpy arrays [B, C]. By default
                what the checkpoint says, for a classifier of one label of several none.
            apply_softmax: make probabilities of several logits.
            show_progress_bar: taken so that calls need no change; no bar is shown.
            label: of a classifier: give the probability of this label alone.

        Returns:
            [N] float32 in the given order; [N, C] where the model has several labels and ``label``
            is None; of one pair its score, or [C].

        Raises:
            ConfigError: the model answers with no such scores or has no such label, or a value is
                out of range.
            DataError: an empty text, or what is no pair.
        """
        return cross_encoder.predict(self, pairs, batch_size, activation_fn, apply_softmax, label)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int = cross_encoder.BATCH_SIZE,
        activation_fn: cross_encoder.Activation = None,
        show_progress_bar: bool | None = None,
        label: str | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents by how well they answer a query, as CrossEncoder.rank does.

        Args:
            top_k: of the best ones; all where None.
            return_documents: give their ``text``, too.
            batch_size, activation_fn, show_progress_bar: as ``predict``.
            label: of a classifier, the one whose probability is the score, such as the second one
                of a reranker with two logits.

        Returns:
            ``corpus_id`` (which document it is) and ``score`` of each, best first; equal scores in
            the given order.

        Raises:
            ConfigError: the model is no reranker, and no label is given that it has; or ``top_k``
                is out of range.
            DataError: no documents, an empty text, or what is no text.
        """
        return cross_encoder.rank(
            self, query, documents, top_k, return_documents, batch_size, activation_fn, label
        )

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = embedding.BATCH_SIZE,
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> NDArray[np.float32]:
        """Embed texts, as SentenceTransformer.encode does.

        Args:
            sentences: one text, or any number of them.
            prompt_name: of one of the model's prompts, which is put before every text.
            prompt: what is put there instead; without either the model's default.
            batch_size: texts that are on their way at a time.
            normalize_embeddings: give them the length 1, whether the model does or not.
            truncate_dim: of the embeddings, the values that are kept; not normalized again unless
                that is asked for.

        Returns:
            [N, D] float32 in the given order; of one text [D].

        Raises:
            ConfigError: the model makes no embeddings, has no such prompt, or a number is out of
                range.
            DataError: an empty text, or what is no text.
        """
        return embedding.encode(
            self,
            sentences,
            prompt_name,
            prompt,
            batch_size,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )

    def encode_query(self, sentences: str | Sequence[str], **options: Any) -> NDArray[np.float32]:
        """``encode`` with the model's prompt for queries, if it has one."""
        name = embedding.prompt_for(self, embedding.QUERY)
        return self.encode(sentences, prompt_name=name, **options)

    def encode_document(
        self, sentences: str | Sequence[str], **options: Any
    ) -> NDArray[np.float32]:
        """``encode`` with the model's prompt for documents, if it has one."""
        name = embedding.prompt_for(self, embedding.DOCUMENT)
        return self.encode(sentences, prompt_name=name, **options)

    def rows(
        self,
        encodings: Sequence[Encoding],
        texts: Sequence[Text],
        names: Sequence[str] | None = None,
    ) -> list[TokenRow]:
        """Encodings as rows of tokens, with those marked that the task protects, what the lexicon
        says of them, and when they leave.

        Args:
            texts: that were encoded.

        Raises:
            FileFormatError: the tokenizer gives tokens that the model does not have.
            DataError: a text that does not ask what the task answers.
        """
        for place, encoding in enumerate(encodings):
            name = names[place] if names else f"text {place + 1}"
            self.task.require_question(encoding, name)
        rows = self.tokenizer.rows(encodings, self.task.protected, names)
        tokens, types = self.encoder.vocab_size, self.encoder.token_types
        for row in rows:  # what a graph reads behind the end of a table depends on the backend
            if row.input_ids.max() >= tokens or (types > 1 and row.token_type_ids.max() >= types):
                raise FileFormatError(
                    f"the tokenizer of {self.path} gives tokens that the model does not have: it "
                    f"has {tokens}, of {types} types; export the checkpoint again"
                )
        if self.exit_rule is not None:
            rows = [replace(row, exit_rule=self.exit_rule) for row in rows]
        if not self.lexicons:
            return rows
        searched, tags = Matchers(self.lexicons), self.task.lexicon_tags
        return [
            with_matches(row, encoding, text, searched.find(text), tags)
            for row, encoding, text in zip(rows, encodings, cast(Sequence[str], texts), strict=True)
        ]

    def tokenize(self, texts: Sequence[Text], names: Sequence[str] | None = None) -> list[TokenRow]:
        """Texts as rows of tokens.

        Raises:
            DataError, LengthError: as a call.
        """
        inputs = self.inputs_of(texts)
        return self.rows(self.tokenizer.encode(inputs, names), inputs, names)

    def inputs_of(self, texts: Sequence[Text]) -> list[Text]:
        """What the model reads of texts.

        Raises:
            DataError: they are no texts in order.
        """
        require_texts(texts)
        return [self.task.input_of(text) for text in texts]

    def stream(
        self,
        texts: Iterable[Text | TextList],
        *,
        batch_size: int = 32,
        return_kept: bool = False,
        dense: bool = False,
    ) -> Iterator[Prediction]:
        """Answer any number of texts, ``batch_size`` at a time, in order.

        Raises:
            ConfigError: a batch size under 1, at once.
            DataError: what holds no texts, at once.
            DataError, LengthError, OutputError: as for a call.
        """
        require_whole("batch_size", batch_size, 1, MOST_TEXTS)
        if isinstance(texts, str):
            texts = [texts]
        require_texts(texts, counted=False)
        named = enumerate(texts, start=1)
        batches = iter(lambda: list(islice(named, batch_size)), [])
        return (
            prediction
            for batch in batches
            for prediction in self(
                [text for _, text in batch],
                names=[f"text {place}" for place, _ in batch],
                return_kept=return_kept,
                dense=dense,
            )
        )

    def run(
        self, rows: Sequence[TokenRow], *, dense: bool = False, timing: Timing | None = None
    ) -> list[RowResult]:
        """Run rows of tokens (see Chain), those with windows window by window."""
        parts = [part for row in rows for part in row.parts]
        run = self.chain.run_dense if dense else self.chain.run
        return results_of_parts(rows, run(parts, timing))

    def _kept(self, tokens: Sequence[str], result: RowResult) -> tuple[KeptTokens, ...]:
        cuts = (segment.cut for segment in self.chain.segments if segment.cut is not None)
        return tuple(
            KeptTokens(
                cut=cut.position,
                positions=tuple(int(position) for position in positions),
                tokens=tuple(tokens[position] for position in positions),
            )
            for cut, positions in zip(cuts, result.kept, strict=False)
        )
