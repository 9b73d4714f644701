"""What a receiver knows of each item before it selects: losses, answers, verdicts, a summary of its hidden states."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from fedtandem.algorithms.checked_paths import judging
from fedtandem.algorithms.learner import Learner, copy_state, phase_seed
from fedtandem.algorithms.public_pass import public_pass
from fedtandem.algorithms.sequence_scores import embed, final_answer, n_path_tokens
from fedtandem.checking.checkers import judge
from fedtandem.checking.verdict import Checker
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.models.encoded import Encoded
from fedtandem.selection.items import (
    RIGHT,
    UNKNOWN,
    WRONG,
    Floats,
    Ids,
    Need,
    Path,
    Pool,
    ScoreRows,
)
from fedtandem.tuning.phase import Example, train_phase

HOLDOUT_EPOCHS = 3
"""`rho_holdout`: epochs its reference trains on the probe."""


class PoolScorer:
    """Makes the rows a selector decides by, no more columns than it needs.

    Args:
        learner: the receiver.
        pool: the shared items.
        needs: what the selector asks for.
        checker: judges paths; None leaves every verdict unknown outside of `judging`.
    """

    def __init__(self, learner: Learner, pool: Pool, needs: frozenset[Need], checker: Checker | None) -> None:
        self.learner = learner
        self.pool = pool
        self.needs = needs
        self.checker = checker
        self._verdicts: dict[tuple[int, str], int] = {}
        self._first_wrong: dict[tuple[int, str], tuple[int, int]] = {}
        self._failures: dict[int, str] = {}

    def rows(self, round_number: int, ids: Ids, held: Mapping[int, Path], own: Knowledge | None) -> ScoreRows:
        """The rows of these items.

        Args:
            ids: ascending.
            held: item -> the newest path of its producer.
            own: what the receiver makes of the pool itself: scores of the answers, or its own paths.
        """
        learner = self.learner
        labelled = learner.unlabelled is None
        paths = [held[int(i)].text if int(i) in held else "" for i in ids]
        if labelled:  # the answer is known before anybody tells how well it knows it
            paths = [learner.public[int(i)].answer or "" for i in ids]
        texts, at = self._encoded(ids, paths)
        n_bytes = np.array([len(path.encode()) for path in paths], np.int64)
        n_tokens = np.zeros(len(ids), np.int64)
        n_tokens[at] = n_path_tokens(texts)
        if labelled and own is not None:
            receiver = _log_probs(own.scores[ids], n_bytes)
        else:
            receiver = self._spread(self._scores(texts), at, n_bytes)
        rows = ScoreRows.of(
            ids,
            prompts=[self.pool.prompts[i] for i in ids],
            paths=paths,
            gold=[self.pool.gold[i] for i in ids],
            receiver_pos=receiver,
            producer_pos=[held[int(i)].seq_log_prob if int(i) in held else np.nan for i in ids],
            n_bytes=n_bytes,
            n_tokens=n_tokens,
            verdict=[UNKNOWN] * len(ids) if labelled else self.verdicts(ids.tolist(), paths),
        )
        rows = self._with_own_paths(rows, own)
        if "alone" in self.needs:
            rows = replace(
                rows, alone=self._spread(self._scores(self._without_prompt(ids, paths)), at, n_bytes)
            )
        if "holdout" in self.needs:
            rows = replace(rows, holdout=self._spread(self._held_out(round_number, texts, held), at, n_bytes))
        if "embedding" in self.needs:
            rows = replace(rows, embedding=self._embedding(ids, paths, own))
        return rows

    # -- columns -----------------------------------------------------------------------------------------------

    def _encoded(self, ids: Ids, paths: Sequence[str]) -> tuple[list[Encoded], np.ndarray]:
        """The paths that exist, in the receiver's tokens, and where they stand."""
        at = np.flatnonzero([bool(path) for path in paths])
        if self.learner.unlabelled is None:
            return [self.learner.public_texts[i] for i in ids[at]], at
        return self.learner.answered(ids[at], [paths[int(j)] for j in at]), at

    def _scores(self, texts: Sequence[Encoded]) -> np.ndarray:
        """The receiver's score of each text, in the run's unit; (n,) float32."""
        settings = self.learner.knowledge
        return public_pass(self.learner.lm, texts, settings, want_rows=False, party=self.learner.name)[0]

    def _spread(self, scores: np.ndarray, at: np.ndarray, n_bytes: Ids) -> Floats:
        found = np.full(len(n_bytes), np.nan)
        found[at] = _log_probs(scores, n_bytes[at])
        return found

    def _with_own_paths(self, rows: ScoreRows, own: Knowledge | None) -> ScoreRows:
        """What the receiver itself would write, where it has written."""
        if own is None or own.texts is None:
            return rows
        mine = [own.texts[i] for i in rows.ids]
        n_bytes = np.array([len(text.encode()) for text in mine], np.int64)
        both = [bool(a and b) for a, b in zip(rows.paths, mine, strict=True)]
        agrees = [
            float(final_answer(a) == final_answer(b)) if known else np.nan
            for a, b, known in zip(rows.paths, mine, both, strict=True)
        ]
        return replace(
            rows,
            receiver_neg=_log_probs(own.scores[rows.ids], n_bytes),
            neg_bytes=n_bytes,
            agrees=np.array(agrees),
        )

    def _without_prompt(self, ids: Ids, paths: Sequence[str]) -> list[Encoded]:
        samples = [
            replace(self.learner.public[i], prompt="", answer=path)
            for i, path in zip(ids, paths, strict=True)
            if path
        ]
        return self.learner.encode(samples)

    def _held_out(self, round_number: int, texts: Sequence[Encoded], held: Mapping[int, Path]) -> np.ndarray:
        """The scores a copy of the receiver gives after training on the probe alone; the receiver stays as it was."""
        learner = self.learner
        known = [int(i) for i in self.pool.probe if learner.unlabelled is None or int(i) in held]
        shown, _ = self._encoded(
            np.array(known, np.int64),
            [learner.public[i].answer or held[i].text for i in known],
        )
        if not shown:
            return np.full(len(texts), np.inf, np.float32)
        before = copy_state(learner.state())
        settings = replace(learner.public_settings, num_train_epochs=HOLDOUT_EPOCHS, max_steps=-1)
        seed = phase_seed(learner.seed, learner.name, round_number, "holdout")
        train_phase(learner.lm, [Example(text) for text in shown], settings, seed=seed)
        scores = self._scores(texts)
        learner.lm.load_state(before["adapter"])
        return scores

    def _embedding(self, ids: Ids, paths: Sequence[str], own: Knowledge | None) -> np.ndarray:
        """Of prompt and path; of prompt and own path where none is held; of the prompt alone where none is written."""
        learner = self.learner
        mine = own.texts if own is not None and own.texts is not None else None
        shown = [
            path or (mine[int(i)] if mine is not None else "") for i, path in zip(ids, paths, strict=True)
        ]
        tokens: list[np.ndarray] = [np.zeros(0, np.int32)] * len(ids)
        for text, j in zip(*self._encoded(ids, shown), strict=True):
            tokens[j] = text.input_ids
        for j, i in enumerate(ids):
            if len(tokens[j]) == 0:
                tokens[j] = learner.lm.tokenizer.encode_prompt(
                    self.pool.prompts[i], chat_template=learner.chat_template
                )[: learner.max_length]
        return embed(learner.lm, tokens, seed=self.pool.seed, batch_size=learner.knowledge.batch_size)

    # -- the checker -------------------------------------------------------------------------------------------

    @contextmanager
    def judging(self, round_number: int) -> Iterator[None]:
        """For a while verdicts come from the learner's own check (`public.check`), by what it knows now.

        A checker given at the start stays; a learner without a check leaves verdicts unknown.
        """
        if self.checker is not None or self.learner.check.name == "none":
            yield
            return
        self._verdicts.clear()
        self._first_wrong.clear()
        with judging(self.learner, round_number) as self.checker:
            try:
                yield
            finally:
                self.checker = None

    def verdicts(self, items: Sequence[int], paths: Sequence[str]) -> list[int]:
        """RIGHT, WRONG, or UNKNOWN where there is no checker, no path, or the checker failed on it."""
        keys = list(zip(items, paths, strict=True))
        fresh = [key for key in dict.fromkeys(keys) if key[1] and key not in self._verdicts]
        if self.checker is not None:
            judged = judge(self.checker, [(self.pool.prompts[item], path) for item, path in fresh])
            for key, verdict in zip(fresh, judged, strict=True):
                self._verdicts[key] = UNKNOWN if verdict.ok is None else RIGHT if verdict.ok else WRONG
                if verdict.first_wrong is not None:
                    self._first_wrong[key] = verdict.first_wrong
                if verdict.failed:
                    self._failures[key[0]] = verdict.reason
        return [self._verdicts.get(key, UNKNOWN) for key in keys]

    def verdict(self, item: int, path: str) -> int:
        """`verdicts` of one path."""
        return self.verdicts([item], [path])[0]

    def first_wrong(self, item: int, path: str) -> tuple[int, int] | None:
        """Characters of the first wrong step of a path that the checker refuses; None where it does not say."""
        return self._first_wrong.get((item, path)) if self.verdict(item, path) == WRONG else None

    def report_failures(self, round_number: int) -> None:
        """Say once a round on how many paths the checker failed, and on which first."""
        if self._failures:
            item, fault = next(iter(self._failures.items()))
            self.learner.emit(
                "warning", round=round_number, party=self.learner.name, signature="checker failed",
                text=f"the checker failed on {len(self._failures)} paths, which count as not judged; the first is "
                f"item {self.learner.public[item].id!r}: {fault}",
            )  # fmt: skip
            self._failures.clear()

    def signatures(self, producer: str, ids: Ids, held: Mapping[int, Path]) -> list[tuple[str, str]]:
        """Wrong teachers: the checker accepts less than 70 % of the chosen paths it can judge."""
        judged = [
            found
            for i in ids
            if int(i) in held and (found := self.verdict(int(i), held[int(i)].text)) != UNKNOWN
        ]
        share = judged.count(RIGHT) / len(judged) if judged else 1.0
        if share >= 0.7:
            return []
        return [(
            "wrong teachers",
            f"the checker accepts {share:.0%} of {len(judged)} chosen paths; refused ones were not learnt. "
            "With a contrastive loss use prefer = \"verified\"",
        )]  # fmt: skip


def _log_probs(scores: np.ndarray, n_bytes: Ids) -> Floats:
    """Scores per byte as log-probabilities; `inf` (not scored) becomes unknown."""
    known = np.isfinite(scores) & (n_bytes > 0)
    found = np.full(len(n_bytes), np.nan)
    found[known] = -scores[known].astype(np.float64) * n_bytes[known]
    return found
